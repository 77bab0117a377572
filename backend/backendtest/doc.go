// Package backendtest is the suite that every backend passes. It states the
// contract of [backend.Backend] and of the abilities check by check; a check
// that fails prints the sentence it enforces.
//
//	func TestConformance(t *testing.T) {
//		backendtest.Run(t, func(t *testing.T, size int64) backend.Backend { return mem.New(size) })
//	}
//
// A backend that keeps its bytes when it is closed sets [Suite.Persistent] too,
// one that cannot be written sets [Suite.ReadOnly]. Abilities are checked where
// the backend has them. Bytes are random; a failure prints the seed, and
// TELEMAP_SEED repeats it.
//
// Run the tests with -race as well: some broken promises, such as a buffer used
// after Close, are only certain to be noticed by the race detector.
package backendtest
