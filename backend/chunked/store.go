package chunked

import (
	"context"

	"github.com/telemap/telemap/region"
)

// A Store keeps chunks. A chunk that was never written, or was deleted, is
// missing. Methods are called concurrently, but never two that change the same
// chunk; reads do run beside a change of their chunk, and must then return, byte
// by byte, what was there before or after.
//
// Errors are wrapped with the name and the range by [Backend]; a Store returns
// them bare. It need not check indexes, lengths, or whether it is closed.
type Store interface {
	// ReadChunk fills p with the bytes of chunk i from byte off of the chunk on,
	// and returns how many there are: 0 and nil if the chunk is missing. Bytes
	// behind those stored are zeros, which the caller fills in. All of p lies in
	// the chunk. It does not keep p.
	ReadChunk(ctx context.Context, i region.ChunkIndex, p []byte, off int64) (n int, err error)

	// WriteChunk stores p as the whole of chunk i: the chunk size, or less for
	// the last one. It does not keep or change p.
	WriteChunk(ctx context.Context, i region.ChunkIndex, p []byte) error

	// Sync returns once every change that returned before the call is durable.
	Sync(ctx context.Context) error

	// Close frees resources. It is called once, with no operation in flight.
	Close() error
}

// A Deleter can forget a chunk, which costs less than to store zeros. Deleting a
// missing chunk succeeds. Chunks that become all zero are deleted.
type Deleter interface {
	DeleteChunk(ctx context.Context, i region.ChunkIndex) error
}

// A PartWriter can store bytes inside a chunk, from byte off of it on, without
// reading the rest. The chunk may be missing: its other bytes are zeros then.
type PartWriter interface {
	WritePart(ctx context.Context, i region.ChunkIndex, p []byte, off int64) error
}

// A BatchReader reads parts of many chunks in one round trip.
type BatchReader interface {
	// ReadChunks fills in N of each part, as ReadChunk returns it.
	ReadChunks(ctx context.Context, parts []Part) error
}

// A Part is some bytes of one chunk: P from byte Off of chunk I on.
type Part struct {
	I   region.ChunkIndex
	P   []byte
	Off int64
	N   int
}

// A Lister knows which chunks are stored.
type Lister interface {
	// NextChunks is the first run [first, end) of chunks at or behind i that may
	// be stored, or an empty one if there is none. The run may end early.
	NextChunks(ctx context.Context, i region.ChunkIndex) (first, end region.ChunkIndex, err error)
}
