package tcp

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/telemap/telemap/transport"
)

// within bounds what a test waits for.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// await receives from c or fails the test.
func await[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-within(t).Done():
		t.Fatalf("still waiting for %s", what)
		panic("unreachable")
	}
}

// until waits for a condition that no channel tells.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := within(t); !ok(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("still waiting until %s", what)
		}
	}
}

// hooked is a region that does what before says first.
type hooked struct {
	before func(ctx context.Context, op string, off int64) error

	mu   sync.Mutex
	data []byte
}

func newHooked(size int) *hooked { return &hooked{data: make([]byte, size)} }

func (r *hooked) hook(ctx context.Context, op string, off int64) error {
	if r.before == nil {
		return nil
	}
	return r.before(ctx, op, off)
}

func (r *hooked) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.hook(ctx, "read", off); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return copy(p, r.data[off:]), nil
}

func (r *hooked) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.hook(ctx, "write", off); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return copy(r.data[off:], p), nil
}

func (r *hooked) Sync(ctx context.Context) error { return r.hook(ctx, "sync", 0) }
func (r *hooked) Size() int64                    { return int64(len(r.data)) }
func (r *hooked) Close() error                   { return nil }

func (r *hooked) at(off, n int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.data[off : off+n])
}

// A stall holds operations that reach a region.
type stall struct {
	entered, left chan string
	release       chan struct{}
	deaf          bool // to the context
}

// newStall makes one that the test has to end before its servers can.
func newStall() *stall {
	return &stall{entered: make(chan string, 1000), left: make(chan string, 1000), release: make(chan struct{})}
}

func (s *stall) end() {
	select {
	case <-s.release:
	default:
		close(s.release)
	}
}

func (s *stall) hold(ctx context.Context, op string, _ int64) error {
	defer func() { s.left <- op }()
	s.entered <- op
	done := ctx.Done()
	if s.deaf {
		done = nil
	}
	select {
	case <-done:
		return ctx.Err()
	case <-s.release:
		return nil
	}
}

func only(r transport.Region) transport.Exports {
	return transport.Exports{{Region: r, Info: transport.Info{Name: "r", Size: r.Size()}}}
}

func open(t testing.TB, s *Session, name string) transport.Region {
	t.Helper()
	r, _, err := s.Open(within(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// logs keeps what was logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// fake is a server that does with each connection what handle says. The
// connection is closed when that returns and when the test ends.
func fake(t testing.TB, handle func(net.Conn)) string {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	over := false
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			if over {
				c.Close()
			}
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		over = true
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// welcomed greets a client as a server does and reports whether that worked.
func welcomed(c net.Conn) bool {
	if _, err := io.ReadFull(c, make([]byte, helloLen)); err != nil {
		return false
	}
	_, err := c.Write(welcome{version: version, payload: maxPayload, inflight: maxInFlight}.encode())
	return err == nil
}

// receive reads one frame.
func receive(c io.Reader) (h header, body []byte, err error) {
	var b [headerLen]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return h, nil, err
	}
	h.get(&b)
	body = make([]byte, h.length)
	_, err = io.ReadFull(c, body)
	return h, body, err
}

// transmit writes one frame whose length is that of body.
func transmit(c net.Conn, h header, body []byte) error {
	h.length = uint32(len(body))
	return new(frame).write(c, &h, body)
}

// fakeRegions answers opens of a region of size bytes and hands everything else
// but pings to handle, until that returns false.
func fakeRegions(c net.Conn, size int64, handle func(h header, body []byte) bool) {
	if !welcomed(c) {
		return
	}
	for {
		h, body, err := receive(c)
		if err != nil {
			return
		}
		switch h.op {
		case opOpen:
			err = transmit(c, h, appendInfo(nil, transport.Info{Name: "r", Size: size}))
		case opPing:
			err = transmit(c, h, nil)
		case opCancel, opClose:
		default:
			if !handle(h, body) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// A raw is a client that may say anything.
type raw struct {
	t testing.TB
	net.Conn
}

// rawDial connects and is let in.
func rawDial(t testing.TB, addr string) raw {
	t.Helper()
	r := rawConnect(t, addr)
	h := hello{version: version, payload: maxPayload, generation: 1}
	rand.Read(h.session[:])
	if _, err := r.Write(h.encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := readWelcome(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func rawConnect(t testing.TB, addr string) raw {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(15 * time.Second))
	return raw{t, c}
}

func (r raw) send(h header, body []byte) {
	r.t.Helper()
	if err := transmit(r, h, body); err != nil {
		r.t.Fatal(err)
	}
}

// ask sends a request and returns its reply.
func (r raw) ask(h header, body []byte) (header, []byte) {
	r.t.Helper()
	r.send(h, body)
	got, body, err := receive(r)
	if err != nil {
		r.t.Fatal(err)
	}
	if got.id != h.id {
		r.t.Fatalf("reply to request %d; want to %d", got.id, h.id)
	}
	return got, body
}

func (r raw) open(name string) {
	r.t.Helper()
	if h, body := r.ask(header{op: opOpen, id: 1 << 40, handle: 1}, []byte(name)); h.code != ok {
		r.t.Fatalf("open: %v", decodeError(h.code, string(body)))
	}
}

// closed wants the server to hang up.
func (r raw) closed() {
	r.t.Helper()
	if _, err := io.Copy(io.Discard, r); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		r.t.Fatalf("the server did not hang up: %v", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// A proxy stands between client and server, and breaks.
type proxy struct {
	addr string
	mu   sync.Mutex
	open []net.Conn
	to   string // empty: nobody is let through
	all  sync.WaitGroup
}

func newProxy(t testing.TB, to string) *proxy {
	p := &proxy{to: to}
	l := listen(t, "127.0.0.1:0")
	p.addr = l.Addr().String()
	p.all.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			to := p.to
			p.mu.Unlock()
			b, err := net.Dial("tcp", to)
			if to == "" || err != nil {
				a.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, a, b)
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
		l.Close()
		p.cut()
		p.all.Wait()
	})
	return p
}

// cut breaks the connections there are.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
	p.open = nil
}

// point lets later connections through to the server at to.
func (p *proxy) point(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
}

// A running server can be stopped before the test ends.
type running struct {
	addr string
	stop func() error
}

func start(t testing.TB, s *Server) running {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stop() })
	return running{l.Addr().String(), stop}
}

func wantErr(t testing.TB, what string, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s = %v; want %v", what, err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s = %v; want %q in it", what, err, text)
		}
	}
}

var _ transport.Region = (*hooked)(nil)
