// Package dir keeps a region in a directory, one file per chunk.
//
//	s, err := dir.Open("/var/lib/vm/disk", dir.Options{Size: 10 << 30})
//
// Chunks that hold only zeros have no file, so the directory can be copied,
// synchronised and deduplicated by tools that know nothing of telemap. It holds
//
//	manifest.json           size and chunk size, written once
//	chunks/00003/00003a7f   chunk 0x3a7f, 4096 of them to a directory
//
// Opening an existing directory takes size and chunk size from the manifest;
// options that contradict it are an error. One process at a time may have the
// directory open for writing. Which chunks exist is found when it is opened and
// then remembered, a bit per chunk.
//
// Chunks are written in place: a crash may leave a chunk that was not synced
// with some old and some new bytes, which a backend may, and a small write costs
// a small write instead of a new file. A file may be shorter than its chunk; the
// rest is zeros. At most [Options.MaxOpenFiles] are open at a time. A file
// that is closed to make room is made durable before, lest an error in writing
// it back goes unnoticed. Once Sync has failed it fails for good, as in package
// file.
package dir
