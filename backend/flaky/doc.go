// Package flaky makes a backend fail in the ways that storage fails, when and
// where a test says.
//
//	third := flaky.Fail(flaky.Write, 3)
//	b := flaky.Wrap(mem.New(1<<20), third)
//	// … use b …
//	if third.Fired() != 1 {
//		t.Error("the third write did not fail")
//	}
//
// A [Failure] strikes the operations of one kind that it is meant for: one of
// them, each from some number on, or some by chance. It returns an error, cuts
// the operation short, delays it, or holds it until the test lets go. With
// [Failure.After] the operation is carried out first, as when a reply is lost.
// Every Failure counts how often it fired, because a test of a failure that
// never happened proves nothing.
package flaky
