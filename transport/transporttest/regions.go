package transporttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// memory is a region with every ability.
type memory struct {
	mu       sync.RWMutex
	mem      []byte
	syncs    atomic.Int64
	stubborn atomic.Bool
}

func newMemory(size int64) *memory {
	m := &memory{mem: make([]byte, size)}
	for i := range m.mem {
		m.mem[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return m
}

func (m *memory) clone() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.mem)
}

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < 0 || off > int64(len(m.mem)) {
		return 0, region.ErrOutOfRange
	}
	if n := copy(p, m.mem[off:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (m *memory) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !region.Check(off, int64(len(p)), int64(len(m.mem))) {
		return 0, region.ErrOutOfRange
	}
	return copy(m.mem[off:], p), nil
}

func (m *memory) Sync(context.Context) error { m.syncs.Add(1); return nil }
func (m *memory) Size() int64                { return int64(len(m.mem)) }
func (m *memory) Close() error               { return nil }

func (m *memory) Zero(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !region.Check(off, n, int64(len(m.mem))) {
		return region.ErrOutOfRange
	}
	clear(m.mem[off : off+n])
	return nil
}

func (m *memory) Discard(ctx context.Context, off, n int64) error { return m.Zero(ctx, off, n) }

func (m *memory) NextData(_ context.Context, off int64) (region.Range, error) {
	if off >= m.Size() {
		return region.Range{}, io.EOF
	}
	return region.Range{Off: off, Len: m.Size() - off}, nil
}

func (m *memory) ReadVec(ctx context.Context, v []region.Vec) error {
	for _, x := range v {
		if n, err := m.ReadAt(ctx, x.P, x.Off); n < len(x.P) {
			return err
		}
	}
	return nil
}

// plain hides the abilities of a region.
type plain struct{ transport.Region }

// failing answers everything with the error of its environment.
type failing struct {
	*memory
	e *Env
}

func (f *failing) ReadAt(context.Context, []byte, int64) (int, error)  { return 0, *f.e.err.Load() }
func (f *failing) WriteAt(context.Context, []byte, int64) (int, error) { return 0, *f.e.err.Load() }
func (f *failing) Sync(context.Context) error                          { return *f.e.err.Load() }

// stalled begins operations and does not end them until they are cancelled.
type stalled struct {
	*memory
	e *Env
}

func (s *stalled) stall(ctx context.Context) error {
	s.e.entered <- struct{}{}
	select {
	case <-ctx.Done():
		s.e.left <- ctx.Err()
		return ctx.Err()
	case <-s.e.release:
		return errors.New("released at the end of the test")
	}
}

func (s *stalled) ReadAt(ctx context.Context, _ []byte, _ int64) (int, error) {
	return 0, s.stall(ctx)
}

func (s *stalled) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	err := s.stall(ctx)
	if s.stubborn.Load() {
		return s.memory.WriteAt(ctx, p, off)
	}
	return 0, err
}

func (s *stalled) Sync(ctx context.Context) error { return s.stall(ctx) }

// short reads less than asked for and does not say why.
type short struct{ *memory }

func (s *short) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, _ := s.memory.ReadAt(ctx, p[:len(p)/2], off)
	return n, io.EOF
}
