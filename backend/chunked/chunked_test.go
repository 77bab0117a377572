package chunked

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// plain is a store with the four methods only. It trims zeros off the end of
// chunks, because a store may.
type plain struct {
	mu     sync.Mutex
	chunks map[region.ChunkIndex][]byte

	reads, writes atomic.Int64
	hook          func(ctx context.Context, op string, i region.ChunkIndex) error
}

func newPlain() *plain { return &plain{chunks: map[region.ChunkIndex][]byte{}} }

func (s *plain) call(ctx context.Context, op string, i region.ChunkIndex) error {
	if s.hook != nil {
		return s.hook(ctx, op, i)
	}
	return nil
}

func (s *plain) ReadChunk(ctx context.Context, i region.ChunkIndex, p []byte, off int64) (int, error) {
	s.reads.Add(1)
	if err := s.call(ctx, "read", i); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.chunks[i]
	return copy(p, c[min(off, int64(len(c))):]), nil
}

func (s *plain) WriteChunk(ctx context.Context, i region.ChunkIndex, p []byte) error {
	s.writes.Add(1)
	if err := s.call(ctx, "write", i); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks[i] = bytes.Clone(bytes.TrimRight(p, "\x00"))
	return nil
}

func (s *plain) Sync(ctx context.Context) error { return s.call(ctx, "sync", 0) }
func (s *plain) Close() error                   { return s.call(context.Background(), "close", 0) }

// able is a store with every ability.
type able struct{ *plain }

func (s able) DeleteChunk(ctx context.Context, i region.ChunkIndex) error {
	if err := s.call(ctx, "delete", i); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.chunks, i)
	return nil
}

func (s able) WritePart(ctx context.Context, i region.ChunkIndex, p []byte, off int64) error {
	if err := s.call(ctx, "part", i); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.chunks[i]
	if end := int(off) + len(p); end > len(c) {
		c = append(c[:len(c):len(c)], make([]byte, end-len(c))...)
	} else {
		c = bytes.Clone(c)
	}
	copy(c[off:], p)
	s.chunks[i] = c
	return nil
}

func (s able) ReadChunks(ctx context.Context, parts []Part) error {
	if err := s.call(ctx, "batch", parts[0].I); err != nil {
		return err
	}
	for k := range parts {
		x := &parts[k]
		x.N, _ = s.ReadChunk(ctx, x.I, x.P, x.Off)
	}
	return nil
}

func (s able) NextChunks(ctx context.Context, i region.ChunkIndex) (first, end region.ChunkIndex, err error) {
	if err := s.call(ctx, "list", i); err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	const none = region.ChunkIndex(1) << 60
	first = none
	for k := range s.chunks {
		if k >= i {
			first = min(first, k)
		}
	}
	if first == none {
		return 0, 0, nil
	}
	return first, first + 1, nil
}

func backendOn(t *testing.T, s Store, size, chunk int64, o Options) *Backend {
	t.Helper()
	g, err := region.NewGeometry(size, chunk)
	if err != nil {
		t.Fatal(err)
	}
	b := New(s, g, o)
	t.Cleanup(func() { b.Close() })
	return b
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]Options{"workers=1": {Workers: 1}, "workers=8": {Workers: 8}} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T, size int64) backend.Backend {
				return backendOn(t, newPlain(), size, 4096, o)
			})
		})
	}
	t.Run("abilities", func(t *testing.T) {
		backendtest.Run(t, func(t *testing.T, size int64) backend.Backend {
			return backendOn(t, able{newPlain()}, size, 16384, Options{})
		})
	})
	t.Run("read-only", func(t *testing.T) {
		backendtest.Suite{ReadOnly: func(t *testing.T, content []byte) backend.Backend {
			s := able{newPlain()}
			w := backendOn(t, s, int64(len(content)), 4096, Options{})
			if _, err := w.WriteAt(t.Context(), content, 0); err != nil {
				t.Fatal(err)
			}
			return backendOn(t, s, int64(len(content)), 4096, Options{ReadOnly: true})
		}}.Run(t)
	})
}

func TestWholeChunksAreNotReadFirst(t *testing.T) {
	s := newPlain()
	b := backendOn(t, s, 5*4096+100, 4096, Options{})
	if _, err := b.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4*4096+100), 4096); err != nil {
		t.Fatal(err)
	}
	if r, w := s.reads.Load(), s.writes.Load(); r != 0 || w != 5 {
		t.Errorf("%d reads and %d writes; want 0 and 5", r, w)
	}
	if _, err := b.WriteAt(t.Context(), []byte{1, 2}, 4095); err != nil {
		t.Fatal(err)
	}
	if r, w := s.reads.Load(), s.writes.Load(); r != 2 || w != 7 {
		t.Errorf("%d reads and %d writes after a write across two chunks; want 2 and 7", r, w)
	}
}

func TestZeroChunksAreDeleted(t *testing.T) {
	s := able{newPlain()}
	b := backendOn(t, s, 8*4096, 4096, Options{})
	fill := func() {
		if _, err := b.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 8*4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	if err := b.Zero(t.Context(), 100, 4*4096); err != nil {
		t.Fatal(err)
	}
	if n := len(s.chunks); n != 5 {
		t.Errorf("%d chunks after Zero; want 5", n)
	}
	fill()
	if _, err := b.WriteAt(t.Context(), make([]byte, 8*4096), 0); err != nil {
		t.Fatal(err)
	}
	if n := len(s.chunks); n != 0 {
		t.Errorf("%d chunks after zeros were written; want 0", n)
	}
}

func TestLostUpdateInsideAChunk(t *testing.T) {
	s := newPlain()
	s.hook = func(context.Context, string, region.ChunkIndex) error { runtime.Gosched(); return nil }
	b := backendOn(t, s, 64<<10, 64<<10, Options{})
	var wg sync.WaitGroup
	for k := range int64(16) {
		wg.Go(func() {
			if _, err := b.WriteAt(t.Context(), bytes.Repeat([]byte{byte(k + 1)}, 4096), k*4096); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p := make([]byte, 64<<10)
	if err := backend.ReadFull(t.Context(), b, p, 0); err != nil {
		t.Fatal(err)
	}
	for k := range 16 {
		if p[k*4096] != byte(k+1) {
			t.Errorf("the write of block %d is lost", k)
		}
	}
}

func TestReadsDoNotWaitForWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPlain()
		let := make(chan struct{})
		s.hook = func(_ context.Context, op string, _ region.ChunkIndex) error {
			if op == "write" {
				<-let
			}
			return nil
		}
		b := backendOn(t, s, 4096, 4096, Options{})
		done := make(chan error, 1)
		go func() { _, err := b.WriteAt(t.Context(), []byte{1}, 0); done <- err }()
		synctest.Wait()
		if err := backend.ReadFull(t.Context(), b, make([]byte, 10), 0); err != nil {
			t.Error(err)
		}
		// A second writer can stop waiting for the first.
		ctx, cancel := context.WithCancel(t.Context())
		second := make(chan error, 1)
		go func() { _, err := b.WriteAt(ctx, []byte{1}, 1); second <- err }()
		synctest.Wait()
		cancel()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("the second WriteAt = %v; want %v", err, context.Canceled)
		}
		close(let)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestParallelismIsBoundedAndUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPlain()
		var inside, most atomic.Int64
		let := make(chan struct{})
		s.hook = func(_ context.Context, op string, _ region.ChunkIndex) error {
			if op == "read" {
				n := inside.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				<-let
				inside.Add(-1)
			}
			return nil
		}
		b := backendOn(t, s, 64*4096, 4096, Options{Workers: 5})
		done := make(chan error, 1)
		go func() { done <- backend.ReadFull(t.Context(), b, make([]byte, 64*4096), 0) }()
		synctest.Wait()
		if n := inside.Load(); n != 5 {
			t.Errorf("%d chunks are read at a time; want 5", n)
		}
		close(let)
		if err := <-done; err != nil || most.Load() > 5 || s.reads.Load() != 64 {
			t.Errorf("ReadAt = %v with %d reads, %d at a time; want nil, 64, 5", err, s.reads.Load(), most.Load())
		}
	})
}

func TestErrorsCountWhatWasDone(t *testing.T) {
	for _, workers := range []int{1, 4} {
		s := newPlain()
		boom := errors.New("boom")
		s.hook = func(_ context.Context, op string, i region.ChunkIndex) error {
			if i == 6 && (op == "read" || op == "write") {
				return boom
			}
			return nil
		}
		b := backendOn(t, s, 20*4096, 4096, Options{Workers: workers, Name: "x:y"})
		for op, do := range map[string]func(context.Context, []byte, int64) (int, error){"read": b.ReadAt, "write": b.WriteAt} {
			n, err := do(t.Context(), bytes.Repeat([]byte{1}, 10*4096), 1000)
			var oe *backend.OpError
			if !errors.Is(err, boom) || !errors.As(err, &oe) || oe.Op != op || oe.Name != "x:y" || oe.Off != 1000 || oe.Len != 10*4096 {
				t.Errorf("%s = %v; want an OpError with %v", op, err, boom)
			}
			if n > 6*4096-1000 || workers == 1 && n != 6*4096-1000 {
				t.Errorf("%s with %d workers = %d bytes; want those before chunk 6", op, workers, n)
			}
		}
	}
}

func TestStoreErrorsReachTheCaller(t *testing.T) {
	boom := errors.New("boom")
	for _, failing := range []string{"read", "write", "part", "batch", "list", "delete", "sync", "close"} {
		s := able{newPlain()}
		b := backendOn(t, s, 20*4096, 4096, Options{})
		ctx := t.Context()
		if _, err := b.WriteAt(ctx, bytes.Repeat([]byte{1}, 20*4096), 0); err != nil {
			t.Fatal(err)
		}
		s.hook = func(_ context.Context, op string, i region.ChunkIndex) error {
			if op == failing {
				return boom
			}
			return nil
		}
		var err error
		switch failing {
		case "read":
			_, err = b.ReadAt(ctx, make([]byte, 10), 0)
		case "write":
			_, err = b.WriteAt(ctx, bytes.Repeat([]byte{1}, 4096), 0)
		case "part":
			_, err = b.WriteAt(ctx, []byte{1}, 0)
		case "batch":
			err = b.ReadVec(ctx, []backend.Vec{{P: make([]byte, 1)}})
		case "list":
			_, err = b.NextData(ctx, 0)
		case "delete":
			err = b.Zero(ctx, 0, 8192)
		case "sync":
			err = b.Sync(ctx)
		case "close":
			err = b.Close()
		}
		if !errors.Is(err, boom) || !strings.Contains(err.Error(), "boom") {
			t.Errorf("with a failing %q the error is %v", failing, err)
		}
	}
}

func TestEndOfAChunkIsNotTheEnd(t *testing.T) {
	s := newPlain()
	s.hook = func(context.Context, string, region.ChunkIndex) error { return io.EOF }
	b := backendOn(t, s, 8192, 4096, Options{})
	if _, err := b.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		t.Errorf("ReadAt = %v; want %v", err, io.ErrUnexpectedEOF)
	}
}

func TestNoAllocationPerChunk(t *testing.T) {
	s := newPlain()
	b := backendOn(t, s, 1<<20, 64<<10, Options{})
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { b.ReadAt(t.Context(), p, 70_000) }); n != 0 {
		t.Errorf("%v allocations per read inside a chunk; want 0", n)
	}
}
