package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/transporttest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// within bounds what a test waits for.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func memory(t testing.TB, size int64) backend.Backend {
	t.Helper()
	b := mem.New(size)
	t.Cleanup(func() { b.Close() })
	return b
}

func only(r transport.Region) transport.Exports {
	return transport.Exports{{Region: r, Info: transport.Info{Name: "r", Size: r.Size()}}}
}

// A running server can be stopped and started again at the same address.
type running struct {
	t    testing.TB
	s    *Server
	addr string
	stop func()
}

func listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t testing.TB, c transport.Catalog, o ServerOptions) *running {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	r := &running{t: t, s: NewServer(c, o), addr: l.Addr().String()}
	r.start(l)
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *running) start(l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.s.Serve(ctx, l) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Serve() = %v after its context ended; want nil", err)
		}
	})
}

func dial(t testing.TB, target string, o Options) *Session {
	t.Helper()
	s, err := Dial(t.Context(), target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func open(t testing.TB, s *Session, name string) backend.Backend {
	t.Helper()
	r, _, err := s.Open(t.Context(), name)
	if err != nil {
		t.Fatalf("Open(%q) = %v", name, err)
	}
	return r
}

// A small payload makes most operations cross the boundary between messages.
func TestConformanceOfRegions(t *testing.T) {
	if raceDetector {
		t.Skip("TestConformance and TestConformanceR3map go the same ways, and the three take too long together")
	}
	o := Options{MaxPayload: 16 << 10}
	backendtest.Suite{
		Ops: 25,
		Open: func(t *testing.T, size int64) backend.Backend {
			return open(t, dial(t, serve(t, only(memory(t, size)), ServerOptions{}).addr, o), "r")
		},
		ReadOnly: func(t *testing.T, content []byte) backend.Backend {
			b := memory(t, int64(len(content)))
			if _, err := b.WriteAt(t.Context(), content, 0); err != nil {
				t.Fatal(err)
			}
			c := only(b)
			c[0].Info.ReadOnly = true
			return open(t, dial(t, serve(t, c, ServerOptions{}).addr, o), "")
		},
	}.Run(t)
}

func TestConformanceR3map(t *testing.T) {
	backendtest.Suite{Ops: 25, Open: func(t *testing.T, size int64) backend.Backend {
		r, err := DialR3map(t.Context(), serve(t, only(memory(t, size)), ServerOptions{}).addr, size, Options{MaxPayload: 8 << 10})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}}.Run(t)
}

func TestUnixSocketAndLargeOperations(t *testing.T) {
	ctx := within(t)
	const size = 9<<20 + 1
	path := filepath.Join(t.TempDir(), "s")
	l := listen(t, "unix", path)
	r := &running{t: t, s: NewServer(only(memory(t, size)), ServerOptions{MaxInFlight: 5 << 20})}
	r.start(l)
	defer r.stop()
	b := open(t, dial(t, "unix://"+path, Options{MaxPayload: 4 << 20}), "")
	want, got := make([]byte, size), make([]byte, size)
	testkit.Pattern(want, 0, 1)
	if n, err := b.WriteAt(ctx, want, 0); n != size || err != nil {
		t.Fatalf("WriteAt of 9 MiB = %d, %v", n, err)
	}
	if n, err := b.ReadAt(ctx, got, 0); n != size || err != nil {
		t.Fatalf("ReadAt of 9 MiB = %d, %v", n, err)
	}
	if string(got) != string(want) {
		t.Error("other bytes came back")
	}
	clear(got)
	v := []backend.Vec{{P: got[:5<<20], Off: 0}, {P: got[5<<20 : 5<<20], Off: size}, {P: got[5<<20:], Off: 5 << 20}}
	if err := backend.ReadVec(ctx, b, v); err != nil || string(got) != string(want) {
		t.Errorf("ReadVec of 9 MiB = %v, or other bytes", err)
	}
	b.Close()
	r.stop()
	if !r.s.inFlight.TryAcquire(5 << 20) {
		t.Error("bytes in flight were not given back")
	}
}

func TestListSeveralMessages(t *testing.T) {
	var c transport.Exports
	b := memory(t, 5)
	for i := range 3*listBatch + 1 {
		c = append(c, transport.Export{Region: b, Info: transport.Info{Name: fmt.Sprintf("%0255d", i), Size: 5, ChunkSize: 4096}})
	}
	s := dial(t, serve(t, c, ServerOptions{}).addr, Options{})
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != len(c) {
		t.Fatalf("List() = %d regions, %v; want %d", len(infos), err, len(c))
	}
	for i := range infos {
		if infos[i] != c[i].Info {
			t.Fatalf("List()[%d] = %+v; want %+v", i, infos[i], c[i].Info)
		}
	}
	if _, _, err := s.Open(t.Context(), ""); !errors.Is(err, region.ErrNotFound) {
		t.Errorf("Open of one of many without a name = %v; want ErrNotFound", err)
	}
	if _, _, err := s.Open(t.Context(), "\xff"); !errors.Is(err, region.ErrNotFound) {
		t.Errorf("Open of a name that is no UTF-8 = %v; want ErrNotFound", err)
	}
}

// A failing region answers everything with one error.
type failing struct {
	transport.Region
	err error
}

func (f failing) ReadAt(context.Context, []byte, int64) (int, error)  { return 0, f.err }
func (f failing) WriteAt(context.Context, []byte, int64) (int, error) { return 0, f.err }
func (f failing) Sync(context.Context) error                          { return f.err }

func TestErrorsKeepTheirIdentity(t *testing.T) {
	b := memory(t, 4096)
	for _, want := range []error{
		region.ErrClosed, region.ErrOutOfRange, region.ErrReadOnly, region.ErrNotFound, region.ErrFenced,
		region.ErrNoSpace, region.ErrUnavailable, region.ErrBadRequest, errors.ErrUnsupported,
		context.Canceled, context.DeadlineExceeded,
	} {
		t.Run(want.Error(), func(t *testing.T) {
			r := open(t, dial(t, serve(t, only(failing{b, fmt.Errorf("the disk: %w", want)}), ServerOptions{}).addr, Options{}), "")
			_, read := r.ReadAt(t.Context(), make([]byte, 3), 0)
			_, write := r.WriteAt(t.Context(), make([]byte, 3), 0)
			for op, err := range map[string]error{"read": read, "write": write, "sync": r.Sync(t.Context())} {
				if !errors.Is(err, want) {
					t.Errorf("%s = %v; want one that is %q", op, err, want)
				}
				for _, r := range reasons {
					if r.err != want && errors.Is(err, r.err) {
						t.Errorf("%s = %v, which is also %q", op, err, r.err)
					}
				}
			}
		})
	}
}

func TestErrorWithoutSentinel(t *testing.T) {
	long := make([]byte, 100<<10)
	for i := range long {
		long[i] = 0xfe
	}
	for _, text := range []string{"disk on fire", string(long)} {
		s := dial(t, serve(t, only(failing{memory(t, 8), errors.New(text)}), ServerOptions{}).addr, Options{RetryBudget: -1})
		if err := open(t, s, "").Sync(t.Context()); err == nil || errors.Is(err, region.ErrUnavailable) {
			t.Errorf("Sync() = %v; want the server's error", err)
		}
	}
}

// Panicking regions must not take the server with them.
type panicking struct{ transport.Region }

func (panicking) ReadAt(context.Context, []byte, int64) (int, error) { panic("bug") }

func TestPanicOfARegionIsAnError(t *testing.T) {
	r := serve(t, only(panicking{memory(t, 8192)}), ServerOptions{})
	b := open(t, dial(t, r.addr, Options{}), "")
	if _, err := b.ReadAt(t.Context(), make([]byte, 8000), 0); err == nil {
		t.Error("ReadAt succeeded on a region that panics")
	}
	if _, err := b.WriteAt(t.Context(), []byte("x"), 0); err != nil {
		t.Errorf("WriteAt after a panic = %v", err)
	}
	if !r.s.inFlight.TryAcquire(r.s.o.MaxInFlight) {
		t.Error("a panic keeps bytes in flight")
	}
}

// A held region stops in each operation until it is let go, deaf to contexts,
// and keeps a log of the writes.
type held struct {
	transport.Region
	entered chan context.Context
	leave   chan struct{}
	once    bool            // only the first operation
	over    context.Context // lets everybody go when the test has failed

	mu  sync.Mutex
	n   int
	log []string
}

func hold(t *testing.T, r transport.Region, once bool) *held {
	return &held{Region: r, over: t.Context(), entered: make(chan context.Context, 100), leave: make(chan struct{}), once: once}
}

func (h *held) wait(ctx context.Context) {
	h.mu.Lock()
	h.n++
	first := h.n == 1
	h.mu.Unlock()
	if first || !h.once {
		h.entered <- ctx
		select {
		case <-h.leave:
		case <-h.over.Done():
		}
	}
}

func (h *held) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *held) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if len(p) > 0 {
		h.wait(ctx)
	}
	return h.Region.ReadAt(context.WithoutCancel(ctx), p, off)
}

func (h *held) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.note("begin %s", p)
	h.wait(ctx)
	n, err := h.Region.WriteAt(context.WithoutCancel(ctx), p, off)
	h.note("end %s", p)
	return n, err
}

func wait[T any](t *testing.T, ctx context.Context, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-ctx.Done():
		t.Fatalf("%s: did not happen in time", what)
		panic("unreachable")
	}
}

// A proxy forwards connections that a test can cut.
type proxy struct {
	l    net.Listener
	mu   sync.Mutex
	open map[net.Conn]bool
	all  sync.WaitGroup
}

func newProxy(t *testing.T, to string) *proxy {
	p := &proxy{l: listen(t, "tcp", "127.0.0.1:0"), open: map[net.Conn]bool{}}
	p.all.Go(func() {
		for {
			a, err := p.l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			p.mu.Lock()
			p.open[a], p.open[b] = true, true
			p.mu.Unlock()
			for _, x := range [][2]net.Conn{{a, b}, {b, a}} {
				p.all.Go(func() {
					// Not by splice(2), whose pipes outlive the copying.
					io.Copy(struct{ io.Writer }{x[0]}, struct{ io.Reader }{x[1]})
					x[0].Close()
					x[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		p.l.Close()
		p.cut()
		p.all.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
	clear(p.open)
}

func TestRetriedWriteIsNotOvertakenByItself(t *testing.T) {
	ctx := within(t)
	h := hold(t, memory(t, 16), true)
	r := serve(t, only(h), ServerOptions{})
	waits := make(chan struct{}, 10)
	r.s.sessions.waits = func() { waits <- struct{}{} }
	p := newProxy(t, r.addr)
	b := open(t, dial(t, p.addr(), Options{}), "")

	old := make(chan error, 1)
	go func() {
		_, err := b.WriteAt(ctx, []byte("old"), 0)
		old <- err
	}()
	wait(t, ctx, "first copy of the write", h.entered)
	p.cut()
	wait(t, ctx, "second copy, waiting for the first", waits)
	if len(old) > 0 {
		t.Fatal("the write was acknowledged while its first copy was still at work")
	}
	h.leave <- struct{}{}
	if err := wait(t, ctx, "the write", old); err != nil {
		t.Fatalf("WriteAt across a lost connection = %v", err)
	}
	if _, err := b.WriteAt(ctx, []byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := b.ReadAt(ctx, got, 0); string(got) != "new" || err != nil {
		t.Errorf("ReadAt = %q, %v; want what was written last", got, err)
	}
	if want := "[begin old end old begin old end old begin new end new]"; fmt.Sprint(h.log) != want {
		t.Errorf("the region saw %v; want %s", h.log, want)
	}
}

func TestCancelledWriteDoesNotOverwriteItsSuccessor(t *testing.T) {
	ctx := within(t)
	h := hold(t, memory(t, 16), true)
	r := serve(t, only(h), ServerOptions{})
	waits := make(chan struct{}, 10)
	r.s.sessions.waits = func() { waits <- struct{}{} }
	b := open(t, dial(t, r.addr, Options{}), "")

	giveUp, cancel := context.WithCancel(ctx)
	old := make(chan error, 1)
	go func() {
		_, err := b.WriteAt(giveUp, []byte("old"), 0)
		old <- err
	}()
	inServer := wait(t, ctx, "the write", h.entered)
	cancel()
	if err := wait(t, ctx, "the cancelled write", old); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled WriteAt = %v", err)
	}
	wait(t, ctx, "cancellation in the server", inServer.Done())
	newer := make(chan error, 1)
	go func() {
		_, err := b.WriteAt(ctx, []byte("new"), 0)
		newer <- err
	}()
	wait(t, ctx, "the next write, waiting for the cancelled one", waits)
	h.leave <- struct{}{}
	if err := wait(t, ctx, "the next write", newer); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := b.ReadAt(ctx, got, 0); string(got) != "new" || err != nil {
		t.Errorf("ReadAt = %q, %v; want what was written last", got, err)
	}
}

func TestWritesGoOnBesideAFailedOne(t *testing.T) {
	ctx := within(t)
	b := open(t, dial(t, serve(t, only(memory(t, 1<<20)), ServerOptions{}).addr, Options{}), "")
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 100 {
				c, cancel := context.WithCancel(ctx)
				if i == 0 { // this one raises the generation all the time
					go cancel()
				}
				_, err := b.WriteAt(c, []byte("12345678"), int64(i*100+j)*8)
				cancel()
				if err != nil && (i != 0 || !errors.Is(err, context.Canceled)) {
					t.Errorf("WriteAt = %v", err)
				}
			}
		})
	}
	all.Wait()
}

func TestServerRestart(t *testing.T) {
	ctx := within(t)
	r := serve(t, only(memory(t, 16)), ServerOptions{})
	s := dial(t, r.addr, Options{})
	b := open(t, s, "")
	if _, err := b.WriteAt(ctx, []byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	r.stop()
	done := make(chan error, 3)
	go func() { _, err := b.ReadAt(ctx, make([]byte, 4), 0); done <- err }()
	go func() { _, err := b.WriteAt(ctx, []byte("two"), 4); done <- err }()
	go func() { _, err := s.List(ctx); done <- err }()
	again := &running{t: t, s: NewServer(r.s.catalog, ServerOptions{})} // knows no sessions
	again.start(listen(t, "tcp", r.addr))
	defer again.stop()
	for range cap(done) {
		if err := wait(t, ctx, "operation across a restart", done); err != nil {
			t.Errorf("operation across a restart = %v", err)
		}
	}
	// The first server took "one": the second cannot make it durable.
	if err := b.Sync(ctx); !errors.Is(err, region.ErrLost) {
		t.Errorf("Sync after a restart = %v; want ErrLost", err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Errorf("the next Sync = %v; the loss is told once", err)
	}
	s.Close()
}

func TestServerIsGone(t *testing.T) {
	ctx := within(t)
	for budget, atLeast := range map[time.Duration]time.Duration{-1: 0, 50 * time.Millisecond: 50 * time.Millisecond} {
		r := serve(t, only(memory(t, 16)), ServerOptions{})
		s := dial(t, r.addr, Options{RetryBudget: budget})
		b := open(t, s, "")
		r.stop()
		began := time.Now()
		_, read := b.ReadAt(ctx, make([]byte, 4), 0)
		if took := time.Since(began); took < atLeast || took > atLeast+5*time.Second {
			t.Errorf("a budget of %v was over after %v", budget, took)
		}
		_, write := b.WriteAt(ctx, make([]byte, 4), 0)
		_, list := s.List(ctx)
		for op, err := range map[string]error{"read": read, "write": write, "list": list} {
			if !errors.Is(err, region.ErrUnavailable) {
				t.Errorf("%s without a server = %v; want ErrUnavailable", op, err)
			}
		}
		s.Close()
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	l.Close()
	if _, err := Dial(ctx, l.Addr().String(), Options{}); !errors.Is(err, region.ErrUnavailable) {
		t.Errorf("Dial without a server = %v; want ErrUnavailable", err)
	}
	if _, err := DialR3map(ctx, l.Addr().String(), 1, Options{}); !errors.Is(err, region.ErrUnavailable) {
		t.Errorf("DialR3map without a server = %v; want ErrUnavailable", err)
	}
}

func TestCancelWhileTheServerIsGone(t *testing.T) {
	r := serve(t, only(memory(t, 16)), ServerOptions{})
	s := dial(t, r.addr, Options{})
	b := open(t, s, "")
	r.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.WriteAt(ctx, make([]byte, 4), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WriteAt = %v; want DeadlineExceeded", err)
	}
	done := make(chan error, 1)
	go func() { _, err := b.ReadAt(t.Context(), make([]byte, 4), 0); done <- err }()
	s.Close()
	if err := wait(t, within(t), "read after Close", done); !errors.Is(err, region.ErrClosed) {
		t.Errorf("ReadAt in a closed session = %v; want ErrClosed", err)
	}
}

func TestForgottenSessionAttachesAgain(t *testing.T) {
	ctx := within(t)
	r := serve(t, only(memory(t, 16)), ServerOptions{})
	r.s.sessions.max = 1
	one, two := dial(t, r.addr, Options{}), dial(t, r.addr, Options{})
	a, b := open(t, one, ""), open(t, two, "")
	for i := range 5 {
		for _, x := range []backend.Backend{a, b} {
			if _, err := x.WriteAt(ctx, []byte{byte(i)}, 0); err != nil {
				t.Fatalf("WriteAt of a forgotten session = %v", err)
			}
		}
	}
}

func TestCloseEndsCallsInFlight(t *testing.T) {
	ctx := within(t)
	h := hold(t, memory(t, 16), false)
	r := serve(t, only(h), ServerOptions{})
	s := dial(t, r.addr, Options{})
	b := open(t, s, "")
	done := make(chan error, 2)
	go func() { _, err := b.ReadAt(ctx, make([]byte, 4), 0); done <- err }()
	go func() { _, err := b.WriteAt(ctx, make([]byte, 4), 0); done <- err }()
	wait(t, ctx, "call", h.entered)
	wait(t, ctx, "call", h.entered)
	if err := s.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	for range 2 {
		if err := wait(t, ctx, "call in flight", done); !errors.Is(err, region.ErrClosed) {
			t.Errorf("call in flight = %v; want ErrClosed", err)
		}
	}
	if _, _, err := s.Open(ctx, ""); !errors.Is(err, region.ErrClosed) {
		t.Errorf("Open after Close = %v; want ErrClosed", err)
	}
	if _, err := s.List(ctx); !errors.Is(err, region.ErrClosed) {
		t.Errorf("List after Close = %v; want ErrClosed", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close() = %v", err)
	}
	close(h.leave)
}

func TestServeLetsRequestsFinish(t *testing.T) {
	ctx := within(t)
	h := hold(t, memory(t, 16), true)
	r := serve(t, only(h), ServerOptions{Grace: time.Hour})
	b := open(t, dial(t, r.addr, Options{RetryBudget: -1}), "")
	done := make(chan error, 1)
	go func() { _, err := b.ReadAt(ctx, make([]byte, 4), 0); done <- err }()
	wait(t, ctx, "read", h.entered)
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	h.leave <- struct{}{}
	if err := wait(t, ctx, "read in flight", done); err != nil {
		t.Errorf("read in flight while the server stops = %v; want nil", err)
	}
	wait(t, ctx, "Serve", stopped)
}

func TestServeCutsRequestsAfterTheGrace(t *testing.T) {
	ctx := within(t)
	h := hold(t, memory(t, 16), true)
	r := serve(t, only(h), ServerOptions{Grace: time.Millisecond})
	b := open(t, dial(t, r.addr, Options{RetryBudget: -1}), "")
	done := make(chan error, 1)
	go func() { _, err := b.ReadAt(ctx, make([]byte, 4), 0); done <- err }()
	inServer := wait(t, ctx, "read", h.entered)
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	if err := wait(t, ctx, "read that is cut", done); !errors.Is(err, region.ErrUnavailable) {
		t.Errorf("read that was cut = %v; want ErrUnavailable", err)
	}
	wait(t, ctx, "cancellation in the server", inServer.Done())
	select {
	case <-stopped:
		t.Error("Serve returned while a handler was running")
	default:
	}
	h.leave <- struct{}{}
	wait(t, ctx, "Serve", stopped)
}

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t *testing.T, c transport.Catalog) transport.Session {
		return dial(t, serve(t, c, ServerOptions{}).addr, Options{})
	})
}
