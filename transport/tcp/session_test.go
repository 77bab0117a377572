package tcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

func TestOptionsThatCannotBe(t *testing.T) {
	for _, o := range []Options{{Conns: -1}, {DialTimeout: -1}, {RetryBudget: -1}, {KeepAlive: -1}} {
		if _, err := Dial(within(t), "127.0.0.1:1", o); err == nil || !strings.Contains(err.Error(), "negative") {
			t.Errorf("Dial with %+v = %v; want an error that says negative", o, err)
		}
	}
}

func TestDialTellsAtOnceThatNobodyListens(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	l.Close()
	if _, err := Dial(within(t), l.Addr().String(), Options{}); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Dial = %v; want an error with the address", err)
	}
}

func TestReadsResumeWhenTheServerReturns(t *testing.T) {
	st := newStall()
	defer st.end()
	r := newHooked(5000)
	r.data[4000] = 77
	r.before = st.hold
	first := start(t, NewServer(only(r), ServerOptions{Grace: time.Millisecond}))
	p := newProxy(t, first.addr)
	s := dial(t, p.addr, Options{})
	reg := open(t, s, "r")
	got := make(chan error, 8)
	for range cap(got) {
		go func() {
			b := make([]byte, 1)
			_, err := reg.ReadAt(within(t), b, 4000)
			if err == nil && b[0] != 77 {
				err = fmt.Errorf("read %d", b[0])
			}
			got <- err
		}()
	}
	for range cap(got) {
		await(t, "reads to reach the region", st.entered)
	}
	first.stop()
	again := newHooked(5000)
	again.data[4000] = 77
	p.point(start(t, NewServer(only(again), ServerOptions{})).addr)
	for range cap(got) {
		if err := await(t, "a read that resumes", got); err != nil {
			t.Error(err)
		}
	}
	if n := s.Stats(); n.Reconnects == 0 || n.Resent < int64(cap(got)) {
		t.Errorf("Stats() = %+v; want reconnects and at least %d requests sent again", n, cap(got))
	}
}

func TestServerAwayForLongerThanTheBudget(t *testing.T) {
	first := start(t, NewServer(only(newHooked(5000)), ServerOptions{}))
	s := dial(t, first.addr, Options{RetryBudget: 300 * time.Millisecond})
	reg := open(t, s, "r")
	first.stop()
	_, err := reg.ReadAt(within(t), make([]byte, 10), 0)
	wantErr(t, "ReadAt", err, region.ErrUnavailable, "refused")
	_, err = reg.WriteAt(within(t), make([]byte, 10), 0)
	wantErr(t, "WriteAt", err, region.ErrUnavailable)
	_, _, err = s.Open(within(t), "r")
	wantErr(t, "Open", err, region.ErrUnavailable)
}

func TestBudgetEndsDuringATry(t *testing.T) {
	p := newProxy(t, start(t, NewServer(only(newHooked(5000)), ServerOptions{})).addr)
	s := dial(t, p.addr, Options{RetryBudget: 30 * time.Millisecond, DialTimeout: time.Hour})
	reg := open(t, s, "r")
	p.point(fake(t, func(c net.Conn) { io.Copy(io.Discard, c) })) // never answers
	p.cut()
	wantErr(t, "Sync", reg.Sync(within(t)), region.ErrUnavailable)
}

func TestRegionOfAnotherSizeIsLost(t *testing.T) {
	cat := func(size int) transport.Exports {
		a, b := newHooked(size), newHooked(77)
		return transport.Exports{{Region: a, Info: transport.Info{Name: "a"}}, {Region: b, Info: transport.Info{Name: "b"}}}
	}
	first := start(t, NewServer(cat(5000), ServerOptions{}))
	p := newProxy(t, first.addr)
	s := dial(t, p.addr, Options{})
	a, b := open(t, s, "a"), open(t, s, "b")
	other := cat(6000)
	p.point(start(t, NewServer(other, ServerOptions{})).addr)
	first.stop()
	for range 10 { // on either connection
		_, err := a.WriteAt(within(t), []byte{1}, 0)
		if err == nil || errors.Is(err, region.ErrUnavailable) || !strings.Contains(err.Error(), `"a" had 5000 bytes and now has 6000`) {
			t.Fatalf("WriteAt to a region that has changed = %v; want an error that says so", err)
		}
		if _, err := b.ReadAt(within(t), make([]byte, 10), 0); err != nil {
			t.Fatalf("ReadAt of a region that has not changed = %v; want nil", err)
		}
	}
	if other[0].Region.(*hooked).at(0, 1)[0] != 0 {
		t.Error("a write reached a region that is another one")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if r := open(t, s, "a"); r.Size() != 6000 {
		t.Errorf("opened anew it has %d bytes; want 6000", r.Size())
	}
}

func TestRegionThatIsMissing(t *testing.T) {
	first := start(t, NewServer(only(newHooked(5000)), ServerOptions{}))
	p := newProxy(t, first.addr)
	s := dial(t, p.addr, Options{RetryBudget: 300 * time.Millisecond})
	reg := open(t, s, "r")
	empty := start(t, NewServer(transport.Exports{}, ServerOptions{}))
	p.point(empty.addr)
	first.stop()
	wantErr(t, "Sync", reg.Sync(within(t)), region.ErrUnavailable, `open "r" again`)
	wantErr(t, "Sync", reg.Sync(within(t)), region.ErrNotFound)
	p.point(start(t, NewServer(only(newHooked(5000)), ServerOptions{})).addr)
	empty.stop()
	until(t, "the region is back", func() bool { return reg.Sync(within(t)) == nil })
}

func TestWriteSentAgainWaitsForItsEarlierCopy(t *testing.T) {
	st := newStall()
	defer st.end()
	st.deaf = true
	r := newHooked(100)
	var running, most atomic.Int32
	r.before = func(ctx context.Context, op string, off int64) error {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer running.Add(-1)
		return st.hold(ctx, op, off)
	}
	p := newProxy(t, start(t, NewServer(only(r), ServerOptions{})).addr)
	s := dial(t, p.addr, Options{Conns: 1})
	reg := open(t, s, "r")
	done := make(chan error, 1)
	go func() {
		_, err := reg.WriteAt(within(t), []byte{5}, 9)
		done <- err
	}()
	await(t, "the write to reach the region", st.entered)
	p.cut()
	select {
	case <-st.entered:
		t.Error("the write reached the region again while its earlier copy was being carried out")
	case <-time.After(60 * time.Millisecond): // for what must not happen
	}
	st.end()
	if err := await(t, "the write", done); err != nil {
		t.Error(err)
	}
	await(t, "the write to reach the region again", st.entered)
	if n := s.Stats(); n.Reconnects != 1 || n.Resent != 1 {
		t.Errorf("Stats() = %+v; want one reconnect and one request sent again", n)
	}
	if most.Load() != 1 || r.at(9, 1)[0] != 5 {
		t.Errorf("%d copies at a time, byte %d; want 1 and 5", most.Load(), r.at(9, 1)[0])
	}
}

// TestGivenUpWritesNeverLandOnLaterOnes holds one write on each connection in
// the server, breaks them and gives the writes up: a later write must not reach
// the region before both old ones are over.
func TestGivenUpWritesNeverLandOnLaterOnes(t *testing.T) {
	for name, budget := range map[string]time.Duration{"by context": time.Minute, "by budget": 40 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			var stalls [2]*stall
			for i := range stalls {
				stalls[i] = newStall()
				stalls[i].deaf = true
				defer stalls[i].end()
			}
			r := newHooked(100)
			var old, overtaken, order atomic.Int32
			r.before = func(ctx context.Context, op string, off int64) error {
				i := int(order.Add(1) - 1)
				if i >= len(stalls) {
					overtaken.Add(old.Load())
					return nil
				}
				old.Add(1)
				defer old.Add(-1)
				return stalls[i].hold(ctx, op, off)
			}
			p := newProxy(t, start(t, NewServer(only(r), ServerOptions{HandshakeTimeout: 20 * time.Millisecond})).addr)
			s := dial(t, p.addr, Options{RetryBudget: budget})
			reg := open(t, s, "r")
			until(t, "both connections stand", func() bool { return s.Stats().Connections == 2 })
			var gone [2]chan error
			var giveUp [2]context.CancelFunc
			for i := range gone {
				ctx, cancel := context.WithCancel(within(t))
				defer cancel()
				gone[i], giveUp[i] = make(chan error, 1), cancel
				go func() {
					_, err := reg.WriteAt(ctx, []byte{byte(i + 1)}, 9)
					gone[i] <- err
				}()
				await(t, "writes to reach the region", stalls[i].entered)
			}
			p.cut()
			until(t, "the connections are gone", func() bool { return s.Stats().Connections == 0 })
			for i := range gone {
				want := region.ErrUnavailable
				if name == "by context" {
					giveUp[i]()
					want = context.Canceled
				}
				wantErr(t, "WriteAt", await(t, "the writes to be given up", gone[i]), want)
			}
			later := make(chan error, 1)
			go func() {
				for {
					_, err := reg.WriteAt(within(t), []byte{99}, 9)
					if !errors.Is(err, region.ErrUnavailable) {
						later <- err
						return
					}
				}
			}()
			for i := len(stalls) - 1; i >= 0; i-- { // the last one ends first
				select {
				case err := <-later:
					t.Errorf("a later write = %v while %d old ones were being carried out", err, i+1)
				case <-time.After(100 * time.Millisecond): // for what must not happen
				}
				stalls[i].end()
			}
			if err := await(t, "the later write", later); err != nil {
				t.Error(err)
			}
			if n := overtaken.Load(); n != 0 {
				t.Errorf("a later write reached the region beside %d old ones", n)
			}
			if b := r.at(9, 1)[0]; b != 99 {
				t.Errorf("the byte is %d; want the later write's 99", b)
			}
			if n := s.Stats(); n.Reconnects == 0 {
				t.Errorf("Stats() = %+v; want reconnects", n)
			}
		})
	}
}

func TestSilentServerIsGivenUp(t *testing.T) {
	var dead atomic.Bool
	dead.Store(true)
	addr := fake(t, func(c net.Conn) {
		fakeRegions(c, 100, func(h header, _ []byte) bool {
			if dead.Swap(false) {
				io.Copy(io.Discard, c)
				return false
			}
			return transmit(c, h, make([]byte, h.n)) == nil
		})
	})
	s := dial(t, addr, Options{Conns: 1, KeepAlive: 50 * time.Millisecond})
	if _, err := open(t, s, "r").ReadAt(within(t), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
	if n := s.Stats(); n.Reconnects == 0 || n.Resent == 0 {
		t.Errorf("Stats() = %+v; want a reconnect and a request sent again", n)
	}
}

func TestBusyServerIsNotTakenForDead(t *testing.T) {
	st := newStall()
	defer st.end()
	st.deaf = true
	r := newHooked(8 << 10)
	r.before = st.hold
	s := dial(t, serve(t, "tcp", NewServer(only(r), ServerOptions{})), Options{Conns: 1, KeepAlive: 100 * time.Millisecond})
	reg := open(t, s, "r")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	done := make(chan error, maxInFlight)
	for i := range maxInFlight {
		go func() {
			var err error
			if i%2 == 0 {
				_, err = reg.ReadAt(ctx, make([]byte, 4<<10), 0)
			} else {
				_, err = reg.WriteAt(ctx, make([]byte, 4<<10), 0)
			}
			done <- err
		}()
	}
	for range maxInFlight {
		await(t, "requests to reach the region", st.entered)
	}
	// More than the server takes at a time, also when some are given up here and
	// go on there.
	cancel()
	for range maxInFlight / 2 {
		wantErr(t, "a read that was given up", await(t, "reads to be given up", done), context.Canceled)
	}
	more := make(chan error, maxInFlight)
	for range maxInFlight {
		go func() { more <- reg.Sync(within(t)) }()
	}
	select {
	case <-more:
		t.Error("a request was answered by a server that is busy")
	case <-time.After(500 * time.Millisecond): // more than what ends a silent connection
	}
	st.end()
	for range maxInFlight {
		if err := await(t, "the requests", more); err != nil {
			t.Error(err)
		}
	}
	if n := s.Stats(); n.Reconnects != 0 || n.Connections != 1 {
		t.Errorf("Stats() = %+v; want the first connection", n)
	}
}

func TestGivenUpRequestsCountUntilAnswered(t *testing.T) {
	st := newStall()
	defer st.end()
	st.deaf = true
	r := newHooked(100)
	r.before = st.hold
	s := dial(t, serve(t, "tcp", NewServer(only(r), ServerOptions{})), Options{Conns: 1})
	reg := open(t, s, "r")
	ctx, cancel := context.WithCancel(within(t))
	var all sync.WaitGroup
	for range maxInFlight {
		all.Go(func() { reg.ReadAt(ctx, make([]byte, 1), 0) })
		await(t, "reads to reach the region", st.entered)
	}
	cancel()
	all.Wait()
	short, stop := context.WithTimeout(within(t), 20*time.Millisecond)
	defer stop()
	wantErr(t, "one more", reg.Sync(short), context.DeadlineExceeded)
	st.end()
	for range 3 * maxInFlight { // no token is lost
		if err := reg.Sync(within(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSlowReplyIsNotSilence(t *testing.T) {
	const keepAlive = 100 * time.Millisecond
	want := bytes.Repeat([]byte{1, 2, 3}, 15) // which takes 450 ms
	addr := fake(t, func(c net.Conn) {
		fakeRegions(c, 100, func(h header, _ []byte) bool {
			h.length = uint32(h.n)
			var b [headerLen]byte
			h.put(&b)
			c.Write(b[:])
			tick := time.NewTicker(keepAlive / 10)
			defer tick.Stop()
			for i := range want {
				<-tick.C
				c.Write(want[i : i+1])
			}
			return true
		})
	})
	s := dial(t, addr, Options{Conns: 1, KeepAlive: keepAlive})
	got := make([]byte, len(want))
	if _, err := open(t, s, "r").ReadAt(within(t), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt = %v, %v; want %v", got, err, want)
	}
	if n := s.Stats().Reconnects; n != 0 {
		t.Errorf("Reconnects = %d; want 0", n)
	}
}

func TestRepliesThatCannotBe(t *testing.T) {
	const size = 1000
	read := func(ctx context.Context, r *Region) error {
		_, err := r.ReadAt(ctx, make([]byte, 10), 0)
		return err
	}
	write := func(ctx context.Context, r *Region) error {
		_, err := r.WriteAt(ctx, make([]byte, 10), 0)
		return err
	}
	next := func(ctx context.Context, r *Region) error {
		_, err := r.NextData(ctx, 100)
		return err
	}
	for name, c := range map[string]struct {
		do    func(ctx context.Context, r *Region) error
		reply func(c net.Conn, h header) error
	}{
		"too much":           {read, func(c net.Conn, h header) error { return transmit(c, h, make([]byte, 11)) }},
		"too little":         {read, func(c net.Conn, h header) error { return transmit(c, h, make([]byte, 9)) }},
		"bytes for a write":  {write, func(c net.Conn, h header) error { return transmit(c, h, make([]byte, 10)) }},
		"part is negative":   {read, func(c net.Conn, h header) error { h.code, h.n = failed, -1; return transmit(c, h, nil) }},
		"part is absent":     {read, func(c net.Conn, h header) error { h.code, h.n = failed, 5; return transmit(c, h, nil) }},
		"part is more":       {read, func(c net.Conn, h header) error { h.code, h.n = failed, 11; return transmit(c, h, make([]byte, 11)) }},
		"part of write":      {write, func(c net.Conn, h header) error { h.code, h.n = failed, math.MaxInt64; return transmit(c, h, nil) }},
		"endless text":       {write, func(c net.Conn, h header) error { h.code, h.n = failed, 0; return transmit(c, h, make([]byte, 1<<20)) }},
		"data before offset": {next, func(c net.Conn, h header) error { h.off, h.n = 99, 10; return transmit(c, h, nil) }},
		"data behind end":    {next, func(c net.Conn, h header) error { h.off, h.n = 999, 2; return transmit(c, h, nil) }},
		"data of no length":  {next, func(c net.Conn, h header) error { h.off, h.n = 200, 0; return transmit(c, h, nil) }},
		"data that overflow": {next, func(c net.Conn, h header) error { h.off, h.n = 200, math.MaxInt64; return transmit(c, h, nil) }},
		"data of min int":    {next, func(c net.Conn, h header) error { h.off, h.n = 200, math.MinInt64; return transmit(c, h, nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			addr := fake(t, func(conn net.Conn) {
				fakeRegions(conn, size, func(h header, _ []byte) bool { return c.reply(conn, h) == nil })
			})
			s := dial(t, addr, Options{})
			wantErr(t, "the request", c.do(within(t), open(t, s, "r").(*Region)), ErrProtocol)
		})
	}
}

func TestDescriptionsThatCannotBe(t *testing.T) {
	good := appendInfo(nil, transport.Info{Name: "r", Size: 100, ChunkSize: 4096})
	for name, body := range map[string][]byte{
		"empty":          {},
		"cut short":      good[:len(good)-1],
		"no size":        appendInfo(nil, transport.Info{Name: "r"}),
		"negative size":  appendInfo(nil, transport.Info{Name: "r", Size: -1}),
		"odd chunk size": appendInfo(nil, transport.Info{Name: "r", Size: 1, ChunkSize: 100}),
		"negative chunk": appendInfo(nil, transport.Info{Name: "r", Size: 1, ChunkSize: math.MinInt64}),
	} {
		t.Run(name, func(t *testing.T) {
			addr := fake(t, func(c net.Conn) {
				if !welcomed(c) {
					return
				}
				for {
					h, _, err := receive(c)
					if err != nil || h.op != opCancel && transmit(c, h, body) != nil {
						return
					}
				}
			})
			s := dial(t, addr, Options{})
			_, _, err := s.Open(within(t), "r")
			wantErr(t, "Open", err, ErrProtocol)
			if name != "empty" {
				_, err = s.List(within(t))
				wantErr(t, "List", err, ErrProtocol)
			}
		})
	}
}

func TestReplyThatIsTooLongEndsTheConnection(t *testing.T) {
	var tries atomic.Int32
	addr := fake(t, func(c net.Conn) {
		fakeRegions(c, 100, func(h header, _ []byte) bool {
			if tries.Add(1) > 1 {
				return transmit(c, h, make([]byte, h.n)) == nil
			}
			h.length = math.MaxUint32
			var b [headerLen]byte
			h.put(&b)
			c.Write(b[:])
			return true
		})
	})
	s := dial(t, addr, Options{Conns: 1})
	if _, err := open(t, s, "r").ReadAt(within(t), make([]byte, 10), 0); err != nil || s.Stats().Reconnects != 1 {
		t.Errorf("ReadAt = %v, %d reconnects; want nil, 1", err, s.Stats().Reconnects)
	}
}

func TestRepliesNobodyAskedForAreIgnored(t *testing.T) {
	addr := fake(t, func(c net.Conn) {
		fakeRegions(c, 100, func(h header, _ []byte) bool {
			stray := h
			stray.id += 1000
			transmit(c, stray, make([]byte, 5000))
			transmit(c, h, make([]byte, h.n))
			return transmit(c, h, make([]byte, h.n)) == nil // twice
		})
	})
	s := dial(t, addr, Options{Conns: 1})
	r := open(t, s, "r")
	for range 5 {
		if _, err := r.ReadAt(within(t), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Stats().Reconnects; n != 0 {
		t.Errorf("Reconnects = %d; want 0", n)
	}
}

func TestRequestThatBreaksEveryConnectionIsGivenUp(t *testing.T) {
	var tries atomic.Int32
	cut := fake(t, func(c net.Conn) {
		fakeRegions(c, 100, func(h header, _ []byte) bool {
			tries.Add(1)
			h.length = uint32(h.n)
			var b [headerLen]byte
			h.put(&b)
			c.Write(b[:])
			c.Write(make([]byte, h.n/2))
			return false
		})
	})
	s := dial(t, cut, Options{Conns: 1, RetryBudget: time.Hour})
	_, err := open(t, s, "r").ReadAt(within(t), make([]byte, 10), 0)
	wantErr(t, "ReadAt", err, region.ErrUnavailable, "connections broke")
	if n := tries.Load(); n != maxResends+1 {
		t.Errorf("sent %d times; want %d", n, maxResends+1)
	}
}

func TestConnectionThatDiesMidReplyIsReplaced(t *testing.T) {
	want := bytes.Repeat([]byte{7}, 5000)
	var tries atomic.Int32
	addr := fake(t, func(c net.Conn) {
		fakeRegions(c, 5000, func(h header, _ []byte) bool {
			h.length = uint32(h.n)
			var b [headerLen]byte
			h.put(&b)
			switch tries.Add(1) {
			case 1:
				c.Write(b[:20])
				return false
			case 2:
				c.Write(append(b[:], want[:1000]...))
				return false
			}
			return transmit(c, h, want) == nil
		})
	})
	s := dial(t, addr, Options{Conns: 1})
	got := make([]byte, 5000)
	if _, err := open(t, s, "r").ReadAt(within(t), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt = %v, right bytes: %v; want nil, true", err, bytes.Equal(got, want))
	}
	if n := s.Stats(); n.Reconnects != 2 || n.Resent != 2 {
		t.Errorf("Stats() = %+v; want 2 reconnects and 2 requests sent again", n)
	}
}

func TestFirstRequestDoesNotWaitForTheSecondConnection(t *testing.T) {
	var conns atomic.Int32
	addr := fake(t, func(c net.Conn) {
		if conns.Add(1) > 1 {
			io.Copy(io.Discard, c) // does not let it in
			return
		}
		fakeRegions(c, 100, func(h header, _ []byte) bool { return transmit(c, h, make([]byte, h.n)) == nil })
	})
	s := dial(t, addr, Options{Conns: 4})
	r := open(t, s, "r")
	for range 10 {
		if _, err := r.ReadAt(within(t), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseWhileConnecting(t *testing.T) {
	for name, after := range map[string]func(c net.Conn){
		"silent":  func(c net.Conn) { io.Copy(io.Discard, c) },
		"hang up": func(net.Conn) {},
		"half":    func(c net.Conn) { c.Write(welcome{version: version}.encode()[:20]); io.Copy(io.Discard, c) },
	} {
		t.Run(name, func(t *testing.T) {
			srv := start(t, NewServer(only(newHooked(100)), ServerOptions{Grace: time.Millisecond}))
			p := newProxy(t, srv.addr)
			s := dial(t, p.addr, Options{DialTimeout: time.Hour, RetryBudget: time.Hour})
			r := open(t, s, "r")
			reached := make(chan struct{}, 100)
			p.point(fake(t, func(c net.Conn) {
				select {
				case reached <- struct{}{}:
				default:
				}
				after(c)
			}))
			p.cut()
			await(t, "a try to connect", reached)
			result := make(chan error, 1)
			go func() { result <- r.Sync(within(t)) }()
			until(t, "the request waits", func() bool { return s.Stats().Requests == 2 })
			closed := make(chan error, 1)
			go func() { closed <- s.Close() }()
			if err := await(t, "Close", closed); err != nil {
				t.Error(err)
			}
			wantErr(t, "Sync", await(t, "Sync", result), region.ErrClosed)
		})
	}
}

func TestCloseDuringAWriteThatNobodyTakes(t *testing.T) {
	addr := fake(t, func(c net.Conn) {
		fakeRegions(c, 64<<20, func(header, []byte) bool {
			<-t.Context().Done() // reads no more
			return false
		})
	})
	s := dial(t, addr, Options{Conns: 1})
	r := open(t, s, "r")
	done := make(chan error, 1)
	go func() {
		_, err := r.WriteAt(within(t), make([]byte, 64<<20), 0)
		done <- err
	}()
	until(t, "the write is under way", func() bool { return s.Stats().BytesOut > 0 })
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if err := await(t, "Close", closed); err != nil {
		t.Error(err)
	}
	wantErr(t, "WriteAt", await(t, "the write", done), region.ErrClosed)
}

// TestRandomCuts compares a region behind connections that keep breaking with a
// plain slice of bytes.
func TestRandomCuts(t *testing.T) {
	const workers, share = 4, 20_000
	r := newHooked(workers * share)
	p := newProxy(t, start(t, NewServer(only(r), ServerOptions{})).addr)
	s := dial(t, p.addr, Options{})
	reg := open(t, s, "r")
	stop, cutter := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(cutter)
		for i := 0; ; i++ {
			before := s.Stats().Requests
			for s.Stats().Requests < before+40 {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Microsecond):
				}
			}
			p.cut()
		}
	}()
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			model := make([]byte, share)
			for i := range 250 {
				off, n := i*7919%(share-2000), 1+i*31%2000
				if i%2 == 0 {
					for k := range n {
						model[off+k] = byte(i + k)
					}
					if _, err := reg.WriteAt(within(t), model[off:off+n], int64(w*share+off)); err != nil {
						t.Errorf("WriteAt = %v", err)
						return
					}
					continue
				}
				got := make([]byte, n)
				if _, err := reg.ReadAt(within(t), got, int64(w*share+off)); err != nil || !bytes.Equal(got, model[off:off+n]) {
					t.Errorf("ReadAt(off=%d, len=%d) = %v, or other bytes than were written", off, n, err)
					return
				}
			}
			if !bytes.Equal(r.at(w*share, share), model) {
				t.Error("the region holds other bytes than were written")
			}
		})
	}
	all.Wait()
	close(stop)
	<-cutter
	if n := s.Stats(); n.Reconnects == 0 || n.Resent == 0 {
		t.Errorf("Stats() = %+v; want reconnects and requests sent again", n)
	}
}
