package inproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// A Session asks a catalog in the same process. It implements
// [transport.Session].
type Session struct {
	catalog transport.Catalog
	gate    gate
	closing context.Context // ends with the session
	close   context.CancelFunc
}

var _ transport.Session = (*Session)(nil)

// New makes a session with catalog. It starts nothing.
func New(catalog transport.Catalog) *Session {
	s := &Session{catalog: catalog}
	s.closing, s.close = context.WithCancel(context.Background())
	return s
}

// enter admits an operation, whose context ends with ctx and with the session.
func (s *Session) enter(ctx context.Context) (context.Context, func(*error), error) {
	if !s.gate.enter() {
		return nil, nil, region.ErrClosed
	}
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.closing, cancel)
	return ctx, func(err *error) {
		stop()
		cancel()
		if s.closing.Err() != nil && asked.Err() == nil && errors.Is(*err, context.Canceled) {
			*err = region.ErrClosed
		}
		s.gate.leave()
	}, nil
}

// Open implements [transport.Session].
func (s *Session) Open(ctx context.Context, name string) (_ transport.Region, _ transport.Info, err error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, transport.Info{}, err
	}
	defer leave(&err)
	if len(name) > transport.MaxName {
		return nil, transport.Info{}, fmt.Errorf("name of %d bytes, at most %d are allowed: %w", len(name), transport.MaxName, region.ErrNotFound)
	}
	x, err := s.catalog.Lookup(ctx, name)
	if err != nil {
		return nil, transport.Info{}, err
	}
	x.Info.Size = x.Region.Size()
	return &Region{s: s, served: x.Region, info: x.Info}, x.Info, nil
}

// List implements [transport.Session].
func (s *Session) List(ctx context.Context) (_ []transport.Info, err error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave(&err)
	return s.catalog.List(ctx)
}

// Close cancels what is in flight, waits until it has returned, and ends the
// session. The catalog's regions stay open.
func (s *Session) Close() error {
	s.close()
	s.gate.shut()
	return nil
}

// A Region is one of the catalog's. It has every ability of package backend;
// where the served region lacks one, the helpers of package backend stand in.
type Region struct {
	s      *Session
	served transport.Region
	info   transport.Info
	gate   gate
}

var (
	_ backend.Backend      = (*Region)(nil)
	_ backend.Zeroer       = (*Region)(nil)
	_ backend.Discarder    = (*Region)(nil)
	_ backend.Extenter     = (*Region)(nil)
	_ backend.VectorReader = (*Region)(nil)
)

func (r *Region) enter(ctx context.Context) (context.Context, func(*error), error) {
	if !r.gate.enter() {
		return nil, nil, region.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		r.gate.leave()
		return nil, nil, err
	}
	ctx, leave, err := r.s.enter(ctx)
	if err != nil {
		r.gate.leave()
		return nil, nil, err
	}
	return ctx, func(err *error) {
		leave(err)
		r.gate.leave()
	}, nil
}

// mayChange reports why [off, off+n) cannot be changed.
func (r *Region) mayChange(off, n int64) error {
	switch {
	case !region.Check(off, n, r.info.Size):
		return region.ErrOutOfRange
	case r.info.ReadOnly:
		return region.ErrReadOnly
	}
	return nil
}

// ReadAt implements [transport.Region].
func (r *Region) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave(&err)
	p, end := backend.Clip(p, off, r.info.Size)
	if len(p) == 0 {
		return 0, end
	}
	n, err = r.served.ReadAt(ctx, p, off)
	if n, err = checked(n, len(p), err, io.ErrNoProgress); err == nil {
		err = end
	}
	return n, err
}

// WriteAt implements [transport.Region].
func (r *Region) WriteAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave(&err)
	if err := r.mayChange(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	n, err = r.served.WriteAt(ctx, p, off)
	return checked(n, len(p), err, io.ErrShortWrite)
}

// checked is what a region said about an operation on size bytes, made to obey
// the contract: all of them without an error, or fewer with one.
func checked(n, size int, err, short error) (int, error) {
	switch {
	case n < 0 || n > size:
		return 0, fmt.Errorf("the region says that it did %d of %d bytes: %w", n, size, errors.Join(short, err))
	case n == size && err == io.EOF:
		return n, nil
	case n < size && err == nil:
		return n, fmt.Errorf("the region did %d of %d bytes: %w", n, size, short)
	}
	return n, err
}

// Sync implements [transport.Region].
func (r *Region) Sync(ctx context.Context) (err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave(&err)
	return r.served.Sync(ctx)
}

// Size implements [transport.Region].
func (r *Region) Size() int64 { return r.info.Size }

// Close waits for the operations in flight on this handle. The served region
// and its other handles stay open.
func (r *Region) Close() error {
	r.gate.shut()
	return nil
}

// Zero implements backend.Zeroer.
func (r *Region) Zero(ctx context.Context, off, n int64) (err error) {
	return r.erase(ctx, off, n, backend.Zero)
}

// Discard implements backend.Discarder.
func (r *Region) Discard(ctx context.Context, off, n int64) (err error) {
	return r.erase(ctx, off, n, backend.Discard)
}

func (r *Region) erase(ctx context.Context, off, n int64, how func(context.Context, backend.Backend, int64, int64) error) (err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave(&err)
	if err := r.mayChange(off, n); err != nil || n == 0 {
		return err
	}
	return how(ctx, r.served, off, n)
}

// NextData implements backend.Extenter.
func (r *Region) NextData(ctx context.Context, off int64) (_ region.Range, err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return region.Range{}, err
	}
	defer leave(&err)
	if !region.Check(off, 0, r.info.Size) {
		return region.Range{}, region.ErrOutOfRange
	}
	return backend.NextData(ctx, r.served, off)
}

// ReadVec implements backend.VectorReader.
func (r *Region) ReadVec(ctx context.Context, v []backend.Vec) (err error) {
	ctx, leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave(&err)
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), r.info.Size) {
			return region.ErrOutOfRange
		}
	}
	return backend.ReadVec(ctx, r.served, v)
}

// A gate lets operations in until it is shut. The zero value is open.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

// enter reports whether the operation may go on. If so, it must leave.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) leave() { g.inside.Done() }

// shut lets nobody in any more and waits for those inside.
func (g *gate) shut() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}
