// Package e2e tests telemap as its users run it: real processes that serve and
// mount, real file systems, databases and load generators on top, and everything
// that goes wrong between them.
//
// There is nothing to import here. The tests build the command once and start it
// with --json; a mount is always in another process, so a test may map its file.
// They run with TELEMAP_E2E=1, need FUSE, and most of them root. TELEMAP_SOAK=1
// makes the random ones go on for longer, and -short leaves out those that take
// more than a second or two.
package e2e
