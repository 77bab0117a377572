package transporttest

import (
	"bytes"
	"context"
	"io"
	"sync"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// served is a region whose server the suite is.
type served struct {
	// before, if not nil, runs at the start of every operation. What it returns
	// is what the operation returns.
	before func(ctx context.Context, op string, r region.Range) error

	mu    sync.Mutex
	data  []byte
	calls map[string]int // by operation
}

func serve(data []byte) *served { return &served{data: bytes.Clone(data), calls: map[string]int{}} }

func (s *served) enter(ctx context.Context, op string, off, n int64) error {
	s.mu.Lock()
	s.calls[op]++
	s.mu.Unlock()
	if s.before != nil {
		if err := s.before(ctx, op, region.Range{Off: off, Len: n}); err != nil {
			return err
		}
	}
	if n >= 0 && op != "read" && !region.Check(off, n, s.Size()) {
		return region.ErrOutOfRange
	}
	return nil
}

func (s *served) count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// content is a copy of what the region holds.
func (s *served) content() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.data)
}

func (s *served) Size() int64  { return int64(len(s.data)) }
func (s *served) Close() error { return nil }

func (s *served) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.enter(ctx, "read", off, int64(len(p))); err != nil {
		return 0, err
	}
	q, end := backend.Clip(p, off, s.Size())
	if end != nil && end != io.EOF {
		return 0, end
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(q, s.data[off:]), end
}

func (s *served) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.enter(ctx, "write", off, int64(len(p))); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(s.data[off:], p), nil
}

func (s *served) Sync(ctx context.Context) error { return s.enter(ctx, "sync", 0, 0) }

// able is served with every ability.
type able struct{ *served }

func (a able) Zero(ctx context.Context, off, n int64) error { return a.erase(ctx, "zero", off, n) }
func (a able) Discard(ctx context.Context, off, n int64) error {
	return a.erase(ctx, "discard", off, n)
}

func (a able) erase(ctx context.Context, op string, off, n int64) error {
	if err := a.enter(ctx, op, off, n); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.data[off : off+n])
	return nil
}

func (a able) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := a.enter(ctx, "next data", off, 0); err != nil {
		return region.Range{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for first := off; first < a.Size(); first++ {
		if a.data[first] != 0 {
			end := first
			for end < a.Size() && a.data[end] != 0 {
				end++
			}
			return region.Range{Off: first, Len: end - first}, nil
		}
	}
	return region.Range{}, io.EOF
}

func (a able) ReadVec(ctx context.Context, v []backend.Vec) error {
	if err := a.enter(ctx, "read vec", 0, 0); err != nil {
		return err
	}
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), a.Size()) {
			return region.ErrOutOfRange
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range v {
		copy(x.P, a.data[x.Off:])
	}
	return nil
}

// liar answers reads and writes with what its fields say.
type liar struct {
	*served
	n   int
	err error
}

func (l liar) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if n, err := l.served.ReadAt(ctx, p[:min(max(l.n, 0), len(p))], off); n < l.n && err != nil {
		return n, err
	}
	return l.n, l.err
}

func (l liar) WriteAt(context.Context, []byte, int64) (int, error) { return l.n, l.err }

// failure is the error that a server is to return now.
type failure struct {
	mu  sync.Mutex
	err error
}

func (f *failure) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// catalog is Exports with a hook.
type catalog struct {
	transport.Exports
	before func(ctx context.Context, op string) error
}

func (c catalog) Lookup(ctx context.Context, name string) (transport.Export, error) {
	if err := c.before(ctx, "lookup"); err != nil {
		return transport.Export{}, err
	}
	return c.Exports.Lookup(ctx, name)
}

func (c catalog) List(ctx context.Context) ([]transport.Info, error) {
	if err := c.before(ctx, "list"); err != nil {
		return nil, err
	}
	return c.Exports.List(ctx)
}
