// Package mount joins a backend, a pager and a view to one handle with one
// lifecycle: a region that programs on this host use as a file.
//
//	m, err := mount.Open(ctx, b, "/mnt/disk.img", mount.Options{})
//	…                     // any program opens, reads, writes, maps /mnt/disk.img
//	err = m.Sync(ctx)     // what was written is durable in b
//	err = m.Close()       // flush, sync, unmount
//
// A managed mount, the default, goes through a pager: it fetches what is
// touched, pulls the rest in the background and pushes writes back. A direct
// mount puts the view straight on the backend: nothing is kept here, and a write
// has reached the backend when the kernel hands it on.
//
// A process must not map or touch by pointer a file that it serves itself: the
// runtime could stop for a collection while the fault waits for a goroutine that
// is stopped too. Use read and write there, or map it from another process.
package mount
