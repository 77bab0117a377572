package file

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/region"
)

// store is a source in memory whose failures tests can order.
type store struct {
	mu    sync.RWMutex
	b     []byte
	syncs atomic.Int64

	// before runs ahead of every operation, which fails with its error.
	before atomic.Pointer[func(ctx context.Context, op string, off int64) error]
}

func newStore(size int64) *store { return &store{b: make([]byte, size)} }

func (s *store) hook(f func(ctx context.Context, op string, off int64) error) {
	if f == nil {
		s.before.Store(nil)
		return
	}
	s.before.Store(&f)
}

func (s *store) run(ctx context.Context, op string, off int64) error {
	if f := s.before.Load(); f != nil {
		return (*f)(ctx, op, off)
	}
	return nil
}

func (s *store) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.run(ctx, "read", off); err != nil {
		return 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := copy(p, s.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *store) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.run(ctx, "write", off); err != nil {
		return 0, err
	}
	if !region.Check(off, int64(len(p)), s.Size()) {
		return 0, region.ErrOutOfRange
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(s.b[off:], p), nil
}

func (s *store) Sync(ctx context.Context) error {
	if err := s.run(ctx, "sync", 0); err != nil {
		return err
	}
	s.syncs.Add(1)
	return nil
}

func (s *store) Size() int64 { return int64(len(s.b)) }

func (s *store) bytes(off, n int64) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return append([]byte(nil), s.b[off:off+n]...)
}

// sparse adds every ability of a source.
type sparse struct {
	*store
	zeroed, discarded atomic.Int64
}

func (s *sparse) Zero(ctx context.Context, off, n int64) error {
	s.zeroed.Add(n)
	_, err := s.WriteAt(ctx, make([]byte, n), off)
	return err
}

func (s *sparse) Discard(ctx context.Context, off, n int64) error {
	s.discarded.Add(n)
	_, err := s.WriteAt(ctx, make([]byte, n), off)
	return err
}

// NextData reports blocks of 4096 bytes one by one, as a source may.
func (s *sparse) NextData(ctx context.Context, off int64) (region.Range, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for ; off < s.Size(); off = (off/4096 + 1) * 4096 {
		end := min((off/4096+1)*4096, s.Size())
		for _, c := range s.b[off:end] {
			if c != 0 {
				return region.Range{Off: off, Len: end - off}, nil
			}
		}
	}
	return region.Range{}, io.EOF
}

// viewed is a source that shows its memory, which is not Go's: the kernel reads
// it while others write, as it does with a pager's.
type viewed struct{ *store }

func newViewed(t testing.TB, size int64) viewed {
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	return viewed{&store{b: b}}
}

func (v viewed) View(ctx context.Context, off, n int64) ([]byte, error) {
	return v.b[off : off+n], nil
}

var errBroken = errors.New("the store is broken")
