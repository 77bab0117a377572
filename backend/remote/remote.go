package remote

import (
	"context"
	"errors"
	"io"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// A Backend is a region of another host. It has the abilities of
// [backend.Zeroer], [backend.Discarder], [backend.Extenter] and
// [backend.VectorReader], whatever the other side has.
type Backend struct {
	session transport.Session
	r       transport.Region
	info    transport.Info
	name    string
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
	_ backend.ReadOnlyer   = (*Backend)(nil)
	_ backend.ChunkSizer   = (*Backend)(nil)
)

// Open opens the region called region in session; the empty name is the only
// one there. Closing the backend closes the session. name is what errors call it
// and must hold no credentials. After an error the session is the caller's.
func Open(ctx context.Context, session transport.Session, region, name string) (*Backend, error) {
	r, info, err := session.Open(ctx, region)
	if err != nil {
		return nil, &backend.OpError{Op: "open", Name: name, Err: err}
	}
	return &Backend{session, r, info, name}, nil
}

// Info describes the region as the other side does.
func (b *Backend) Info() transport.Info { return b.info }

// Export offers b to peers under name, with what it says about itself.
func Export(name string, b backend.Backend) transport.Export {
	in := transport.Info{Name: name, Size: b.Size(), ChunkSize: backend.ChunkSize(b), ReadOnly: backend.IsReadOnly(b)}
	return transport.Export{Region: b, Info: in}
}

func (b *Backend) wrap(op string, off, n int64, err error) error {
	if err == nil || err == io.EOF { // itself, not wrapped: ReadAt's contract
		return err
	}
	return &backend.OpError{Op: op, Name: b.name, Off: off, Len: n, Err: err}
}

// ChunkSize is the transfer unit that suits the other side's storage, or zero.
func (b *Backend) ChunkSize() int64 { return b.info.ChunkSize }

// ReadOnly says that the other side refuses writes.
func (b *Backend) ReadOnly() bool { return b.info.ReadOnly }

// Size implements [backend.Backend].
func (b *Backend) Size() int64 { return b.r.Size() }

// ReadAt implements [backend.Backend].
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.r.ReadAt(ctx, p, off)
	return n, b.wrap("read", off, int64(len(p)), err)
}

// WriteAt implements [backend.Backend].
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := b.r.WriteAt(ctx, p, off)
	return n, b.wrap("write", off, int64(len(p)), err)
}

// Sync implements [backend.Backend].
func (b *Backend) Sync(ctx context.Context) error { return b.wrap("sync", 0, 0, b.r.Sync(ctx)) }

// Close implements [backend.Backend].
func (b *Backend) Close() error {
	return b.wrap("close", 0, 0, errors.Join(b.r.Close(), b.session.Close()))
}

// Zero implements [backend.Zeroer].
func (b *Backend) Zero(ctx context.Context, off, n int64) error {
	return b.wrap("zero", off, n, backend.Zero(ctx, b.r, off, n))
}

// Discard implements [backend.Discarder].
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	return b.wrap("discard", off, n, backend.Discard(ctx, b.r, off, n))
}

// NextData implements [backend.Extenter].
func (b *Backend) NextData(ctx context.Context, off int64) (region.Range, error) {
	r, err := backend.NextData(ctx, b.r, off)
	return r, b.wrap("find data of", off, 0, err)
}

// ReadVec implements [backend.VectorReader].
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	return b.wrap("read", 0, 0, backend.ReadVec(ctx, b.r, v))
}
