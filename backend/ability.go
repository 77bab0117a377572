package backend

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/region"
)

// A Zeroer can zero a range for less than it costs to write zeros. The bytes
// read as zeros afterwards. Wrappers forward it; it is not reached through them.
type Zeroer interface {
	Zero(ctx context.Context, off, n int64) error
}

// A Discarder can be told that a range's bytes are no longer needed, so that
// their space may be freed. They read as zeros afterwards. Wrappers forward it;
// it is not reached through them.
type Discarder interface {
	Discard(ctx context.Context, off, n int64) error
}

// An Extenter knows which ranges may hold data and which are surely holes.
// Wrappers forward it; it is not reached through them.
type Extenter interface {
	// NextData is the first range at or behind off that may hold something else
	// than zeros, clipped to start at off at the earliest. It is [io.EOF] when
	// only zeros follow. The range may end early: ask again from its end.
	NextData(ctx context.Context, off int64) (region.Range, error)
}

// A Vec is one piece of a vectored read: fill P from offset Off.
type Vec = region.Vec

// A VectorReader reads many ranges in one round trip. Each Vec is filled whole
// or the call fails; what the buffers hold then is unspecified. Wrappers forward
// it; it is not reached through them.
type VectorReader interface {
	ReadVec(ctx context.Context, v []Vec) error
}

// A Filer keeps its bytes in one file at the same offsets, which may be read, spliced or
// mapped. The caller does not close it and does not use it after Close of the
// backend. It is not reached through wrappers, whose work it would bypass.
type Filer interface {
	File() *os.File
}

// A ReadOnlyer may refuse every write with [ErrReadOnly]. [IsReadOnly] finds it
// through wrappers.
type ReadOnlyer interface {
	ReadOnly() bool
}

// A ChunkSizer has a unit in bytes, a power of two, in which it is best read and
// written; zero means none. [ChunkSize] finds it through wrappers.
type ChunkSizer interface {
	ChunkSize() int64
}

// IsReadOnly reports whether b, or what it wraps, says that it refuses writes.
func IsReadOnly(b Backend) bool {
	for {
		if r, ok := b.(ReadOnlyer); ok && r.ReadOnly() {
			return true
		}
		w, ok := b.(interface{ Unwrap() Backend })
		if !ok {
			return false
		}
		b = w.Unwrap()
	}
}

// ChunkSize is the unit that suits b, or what it wraps; zero if none is known.
func ChunkSize(b Backend) int64 {
	for {
		if c, ok := b.(ChunkSizer); ok {
			return c.ChunkSize()
		}
		w, ok := b.(interface{ Unwrap() Backend })
		if !ok {
			return 0
		}
		b = w.Unwrap()
	}
}

// ReadFull fills p from off or fails: unlike ReadAt it returns no count, and a
// region that ends before p does is [ErrOutOfRange].
func ReadFull(ctx context.Context, b Backend, p []byte, off int64) error {
	n, err := b.ReadAt(ctx, p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil:
		return io.ErrNoProgress
	case errors.Is(err, io.EOF):
		return ErrOutOfRange
	}
	return err
}

// zeros is what Zero writes where a backend cannot do better.
var zeros [256 << 10]byte

// Zero makes [off, off+n) read as zeros: by [Zeroer] if b is one, else by
// writing zeros.
func Zero(ctx context.Context, b Backend, off, n int64) error {
	if z, ok := b.(Zeroer); ok {
		return z.Zero(ctx, off, n)
	}
	if !region.Check(off, n, b.Size()) {
		return ErrOutOfRange
	}
	for n > 0 {
		k, err := b.WriteAt(ctx, zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// Discard tells b that [off, off+n) is no longer needed: by [Discarder] if b is
// one, else as [Zero] does.
func Discard(ctx context.Context, b Backend, off, n int64) error {
	if d, ok := b.(Discarder); ok {
		return d.Discard(ctx, off, n)
	}
	return Zero(ctx, b, off, n)
}

// NextData is b's answer if it is an [Extenter]; any other backend may hold data
// everywhere.
func NextData(ctx context.Context, b Backend, off int64) (region.Range, error) {
	if e, ok := b.(Extenter); ok {
		return e.NextData(ctx, off)
	}
	switch size := b.Size(); {
	case off < 0 || off > size:
		return region.Range{}, ErrOutOfRange
	case off == size:
		return region.Range{}, io.EOF
	default:
		return region.Range{Off: off, Len: size - off}, nil
	}
}

// ReadVec fills every piece of v: by [VectorReader] if b is one, else by up to
// eight reads at a time.
func ReadVec(ctx context.Context, b Backend, v []Vec) error {
	if r, ok := b.(VectorReader); ok {
		return r.ReadVec(ctx, v)
	}
	if len(v) == 1 {
		return ReadFull(ctx, b, v[0].P, v[0].Off)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, x := range v {
		g.Go(func() error { return ReadFull(ctx, b, x.P, x.Off) })
	}
	return g.Wait()
}
