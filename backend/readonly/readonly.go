// Package readonly keeps a backend from being written to.
package readonly

import (
	"context"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// A Backend reads from another backend and refuses every write with
// [backend.ErrReadOnly].
type Backend struct{ b backend.Backend }

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// New wraps b. Closing the result closes b.
func New(b backend.Backend) *Backend { return &Backend{b} }

// Unwrap returns the backend that New was given.
func (b *Backend) Unwrap() backend.Backend { return b.b }

// ReadOnly is true: peers are told.
func (b *Backend) ReadOnly() bool { return true }

// Size implements [backend.Backend].
func (b *Backend) Size() int64 { return b.b.Size() }

// Close implements [backend.Backend].
func (b *Backend) Close() error { return b.b.Close() }

// Sync does nothing: nothing was written.
func (b *Backend) Sync(context.Context) error { return nil }

// ReadAt implements [backend.Backend].
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return b.b.ReadAt(ctx, p, off)
}

// WriteAt returns [backend.ErrReadOnly].
func (b *Backend) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return 0, refuse("write", off, int64(len(p)))
}

// Zero returns [backend.ErrReadOnly].
func (b *Backend) Zero(_ context.Context, off, n int64) error { return refuse("zero", off, n) }

// Discard returns [backend.ErrReadOnly].
func (b *Backend) Discard(_ context.Context, off, n int64) error { return refuse("discard", off, n) }

// NextData implements [backend.Extenter].
func (b *Backend) NextData(ctx context.Context, off int64) (region.Range, error) {
	return backend.NextData(ctx, b.b, off)
}

// ReadVec implements [backend.VectorReader].
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	return backend.ReadVec(ctx, b.b, v)
}

func refuse(op string, off, n int64) error {
	return &backend.OpError{Op: op, Name: "region", Off: off, Len: n, Err: backend.ErrReadOnly}
}
