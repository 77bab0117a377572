package readonly

import (
	"context"
	"sync/atomic"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// A Backend is another one without its writes. Make one with [New].
type Backend struct {
	b      backend.Backend
	closed atomic.Bool
}

// New makes a read-only backend of b. Closing it closes b.
func New(b backend.Backend) *Backend { return &Backend{b: b} }

// Unwrap is the backend behind b.
func (b *Backend) Unwrap() backend.Backend { return b.b }

// ReadAt reads from the backend behind b.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return b.b.ReadAt(ctx, p, off)
}

// ReadVec reads from the backend behind b.
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	return backend.ReadVec(ctx, b.b, v)
}

// NextData asks the backend behind b.
func (b *Backend) NextData(ctx context.Context, off int64) (region.Range, error) {
	return backend.NextData(ctx, b.b, off)
}

// WriteAt returns [backend.ErrReadOnly].
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	return 0, b.refuse()
}

// Zero returns [backend.ErrReadOnly].
func (b *Backend) Zero(ctx context.Context, off, n int64) error { return b.refuse() }

// Discard returns [backend.ErrReadOnly].
func (b *Backend) Discard(ctx context.Context, off, n int64) error { return b.refuse() }

func (b *Backend) refuse() error {
	if b.closed.Load() {
		return backend.ErrClosed
	}
	return backend.ErrReadOnly
}

// Sync does nothing: there is nothing that this backend wrote.
func (b *Backend) Sync(ctx context.Context) error {
	if b.closed.Load() {
		return backend.ErrClosed
	}
	return nil
}

// Size is the length of the backend behind b.
func (b *Backend) Size() int64 { return b.b.Size() }

// ReadOnly is true.
func (b *Backend) ReadOnly() bool { return true }

// Close closes the backend behind b.
func (b *Backend) Close() error {
	b.closed.Store(true)
	return b.b.Close()
}
