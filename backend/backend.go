package backend

import "context"

// A Backend stores the bytes of one region. Methods may be called concurrently;
// concurrent writes that overlap may interleave, but a write touches no byte
// outside its own range. Checked by backendtest.Run.
type Backend interface {
	// ReadAt fills p from byte offset off. It follows [io.ReaderAt]: n < len(p)
	// comes with a non-nil error, [io.EOF] when the region ends before p does.
	// An offset below zero or behind the end is [ErrOutOfRange]; at the end it is
	// io.EOF. Bytes never written read as zero. It does not keep p.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)

	// WriteAt stores p at off. It does not keep or change p. A range that does
	// not lie in the region is [ErrOutOfRange] and nothing is written. A write
	// is durable after [Backend.Sync]. Once the call has returned, whatever it
	// returned, it changes nothing any more: a cancelled write first waits until
	// the storage has let go of it, since it must not land on a later one.
	WriteAt(ctx context.Context, p []byte, off int64) (n int, err error)

	// Sync returns once every write that returned before the call is durable, as
	// far as the storage can make it so.
	Sync(ctx context.Context) error

	// Size is the region's length in bytes, at least 1. It never changes.
	Size() int64

	// Close waits for operations in flight and frees resources. Later calls
	// return [ErrClosed]; closing twice is harmless. It does not imply Sync.
	Close() error
}
