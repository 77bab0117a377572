// Package chunked makes a [backend.Backend] of a store that only knows chunks of
// one size, such as one object, row or file per chunk.
//
//	g, err := region.NewGeometry(size, 1<<20)
//	b := chunked.New(store, g, chunked.Options{Name: "s3://bucket/vm"})
//
// It does once what each such store would otherwise do again: reads and writes
// at any offset, the shorter chunk at the end, zeros for what is missing,
// read-modify-write under a lock per chunk, several chunks at a time for big
// accesses, and Close that waits.
//
// A [Store] has four methods. It may have more: [Deleter], [PartWriter],
// [BatchReader] and [Lister] each make something cheaper.
package chunked
