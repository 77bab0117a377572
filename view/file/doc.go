// Package file shows a region as one regular file, to any process, by FUSE.
//
//	v, err := file.Open(ctx, pager, "/mnt/disk.img", file.Options{})
//	…
//	err = v.Close(ctx)
//
// The file can be read, written, mapped (shared and private), opened with
// O_DIRECT, put behind a loop device, and used as disk or memory of a virtual
// machine. If the path is a directory the file appears in it under Options.Name.
// Otherwise it appears at the path itself; what was there is hidden meanwhile. A
// missing file is made for the mount to sit on, write-only and empty, and removed
// at the end.
//
// # What programs can rely on
//
// The size is that of the source and stays. Truncating to that size works, to
// any other, which O_TRUNC is, fails with EPERM. A write behind the end fails
// with ENOSPC, one across the end is short. Punching holes and zeroing ranges
// work, and SEEK_DATA and SEEK_HOLE find holes while nobody has the file open for
// writing. chmod and chown last as long as the view. There is one link; renaming
// and unlinking fail with EBUSY, for the file is a mount point.
//
// The kernel caches pages for reading and mapping. write(2) goes through to the
// source before it returns; pages dirtied through a shared mapping follow in the
// background, at msync or fsync, at munmap and at close. fsync and msync write
// what is dirty and then sync the source. The kernel's write-back cache stays
// off: a write that returned would be missing from other views of the same
// source, and the kernel would let the file grow. Bytes that change in the source
// behind the view's back stay hidden in the cache until [View.Invalidate];
// Options.Direct does without the cache for read and write.
//
// A signal ends a wait in the file as it does elsewhere in Linux: always if it
// kills the process, and if it is handled then in O_DIRECT reads, with EINTR.
// Other operations are started over for a caller that lives on, because programs
// do not expect EINTR from files, and a page fault that fails is a SIGBUS.
//
// # Errors
//
// Failures of the source arrive as EIO, ENOSPC, EROFS, ETIMEDOUT, EOPNOTSUPP or
// EINVAL. A failed write-back of a mapped page is reported by the next fsync or
// msync, or, if the view is being closed, by [View.Close]. A panic of the source
// is logged and is EIO.
//
// # The end
//
// Close refuses while the file is in use. Detach takes it out of the tree at once,
// waits for its users, and cuts them off when its context ends. An unmount from
// outside ends the view too; the owner learns of it by Done and Err. What a
// killed process left at the path, ENOTCONN for everybody, is recognised and
// cleaned up by the next Open of that path.
//
// # The process that serves must not map
//
// A process that touches a mapping of a file that it serves itself can stop for
// good: the fault keeps the Go scheduler from running the goroutine that would
// answer it. Read and write such a file by system calls, or map it elsewhere.
//
// As root the package mounts by itself. Other users need fusermount3, and
// processes of other users see the file only with Options.AllowOther.
package file
