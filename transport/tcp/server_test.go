package tcp

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

func TestRequestsThatCannotBe(t *testing.T) {
	const size = 5000
	vec := func(v ...int64) (b []byte) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint64(b, uint64(x))
		}
		return b
	}
	addr := serve(t, "tcp", NewServer(only(newHooked(size)), ServerOptions{}))
	c := rawDial(t, addr)
	c.open("r")
	for _, x := range []struct {
		name string
		h    header
		body []byte
		want error
	}{
		{"unknown op", header{op: 200, handle: 1}, nil, errors.ErrUnsupported},
		{"op zero", header{handle: 1}, nil, errors.ErrUnsupported},
		{"unknown handle", header{op: opRead, handle: 77, n: 1}, nil, region.ErrBadRequest},
		{"negative read", header{op: opRead, handle: 1, n: -1}, nil, region.ErrBadRequest},
		{"least read", header{op: opRead, handle: 1, n: math.MinInt64}, nil, region.ErrBadRequest},
		{"huge read", header{op: opRead, handle: 1, n: math.MaxInt64}, nil, region.ErrBadRequest},
		{"read behind the end", header{op: opRead, handle: 1, off: size - 1, n: 2}, nil, region.ErrOutOfRange},
		{"read at a negative offset", header{op: opRead, handle: 1, off: -1, n: 2}, nil, region.ErrOutOfRange},
		{"read at the last offset", header{op: opRead, handle: 1, off: math.MaxInt64, n: 2}, nil, region.ErrOutOfRange},
		{"write behind the end", header{op: opWrite, handle: 1, off: size}, []byte{1}, region.ErrOutOfRange},
		{"write at a negative offset", header{op: opWrite, handle: 1, off: math.MinInt64}, []byte{1}, region.ErrOutOfRange},
		{"zero of negative length", header{op: opZero, handle: 1, n: -1}, nil, region.ErrOutOfRange},
		{"zero that overflows", header{op: opZero, handle: 1, off: 1, n: math.MaxInt64}, nil, region.ErrOutOfRange},
		{"discard behind the end", header{op: opDiscard, handle: 1, off: size, n: 1}, nil, region.ErrOutOfRange},
		{"data at a negative offset", header{op: opNextData, handle: 1, off: -1}, nil, region.ErrOutOfRange},
		{"data behind the end", header{op: opNextData, handle: 1, off: size + 1}, nil, region.ErrOutOfRange},
		{"name too long", header{op: opOpen, handle: 2}, make([]byte, transport.MaxName+1), region.ErrBadRequest},
		{"name of 4 MiB", header{op: opOpen, handle: 2}, make([]byte, maxPayload), region.ErrBadRequest},
		{"name unknown", header{op: opOpen, handle: 2}, []byte("x\x00\xff"), region.ErrNotFound},
		{"half a range", header{op: opReadVec, handle: 1, n: 10}, make([]byte, vecLen-1), region.ErrBadRequest},
		{"too many ranges", header{op: opReadVec, handle: 1, n: 10}, make([]byte, vecLen*(maxVecs+1)), region.ErrBadRequest},
		{"more than announced", header{op: opReadVec, handle: 1, n: 3}, vec(0, 2, 0, 2), region.ErrBadRequest},
		{"negative total", header{op: opReadVec, handle: 1, n: -1}, vec(0, 2), region.ErrBadRequest},
		{"negative range", header{op: opReadVec, handle: 1, n: 10}, vec(0, -1), region.ErrOutOfRange},
		{"range behind the end", header{op: opReadVec, handle: 1, n: 10}, vec(size, 1), region.ErrOutOfRange},
		{"range that overflows", header{op: opReadVec, handle: 1, n: 10}, vec(1, math.MaxInt64), region.ErrOutOfRange},
	} {
		x.h.id = 9
		h, text := c.ask(x.h, x.body)
		if err := decodeError(h.code, string(text)); !errors.Is(err, x.want) || h.n != 0 {
			t.Errorf("%s = %v after %d bytes; want %v", x.name, err, h.n, x.want)
		}
	}
	if h, got := c.ask(header{op: opRead, id: 10, handle: 1, n: size}, nil); h.code != ok || len(got) != size {
		t.Errorf("a right request after all that = code %d, %d bytes", h.code, len(got))
	}
}

func TestFramesThatEndTheConnection(t *testing.T) {
	st := newStall()
	defer st.end()
	r := newHooked(5000)
	r.before = func(ctx context.Context, op string, off int64) error {
		if off == 1 {
			return st.hold(ctx, op, off)
		}
		return nil
	}
	addr := serve(t, "tcp", NewServer(only(r), ServerOptions{}))
	frameOf := func(h header) []byte {
		var b [headerLen]byte
		h.put(&b)
		return b[:]
	}
	for name, said := range map[string][]byte{
		"a payload of 4 GiB":   frameOf(header{op: opWrite, handle: 1, length: math.MaxUint32}),
		"a payload too long":   frameOf(header{op: opWrite, handle: 1, length: maxPayload + 1}),
		"a ping with payload":  frameOf(header{op: opPing, length: 1}),
		"a cancel with one":    frameOf(header{op: opCancel, length: 1}),
		"a close with one":     frameOf(header{op: opClose, length: 1}),
		"two requests, one id": append(frameOf(header{op: opRead, id: 4, handle: 1, off: 1, n: 1}), frameOf(header{op: opSync, id: 4, handle: 1})...),
	} {
		t.Run(name, func(t *testing.T) {
			c := rawDial(t, addr)
			c.open("r")
			if _, err := c.Write(said); err != nil {
				t.Fatal(err)
			}
			c.closed()
		})
	}
	for name, said := range map[string][]byte{
		"a header cut short":  frameOf(header{op: opRead, handle: 1, n: 1})[:17],
		"a payload cut short": append(frameOf(header{op: opWrite, handle: 1, length: 100}), 1, 2, 3),
	} {
		t.Run(name, func(t *testing.T) {
			c := rawDial(t, addr)
			c.open("r")
			c.Write(said)
			c.Conn.(*net.TCPConn).CloseWrite()
			c.closed()
		})
	}
}

func TestAnnouncedBytesAreNotAllocated(t *testing.T) {
	addr := serve(t, "tcp", NewServer(only(newHooked(5000)), ServerOptions{}))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const peers = 20
	for range peers {
		c := rawDial(t, addr)
		var b [headerLen]byte
		(&header{op: opWrite, handle: 1, length: math.MaxUint32}).put(&b)
		c.Write(b[:])
		c.closed()
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > peers*(256<<10) {
		t.Errorf("%d peers that announced 4 GiB made the process allocate %d KiB", peers, got>>10)
	}
}

func TestOpensBoundPerConnection(t *testing.T) {
	c := rawDial(t, serve(t, "tcp", NewServer(only(newHooked(100)), ServerOptions{})))
	for i := range maxRegions {
		if h, _ := c.ask(header{op: opOpen, id: 5, handle: uint32(i)}, []byte("r")); h.code != ok {
			t.Fatalf("open number %d = code %d", i, h.code)
		}
	}
	if h, _ := c.ask(header{op: opOpen, id: 5, handle: maxRegions}, []byte("r")); h.code != badRequest {
		t.Errorf("open number %d = code %d; want %d", maxRegions+1, h.code, badRequest)
	}
	c.send(header{op: opClose, handle: 3}, nil)
	if h, _ := c.ask(header{op: opOpen, id: 5, handle: maxRegions}, []byte("r")); h.code != ok {
		t.Errorf("open after a close = code %d; want ok", h.code)
	}
}

func TestRequestsBehindAnOpenWaitForIt(t *testing.T) {
	st := newStall()
	defer st.end()
	r := newHooked(100)
	r.data[7] = 42
	c := rawDial(t, serve(t, "tcp", NewServer(slowCatalog{only(r), st}, ServerOptions{})))
	c.send(header{op: opOpen, id: 1, handle: 1}, []byte("r"))
	await(t, "the look-up", st.entered)
	c.send(header{op: opRead, id: 2, handle: 1, off: 7, n: 1}, nil)
	if h, _ := c.ask(header{op: opPing, id: 3}, nil); h.code != ok { // comes first
		t.Fatalf("ping = code %d", h.code)
	}
	st.end()
	for range 2 {
		h, body, err := receive(c)
		if err != nil || h.code != ok || h.id == 2 && (len(body) != 1 || body[0] != 42) {
			t.Errorf("reply %d = code %d, %v, %v", h.id, h.code, body, err)
		}
	}
}

// slowCatalog stalls when regions are looked up.
type slowCatalog struct {
	transport.Exports
	st *stall
}

func (c slowCatalog) Lookup(ctx context.Context, name string) (transport.Export, error) {
	if err := c.st.hold(ctx, "lookup", 0); err != nil {
		return transport.Export{}, err
	}
	return c.Exports.Lookup(ctx, name)
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		n    int64
		most int64
	}{
		"by number": {1, maxInFlight},
		"by bytes":  {maxPayload, clientBytes / maxPayload},
	} {
		t.Run(name, func(t *testing.T) {
			st := newStall()
			defer st.end()
			r := newHooked(maxPayload)
			r.before = st.hold
			srv := NewServer(only(r), ServerOptions{Grace: time.Millisecond})
			s := start(t, srv)
			conn := rawDial(t, s.addr)
			conn.open("r")
			const asked = 200
			for i := range asked {
				conn.send(header{op: opRead, id: uint64(i + 1), handle: 1, n: c.n}, nil)
			}
			for range c.most {
				await(t, "requests up to the limit", st.entered)
			}
			select {
			case <-st.entered:
				t.Error("one request more than the limit reached the region")
			case <-time.After(20 * time.Millisecond): // for what must not happen
			}
			if got := srv.Stats().InFlight; got != c.most {
				t.Errorf("InFlight = %d; want %d", got, c.most)
			}
			if name == "by number" {
				st.end()
				for range asked {
					if h, _, err := receive(conn); err != nil || h.code != ok {
						t.Fatalf("reply = code %d, %v", h.code, err)
					}
				}
				return
			}
			// The end of Serve does not wait behind the limit either.
			ended := make(chan error, 1)
			go func() { ended <- s.stop() }()
			if err := await(t, "Serve with a connection at its limit", ended); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClientThatNeverReadsIsDropped(t *testing.T) {
	srv := NewServer(only(newHooked(maxPayload)), ServerOptions{IdleTimeout: 50 * time.Millisecond})
	c := rawDial(t, serve(t, "tcp", srv))
	c.open("r")
	for i := range maxInFlight {
		if transmit(c, header{op: opRead, id: uint64(i + 1), handle: 1, n: 1 << 20}, nil) != nil {
			break
		}
	}
	until(t, "the connection is gone", func() bool {
		n := srv.Stats()
		return n.Connections == 0 && n.InFlight == 0
	})
}

func TestSilentClientIsDropped(t *testing.T) {
	c := rawDial(t, serve(t, "tcp", NewServer(only(newHooked(100)), ServerOptions{IdleTimeout: 50 * time.Millisecond})))
	c.closed()
}

func TestHalfClosedConnectionIsOver(t *testing.T) {
	st := newStall()
	defer st.end()
	r := newHooked(100)
	r.before = st.hold
	c := rawDial(t, serve(t, "tcp", NewServer(only(r), ServerOptions{})))
	c.open("r")
	c.send(header{op: opRead, id: 1, handle: 1, n: 1}, nil)
	await(t, "a request to reach the region", st.entered)
	c.Conn.(*net.TCPConn).CloseWrite()
	await(t, "the request to be cancelled", st.left)
	c.closed()
}

func TestServeLetsRequestsFinish(t *testing.T) {
	st := newStall()
	defer st.end()
	r := newHooked(100)
	r.data[5] = 9
	r.before = st.hold
	srv := NewServer(only(r), ServerOptions{})
	s := start(t, srv)
	c := rawDial(t, s.addr)
	c.open("r")
	c.send(header{op: opRead, id: 1, handle: 1, off: 5, n: 1}, nil)
	await(t, "a request to reach the region", st.entered)
	ended := make(chan error, 1)
	go func() { ended <- s.stop() }()
	until(t, "the server refuses connections", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case <-ended:
		t.Error("Serve returned with a request in flight")
	default:
	}
	st.end()
	if h, body, err := receive(c); err != nil || h.code != ok || len(body) != 1 || body[0] != 9 {
		t.Errorf("the request in flight = code %d, %v, %v; want its byte", h.code, body, err)
	}
	if err := await(t, "Serve", ended); err != nil {
		t.Error(err)
	}
}

func TestServeCutsRequestsAfterTheGrace(t *testing.T) {
	st := newStall()
	defer st.end()
	r := newHooked(maxPayload)
	r.before = func(ctx context.Context, op string, off int64) error {
		if off == 1 {
			return st.hold(ctx, op, off)
		}
		return nil
	}
	s := start(t, NewServer(only(r), ServerOptions{Grace: 20 * time.Millisecond}))
	c := rawDial(t, s.addr)
	c.open("r")
	c.send(header{op: opRead, id: 1, handle: 1, off: 1, n: 1}, nil)
	await(t, "a request to reach the region", st.entered)
	for i := range 60 { // replies that nobody reads hold it up no longer
		c.send(header{op: opRead, id: uint64(i + 2), handle: 1, n: 1 << 20}, nil)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.stop() }()
	await(t, "the request to be cancelled", st.left)
	if err := await(t, "Serve", ended); err != nil {
		t.Error(err)
	}
	for { // no reply says that the server has cancelled what the client has not
		h, _, err := receive(c)
		if err != nil {
			break
		}
		if h.code != ok {
			t.Errorf("reply %d = code %d", h.id, h.code)
		}
	}
}

func TestErrorTextsArriveClean(t *testing.T) {
	r := newHooked(100)
	r.before = func(context.Context, string, int64) error {
		return errors.New("bad\r\nlevel=ERROR \x1b[31m\u2028\u202e" + strings.Repeat("x", 5000))
	}
	got := open(t, dial(t, serve(t, "tcp", NewServer(only(r), ServerOptions{})), Options{}), "r").Sync(within(t))
	if got == nil || strings.ContainsAny(got.Error(), "\r\n\x1b\u2028\u202e") || len(got.Error()) > maxText {
		t.Errorf("Sync() = %q; want a clean text of at most %d bytes", got, maxText)
	}
}

func TestRegionsThatPanic(t *testing.T) {
	r := newHooked(100)
	r.before = func(context.Context, string, int64) error { panic("at the disco") }
	s := dial(t, serve(t, "tcp", NewServer(only(r), ServerOptions{})), Options{})
	if err := open(t, s, "r").Sync(within(t)); err == nil || strings.Contains(err.Error(), "disco") {
		t.Errorf("Sync() = %v; want an error that does not tell the panic", err)
	}
	if _, err := s.List(within(t)); err != nil {
		t.Error(err)
	}
}

// liarWrites claims to have written n bytes of whatever it is given.
type liarWrites struct {
	*hooked
	n int
}

func (l liarWrites) WriteAt(context.Context, []byte, int64) (int, error) { return l.n, nil }

func TestZeroOfARegionThatLies(t *testing.T) {
	for _, n := range []int{0, -1, 5, 1 << 30} {
		s := dial(t, serve(t, "tcp", NewServer(only(liarWrites{newHooked(5000), n}), ServerOptions{})), Options{})
		r := open(t, s, "r").(*Region)
		if err := r.Zero(within(t), 0, 5000); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Zero, of which the storage says it did %d bytes = %v; want an error", n, err)
		}
	}
}

func TestServeReportsAListenerThatFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := NewServer(only(newHooked(100)), ServerOptions{}).Serve(within(t), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve = %v; want %v", err, net.ErrClosed)
	}
}
