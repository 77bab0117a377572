package pager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A stub is a backend in memory whose operations tests can hold, fail and count.
type stub struct {
	mu     sync.Mutex
	mem    []byte
	synced []byte // what would survive a crash of the backend

	reads, writes, syncs atomic.Int64
	onRead               func(ctx context.Context, off, n int64) error
	onWrite              func(ctx context.Context, off, n int64) error
	onSync               func(ctx context.Context) error
}

func newStub(size int64) *stub {
	s := &stub{mem: make([]byte, size), synced: make([]byte, size)}
	testkit.Pattern(s.mem, 0, 1)
	copy(s.synced, s.mem)
	return s
}

func (s *stub) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.reads.Add(1)
	if s.onRead != nil {
		if err := s.onRead(ctx, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := copy(p, s.mem[off:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

func (s *stub) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	s.writes.Add(1)
	// The bytes are taken before the hold, as a network would.
	p = bytes.Clone(p)
	if s.onWrite != nil {
		if err := s.onWrite(ctx, off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(s.mem[off:], p), nil
}

func (s *stub) Sync(ctx context.Context) error {
	s.syncs.Add(1)
	s.mu.Lock()
	now := bytes.Clone(s.mem)
	s.mu.Unlock()
	if s.onSync != nil {
		if err := s.onSync(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.synced, now)
	return nil
}

func (s *stub) Size() int64  { return int64(len(s.mem)) }
func (s *stub) Close() error { return nil }

func (s *stub) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.mem)
}

var quiet = Options{ChunkSize: 4096, Pull: PullOptions{Off: true}, Push: PushOptions{Off: true}}

func open(t *testing.T, b backend.Backend, o Options) *Pager {
	t.Helper()
	p, err := Open(t.Context(), b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	return p
}

func readBack(t *testing.T, p *Pager) []byte {
	t.Helper()
	got := make([]byte, p.Size())
	if n, err := p.ReadAt(t.Context(), got, 0); n != len(got) || err != nil {
		t.Fatalf("ReadAt(off=0, len=%d) = %d, %v; want all", len(got), n, err)
	}
	return got
}

func TestReadsFetchEachChunkOnce(t *testing.T) {
	b := newStub(10*4096 + 100)
	p := open(t, b, quiet)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			buf := make([]byte, 4096)
			for off := int64(0); off < b.Size(); off += 1000 {
				n, err := p.ReadAt(context.Background(), buf, off)
				if err != nil && err != io.EOF {
					t.Error(err)
				}
				if !bytes.Equal(buf[:n], b.mem[off:off+int64(n)]) {
					t.Errorf("wrong bytes at %d", off)
				}
			}
		})
	}
	wg.Wait()
	if s := p.Stats(); s.FetchedBytes != b.Size() || s.Local != 11 {
		t.Errorf("fetched %d bytes, %d chunks local; want each of %d bytes once, 11 chunks", s.FetchedBytes, s.Local, b.Size())
	}
}

func TestOneFetchIsSharedAndEachWaiterCanGiveUp(t *testing.T) {
	b := newStub(4096)
	entered, release := make(chan struct{}), make(chan struct{})
	b.onRead = func(ctx context.Context, _, _ int64) error {
		close(entered)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p := open(t, b, quiet)
	patient := make(chan error, 1)
	go func() { patient <- p.Ensure(context.Background(), 0, 4096) }()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled reader got %v; want context.Canceled", err)
	}
	impatient := make(chan error, 1)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { impatient <- p.Ensure(ctx, 0, 1) }()
	cancel()
	if err := <-impatient; !errors.Is(err, context.Canceled) {
		t.Errorf("the waiter that gave up got %v; want context.Canceled", err)
	}
	close(release)
	if err := <-patient; err != nil {
		t.Errorf("the waiter that stayed got %v", err)
	}
	if n := b.reads.Load(); n != 1 {
		t.Errorf("%d fetches; want 1", n)
	}
}

func TestAbandonedFetchIsCancelledAndCanBeAskedAgain(t *testing.T) {
	b := newStub(8192)
	entered := make(chan struct{}, 2)
	var hold atomic.Bool
	hold.Store(true)
	b.onRead = func(ctx context.Context, _, _ int64) error {
		entered <- struct{}{}
		if hold.Load() {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	p := open(t, b, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- p.Ensure(ctx, 0, 100) }()
	<-entered
	hold.Store(false)
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got := readBack(t, p); !bytes.Equal(got, b.mem) {
		t.Error("wrong bytes after an abandoned fetch")
	}
}

func TestFailedFetchIsAnErrorAndNotRemembered(t *testing.T) {
	b := newStub(3 * 4096)
	var failed atomic.Int64
	cause := errors.New("disk on fire")
	b.onRead = func(context.Context, int64, int64) error {
		if failed.Add(1) == 1 {
			return cause
		}
		return nil
	}
	p := open(t, b, quiet)
	buf := make([]byte, 100)
	if n, err := p.ReadAt(t.Context(), buf, 5000); n != 0 || !errors.Is(err, cause) {
		t.Fatalf("ReadAt = %d, %v; want 0 and the fetch's error", n, err)
	}
	if _, err := p.ReadAt(t.Context(), buf, 5000); err != nil || !bytes.Equal(buf, b.mem[5000:5100]) {
		t.Fatalf("the next read: %v", err)
	}
	if failed.Load() < 2 {
		t.Error("the failure never fired")
	}
}

// Short reads must not become zeros: r3map's A11.
func TestShortFetchIsAnError(t *testing.T) {
	p := open(t, shortBackend{newStub(4096)}, quiet)
	if _, err := p.ReadAt(t.Context(), make([]byte, 4096), 0); err == nil {
		t.Fatal("a fetch that returned too few bytes was taken for whole")
	}
}

type shortBackend struct{ *stub }

func (s shortBackend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, _ := s.stub.ReadAt(ctx, p[:len(p)/2], off)
	return n, io.ErrUnexpectedEOF
}

func TestWriteDuringPushIsPushedAgain(t *testing.T) {
	b := newStub(4096)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.onWrite = func(context.Context, int64, int64) error {
		once.Do(func() { close(entered); <-release })
		return nil
	}
	p := open(t, b, quiet)
	write(t, p, 0, []byte("old"))
	done := make(chan error, 1)
	go func() { done <- p.Sync(context.Background()) }()
	<-entered // the push has copied the chunk
	write(t, p, 0, []byte("new"))
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := string(b.bytes()[:3]); got != "new" {
		t.Errorf("the backend has %q; want %q", got, "new")
	}
}

func write(t *testing.T, p *Pager, off int64, b []byte) {
	t.Helper()
	if n, err := p.WriteAt(t.Context(), b, off); n != len(b) || err != nil {
		t.Fatalf("WriteAt(off=%d, len=%d) = %d, %v", off, len(b), n, err)
	}
}

// r3map's A3: a failed push was swallowed and then deadlocked.
func TestSyncReportsAFailedPushAndKeepsTheChunkDirty(t *testing.T) {
	b := newStub(64 * 4096)
	cause := errors.New("refused")
	var refuse atomic.Bool
	refuse.Store(true)
	b.onWrite = func(_ context.Context, off, _ int64) error {
		if refuse.Load() {
			return cause
		}
		return nil
	}
	p := open(t, b, quiet)
	for off := int64(0); off < b.Size(); off += 8192 {
		write(t, p, off, []byte{42})
	}
	for range 2 {
		if err := p.Sync(t.Context()); !errors.Is(err, cause) {
			t.Fatalf("Sync = %v; want the push's error", err)
		}
	}
	if s := p.Stats(); s.Dirty != 32 || s.PushErrors < 32 {
		t.Errorf("%d dirty chunks, %d push errors; want 32 and at least 32", s.Dirty, s.PushErrors)
	}
	refuse.Store(false)
	if err := p.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.bytes(); got[0] != 42 || got[62*4096] != 42 {
		t.Error("the chunks did not arrive")
	}
	if !bytes.Equal(b.bytes(), b.synced) {
		t.Error("Sync returned nil before the backend was synced")
	}
}

// A push that completes while the backend syncs is not covered by that sync.
func TestChunkPushedDuringBackendSyncIsSyncedAgain(t *testing.T) {
	b := newStub(2 * 4096)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.onSync = func(context.Context) error {
		once.Do(func() { close(entered); <-release })
		return nil
	}
	p := open(t, b, quiet)
	write(t, p, 0, []byte("first"))
	done := make(chan error, 1)
	go func() { done <- p.Sync(context.Background()) }()
	<-entered
	write(t, p, 0, []byte("later"))
	if err := p.pushAll(t.Context(), p.dirty); err != nil { // as the background push would
		t.Fatal(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := string(b.synced[:5]); got != "later" {
		t.Errorf("after Sync the backend would keep %q; want %q", got, "later")
	}
}

func TestFailedBackendSyncIsTriedAgain(t *testing.T) {
	b := newStub(4096)
	cause := errors.New("no")
	fail := true
	b.onSync = func(context.Context) error {
		if fail {
			return cause
		}
		return nil
	}
	p := open(t, b, quiet)
	write(t, p, 7, []byte("x"))
	if err := p.Sync(t.Context()); !errors.Is(err, cause) {
		t.Fatal(err)
	}
	fail = false
	if err := p.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.syncs.Load() != 2 || b.synced[7] != 'x' {
		t.Errorf("%d syncs; want the second to reach the backend though nothing was dirty", b.syncs.Load())
	}
	if err := p.Sync(t.Context()); err != nil || b.syncs.Load() != 2 {
		t.Errorf("a Sync with nothing written asked the backend again (%d syncs, %v)", b.syncs.Load(), err)
	}
}

// A backend whose Sync fails may have dropped what was pushed to it before, as a
// kernel does after a failed fsync.
func TestWhatAFailedSyncDroppedIsPushedAgain(t *testing.T) {
	for _, cause := range []error{errors.New("EIO"), region.ErrLost} {
		b := newStub(3 * 4096)
		failed := 0
		b.onSync = func(context.Context) error {
			if failed++; failed == 1 {
				b.mu.Lock()
				copy(b.mem, b.synced)
				b.mu.Unlock()
				return cause
			}
			return nil
		}
		p := open(t, b, quiet)
		write(t, p, 5000, []byte("precious"))
		err := p.Sync(t.Context())
		if lost := errors.Is(cause, region.ErrLost); lost != (err == nil) {
			t.Errorf("after %v, Sync = %v; want a second try if and only if the backend restarted", cause, err)
		}
		if err := p.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := string(b.synced[5000:5008]); got != "precious" {
			t.Errorf("after %v and a Sync that returned nil the backend has %q", cause, got)
		}
	}
}

func TestWholeChunkWritesFetchNothing(t *testing.T) {
	b := newStub(4*4096 + 10)
	p := open(t, b, quiet)
	write(t, p, 4096, make([]byte, 2*4096))
	write(t, p, 4*4096, make([]byte, 10)) // the short last chunk, whole
	if n := b.reads.Load(); n != 0 {
		t.Errorf("%d fetches; want none", n)
	}
	if p.Stats().Local != 3 {
		t.Errorf("%d chunks local; want 3", p.Stats().Local)
	}
}

func TestPartialWriteKeepsTheRestOfTheChunk(t *testing.T) {
	b := newStub(2*4096 + 17)
	want := b.bytes()
	p := open(t, b, quiet)
	copy(want[4000:], "0123456789012345678901234567890123456789"+string(make([]byte, 80)))
	write(t, p, 4000, want[4000:4120])
	if got := readBack(t, p); !bytes.Equal(got, want) {
		t.Error("wrong bytes around a partial write")
	}
}

func TestSmallReadDoesNotWaitForItsChunk(t *testing.T) {
	b := newStub(256 << 10)
	chunk, release := make(chan struct{}), make(chan struct{})
	b.onRead = func(_ context.Context, _, n int64) error {
		if n == 64<<10 {
			close(chunk)
			<-release
		}
		return nil
	}
	o := quiet
	o.ChunkSize = 64 << 10
	p := open(t, b, o)
	got := make([]byte, 4096)
	if _, err := p.ReadAt(t.Context(), got, 70_000); err != nil || !bytes.Equal(got, b.mem[70_000:74_096]) {
		t.Fatalf("a small read: %v", err)
	}
	<-chunk // is fetched all the same
	close(release)
	if err := p.Ensure(t.Context(), 70_000, 1); err != nil {
		t.Fatal(err)
	}
	if n := b.reads.Load(); n != 2 {
		t.Errorf("%d reads of the backend; want the peek and the chunk", n)
	}
	if _, err := p.ReadAt(t.Context(), got, 80_000); err != nil || b.reads.Load() != 2 {
		t.Errorf("a read of a local chunk: %v after %d reads of the backend", err, b.reads.Load())
	}
	if v, err := p.View(t.Context(), 130_000, 100_000); err != nil || !bytes.Equal(v, b.mem[130_000:230_000]) {
		t.Errorf("a view of two absent chunks: %v", err)
	}
}

func TestOverwriteWaitsForTheFetchInFlight(t *testing.T) {
	b := newStub(4096)
	entered, release := make(chan struct{}), make(chan struct{})
	b.onRead = func(context.Context, int64, int64) error { close(entered); <-release; return nil }
	p := open(t, b, quiet)
	read := make(chan error, 1)
	go func() { read <- p.Ensure(context.Background(), 0, 1) }()
	<-entered
	want := bytes.Repeat([]byte{7}, 4096)
	wrote := make(chan error, 1)
	go func() { _, err := p.WriteAt(context.Background(), want, 0); wrote <- err }()
	close(release)
	if err := errors.Join(<-read, <-wrote); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readBack(t, p), want) {
		t.Error("the fetch overwrote the write")
	}
}

func TestBackgroundPullBringsEverythingTheLastPartialChunkToo(t *testing.T) {
	for _, size := range []int64{1, 4095, 4096, 4097, 16*4096 + 1} {
		b := newStub(size)
		o := quiet
		o.Pull = PullOptions{First: true, Workers: 3}
		p := open(t, b, o)
		if s := p.Stats(); s.Local != s.Chunks || !s.PullDone || s.FetchedBytes != size {
			t.Errorf("size %d: %+v; want everything local", size, s)
		}
		if !bytes.Equal(readBack(t, p), b.mem) {
			t.Errorf("size %d: wrong bytes", size)
		}
	}
}

func TestPullOrder(t *testing.T) {
	b := newStub(8 * 4096)
	var mu sync.Mutex
	var got []int64
	b.onRead = func(_ context.Context, off, n int64) error {
		mu.Lock()
		defer mu.Unlock()
		for o := off; o < off+n; o += 4096 {
			got = append(got, o/4096)
		}
		return nil
	}
	o := quiet
	o.Pull = PullOptions{First: true, Workers: 1,
		Ranges: []region.Range{{Off: 5 * 4096, Len: 1}, {Off: 7*4096 + 5, Len: 1 << 40}},
		Before: func(a, b region.ChunkIndex) bool { return a > b }}
	open(t, b, o)
	if want := []int64{5, 7, 6, 4, 3, 2, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("pulled %v; want %v", got, want)
	}
}

// r3map's A4: several failing pull workers deadlocked, and nothing was retried.
func TestBackgroundPullSurvivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStub(64 * 4096)
		var fails atomic.Int64
		b.onRead = func(context.Context, int64, int64) error {
			if fails.Add(1) <= 20 {
				return backend.ErrUnavailable
			}
			return nil
		}
		o := quiet
		o.ChunkSize = 4096
		o.Pull = PullOptions{Workers: 8}
		o.Logger = testkit.Logger(t)
		p, err := Open(t.Context(), b, o)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // fake time
		if s := p.Stats(); !s.PullDone || s.FetchErrors == 0 {
			t.Errorf("%+v; want a finished pull that met errors", s)
		}
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestPullFirstReportsItsError(t *testing.T) {
	b := newStub(64 * 4096)
	cause := errors.New("gone")
	b.onRead = func(context.Context, int64, int64) error { return cause }
	o := quiet
	o.Pull = PullOptions{First: true}
	if _, err := Open(t.Context(), b, o); !errors.Is(err, cause) {
		t.Fatalf("Open = %v; want the pull's error", err)
	}
}

type sparse struct {
	*stub
	data region.Range
}

func (s sparse) NextData(_ context.Context, off int64) (region.Range, error) {
	if off >= s.data.End() {
		return region.Range{}, io.EOF
	}
	return s.data.Intersect(region.Range{Off: off, Len: s.Size()}), nil
}

func TestPullSkipsHoles(t *testing.T) {
	b := sparse{newStub(1000 * 4096), region.Range{Off: 500*4096 + 100, Len: 3 * 4096}}
	clear(b.mem[:b.data.Off])
	clear(b.mem[b.data.End():])
	o := quiet
	o.Pull = PullOptions{First: true}
	p := open(t, b, o)
	if s := p.Stats(); s.Local != 1000 || s.FetchedBytes > 5*4096 {
		t.Errorf("%d chunks local after fetching %d bytes; want 1000 after at most 5 chunks", s.Local, s.FetchedBytes)
	}
	if !bytes.Equal(readBack(t, p), b.mem) {
		t.Error("wrong bytes")
	}
}

func TestBackgroundPushWorksAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStub(8 * 4096)
		var fails atomic.Int64
		b.onWrite = func(context.Context, int64, int64) error {
			if fails.Add(1) <= 3 {
				return backend.ErrUnavailable
			}
			return nil
		}
		o := quiet
		o.Push = PushOptions{Interval: time.Second}
		o.Logger = testkit.Logger(t)
		p, err := Open(t.Context(), b, o)
		if err != nil {
			t.Fatal(err)
		}
		write(t, p, 4000, make([]byte, 200))
		time.Sleep(time.Minute) // fake time
		if fails.Load() < 4 || p.Stats().Dirty != 0 || !bytes.Equal(b.bytes()[4000:4200], make([]byte, 200)) {
			t.Errorf("after a minute %d chunks are dirty, %d pushes were tried", p.Stats().Dirty, fails.Load())
		}
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsReadersThatWait(t *testing.T) {
	b := newStub(4096)
	entered := make(chan struct{})
	b.onRead = func(ctx context.Context, _, _ int64) error { close(entered); <-ctx.Done(); return ctx.Err() }
	p := open(t, b, quiet)
	read := make(chan error, 1)
	go func() { _, err := p.ReadAt(context.Background(), make([]byte, 1), 0); read <- err }()
	<-entered
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, region.ErrClosed) {
		t.Errorf("the reader got %v; want ErrClosed", err)
	}
	for name, err := range map[string]error{
		"ReadAt":  second(p.ReadAt(t.Context(), make([]byte, 1), 0)),
		"WriteAt": second(p.WriteAt(t.Context(), make([]byte, 1), 0)),
		"Sync":    p.Sync(t.Context()),
		"Ensure":  p.Ensure(t.Context(), 0, 1),
	} {
		if !errors.Is(err, region.ErrClosed) {
			t.Errorf("%s after Close = %v; want ErrClosed", name, err)
		}
	}
	if err := p.Close(context.Background()); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func second(_ int, err error) error { return err }

func TestCloseMakesWritesDurableAndReportsFailure(t *testing.T) {
	b := newStub(4096)
	p := open(t, b, quiet)
	write(t, p, 9, []byte("kept"))
	if err := p.Close(context.Background()); err != nil || string(b.synced[9:13]) != "kept" {
		t.Errorf("Close = %v, backend has %q", err, b.synced[9:13])
	}
	cause := errors.New("refused")
	b.onWrite = func(context.Context, int64, int64) error { return cause }
	p = open(t, b, quiet)
	write(t, p, 9, []byte("lost"))
	if err := p.Close(context.Background()); !errors.Is(err, cause) {
		t.Errorf("Close = %v; want the push's error", err)
	}
}

func TestBadArguments(t *testing.T) {
	b := newStub(100)
	p := open(t, b, quiet)
	ctx := t.Context()
	for _, x := range []struct{ off, n int64 }{{-1, 1}, {101, 0}, {100, 1}, {1 << 62, 10}, {-1 << 63, 1}, {99, 2}} {
		if err := second(p.WriteAt(ctx, make([]byte, x.n), x.off)); !errors.Is(err, region.ErrOutOfRange) {
			t.Errorf("WriteAt(off=%d, len=%d) = %v; want ErrOutOfRange", x.off, x.n, err)
		}
		if err := p.Ensure(ctx, x.off, x.n); !errors.Is(err, region.ErrOutOfRange) {
			t.Errorf("Ensure(off=%d, n=%d) = %v; want ErrOutOfRange", x.off, x.n, err)
		}
	}
	if n, err := p.ReadAt(ctx, make([]byte, 10), 95); n != 5 || err != io.EOF {
		t.Errorf("a read across the end = %d, %v; want 5, EOF", n, err)
	}
	if n, err := p.ReadAt(ctx, make([]byte, 10), 100); n != 0 || err != io.EOF {
		t.Errorf("a read at the end = %d, %v; want 0, EOF", n, err)
	}
	if _, err := p.ReadAt(ctx, nil, -5); !errors.Is(err, region.ErrOutOfRange) {
		t.Errorf("a read before the start = %v; want ErrOutOfRange", err)
	}
	for name, o := range map[string]Options{
		"chunk":   {ChunkSize: 5000},
		"workers": {Pull: PullOptions{Workers: -1}},
		"push":    {Push: PushOptions{Workers: -1}},
		"first":   {Pull: PullOptions{Off: true, First: true}},
	} {
		if _, err := Open(ctx, b, o); err == nil {
			t.Errorf("%s: Open accepted %+v", name, o)
		}
	}
	ro := quiet
	ro.ReadOnly = true
	r := open(t, b, ro)
	if err := second(r.WriteAt(ctx, []byte{1}, 0)); !errors.Is(err, region.ErrReadOnly) {
		t.Errorf("write to a read-only pager = %v", err)
	}
}

func TestHooks(t *testing.T) {
	b := newStub(4 * 4096)
	var calls []string
	var mu sync.Mutex
	note := func(s string) { mu.Lock(); defer mu.Unlock(); calls = append(calls, s) }
	refused := errors.New("not now")
	var refuse bool
	o := quiet
	o.Hooks = Hooks{
		BeforeSync: func(context.Context) error {
			note("sync")
			if refuse {
				return refused
			}
			return nil
		},
		BeforeClose: func(context.Context) error { note("close"); return refused },
		ChunkLocal:  func(r region.Range) { note(r.String()) },
	}
	p := open(t, b, o)
	if err := p.Ensure(t.Context(), 4096, 1); err != nil {
		t.Fatal(err)
	}
	write(t, p, 8192, make([]byte, 4096))
	refuse = true
	if err := p.Sync(t.Context()); !errors.Is(err, refused) {
		t.Errorf("Sync = %v; want the hook's error", err)
	}
	refuse = false
	if err := p.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Close(context.Background()); !errors.Is(err, refused) {
		t.Errorf("Close = %v; want the hook's error", err)
	}
	p.work.Wait()
	want := []string{"[4096,8192)", "[8192,12288)", "sync", "sync", "close", "sync"}
	if !slices.Equal(calls, want) {
		t.Errorf("hooks ran %q; want %q", calls, want)
	}
}

func TestHooksMayWrite(t *testing.T) {
	b := newStub(8192)
	o := quiet
	var p *Pager
	o.Hooks.BeforeSync = func(ctx context.Context) error {
		_, err := p.WriteAt(ctx, []byte("held back"), 5000) // a partial chunk: it is fetched
		return err
	}
	o.Hooks.BeforeClose = func(ctx context.Context) error {
		_, err := p.WriteAt(ctx, []byte("last"), 100)
		return err
	}
	p = open(t, b, o)
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := string(b.synced[5000:5009]) + string(b.synced[100:104]); got != "held backlast" {
		t.Errorf("the backend has %q", got)
	}
}

func TestHitsAllocateNothing(t *testing.T) {
	b := newStub(1 << 20)
	o := quiet
	o.ChunkSize = 64 << 10
	p := open(t, b, o)
	if err := p.Ensure(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := p.ReadAt(ctx, buf, 70000); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WriteAt(ctx, buf, 70000); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("a read and a write of local chunks made %v allocations; want at most the write's closure", n)
	}
}

// TestModel compares random operations with a plain slice, with writers, the
// pushers, the pullers and failures all at work, and then the backend with it.
func TestModel(t *testing.T) {
	for _, dir := range []bool{false, true} {
		r := testkit.Rand(t)
		b := newStub(30*4096 + 1234)
		var injected atomic.Int64
		var quietNow atomic.Bool
		inject := func(context.Context, int64, int64) error {
			if !quietNow.Load() && rand.N(10) == 0 {
				injected.Add(1)
				return backend.ErrUnavailable
			}
			return nil
		}
		b.onRead, b.onWrite = inject, inject
		model := b.bytes()
		o := Options{ChunkSize: 4096, Pull: PullOptions{Workers: 2}, Push: PushOptions{Interval: time.Millisecond, Workers: 2}}
		if dir {
			o.Dir = t.TempDir()
		}
		p := open(t, b, o)
		for range 3000 {
			off := r.Int64N(b.Size())
			n := min(1+r.Int64N(3*4096), b.Size()-off)
			buf := make([]byte, n)
			switch op := r.IntN(10); {
			case op < 5:
				if _, err := p.ReadAt(t.Context(), buf, off); errors.Is(err, backend.ErrUnavailable) {
					continue
				} else if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf, model[off:off+n]) {
					t.Fatalf("read [%d,%d) differs from the model", off, off+n)
				}
			case op < 9:
				for i := range buf {
					buf[i] = byte(r.Uint32())
				}
				k, err := p.WriteAt(t.Context(), buf, off)
				if err != nil && !errors.Is(err, backend.ErrUnavailable) {
					t.Fatal(err)
				}
				copy(model[off:], buf[:k])
			case r.IntN(4) == 0:
				if err := p.Zero(t.Context(), off, n); errors.Is(err, backend.ErrUnavailable) {
					// How much was zeroed is not said: read what is there now.
					quietNow.Store(true)
					if _, err := p.ReadAt(t.Context(), model[off:off+n], off); err != nil {
						t.Fatal(err)
					}
					quietNow.Store(false)
				} else if err != nil {
					t.Fatal(err)
				} else {
					clear(model[off : off+n])
				}
			default:
				if err := p.Sync(t.Context()); err == nil {
					if !bytes.Equal(b.bytes(), model) {
						t.Fatal("after Sync the backend differs from the model")
					}
				} else if !errors.Is(err, backend.ErrUnavailable) {
					t.Fatal(err)
				}
			}
		}
		quietNow.Store(true)
		if err := p.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.synced, model) {
			t.Error("after Close the backend differs from the model")
		}
		if injected.Load() == 0 {
			t.Error("no failure was ever injected")
		}
	}
}
