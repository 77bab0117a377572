// Package view says what a program sees of a region.
//
// A view shows the bytes of a [Source], which is a pager or a backend, to a
// program: package slice as a []byte, package file as a regular file, package
// block as a block device. A view stores nothing of its own beyond what the
// kernel caches for it. It does not close its source; the source outlives it.
//
// Every view keeps these promises:
//
//   - A byte never written reads as zero.
//   - A write that returned is visible to every later read through the view, and
//     in the source once the view was flushed.
//   - Syncing the view (fsync, msync, flush) stores everything written before in
//     the source, syncs the source and reports the error of either.
//   - An error of the source reaches the program that asked, as EIO or better. It
//     never turns into zeros, a hang or a crash, and a later attempt may succeed.
//   - After closing no goroutine, descriptor, mount or device is left.
//
// Beyond [Source], the abilities [Viewer], [Zeroer], [Discarder] and [Extenter]
// are used where a source has them.
package view
