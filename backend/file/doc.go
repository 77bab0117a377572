// Package file keeps a region in a file or on a block device.
//
//	s, err := file.Open("/var/lib/vm/disk.img", file.Options{Size: 10 << 30})
//
// The bytes are at the same offsets in the file. An existing file keeps its
// size; with [Options.Size] a missing one is created, sparse. Holes are known to
// NextData, and Zero and Discard make some where the file system can.
//
// Reads and writes are one system call each and pass through the page cache.
// The call cannot be interrupted, so a context is looked at before it only. Sync
// makes the file durable. Once it has failed it fails for good, because the
// kernel may have dropped the bytes it could not write and would report success
// the next time: open the file anew and write again.
//
// The file is not locked. If somebody makes it shorter meanwhile, reads of what
// is gone fail with [io.ErrUnexpectedEOF] instead of returning zeros.
package file
