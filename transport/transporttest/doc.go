// Package transporttest is the suite that every transport passes. It states the
// contract of [transport.Session] and of the regions that a session opens, check
// by check; a check that fails prints the sentence it enforces.
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
//
//	func TestConformance(t *testing.T) {
//		transporttest.Run(t, func(t *testing.T, cat transport.Catalog) transport.Session {
//			return inproc.New(cat)
//		})
//	}
//
// The suite serves regions of its own that stall, fail and lie on demand. It
// looks for goroutines left behind, so nothing else may run beside it.
//
// Run the tests with -race as well: a buffer that is written to after its
// request was given up is only certain to be noticed by the race detector.
package transporttest
