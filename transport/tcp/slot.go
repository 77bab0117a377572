package tcp

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/telemap/telemap/region"
)

// A call is a request and where its reply goes.
type call struct {
	head    header
	out     []byte   // payload of the request
	in      [][]byte // where the payload of the reply goes, filled in order
	one     [1][]byte
	grow    bool // keep the payload in grown instead
	grown   []byte
	reply   header
	err     error
	done    chan struct{} // gets one value when err and reply are set
	started time.Time

	// Guarded by the slot's mutex.
	receiving bool // the reader writes to in
	given     bool // the caller wants to leave as soon as that is over
}

var calls = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

func newCall(h header) *call {
	c := calls.Get().(*call)
	c.head = h
	return c
}

// free gives c back. It must not be pending any more.
func (c *call) free() {
	*c = call{done: c.done}
	calls.Put(c)
}

func (c *call) mutates() bool {
	return c.head.op == opWrite || c.head.op == opZero || c.head.op == opDiscard
}

func (c *call) finish(err error) {
	c.err = err
	c.done <- struct{}{}
}

// A conn is one connection that has been let in.
type conn struct {
	net.Conn
	known map[uint32]*openRegion // what was opened on it when it connected
	heard atomic.Int64
	wmu   sync.Mutex
}

func (c *conn) send(h *header, body []byte, timeout time.Duration) error {
	f := frames.Get().(*frame)
	defer frames.Put(f)
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	h.length = uint32(len(body))
	return f.write(c, h, body)
}

// A slot is one connection of a session, through all its lives, and the calls
// that were sent on it and not answered.
type slot struct {
	s      *Session
	number uint32
	up     atomic.Bool

	mu         sync.Mutex
	conn       *conn // nil while there is none
	generation uint64
	pending    map[uint64]*call
	nextID     uint64
	failed     error // once set, every call fails with it

	tokens chan struct{} // one per call in flight
}

// maxInFlight bounds the calls of one slot.
const maxInFlight = 64

// tell sends a message that has no reply, if there is a connection.
func (sl *slot) tell(h header) {
	sl.mu.Lock()
	to := sl.conn
	sl.mu.Unlock()
	if to != nil && to.send(&h, nil, sl.s.o.KeepAlive*3) != nil {
		to.Close()
	}
}

// connect dials, is let in, and opens every region of the session.
func (sl *slot) connect(ctx context.Context) (*conn, error) {
	s := sl.s
	ctx, cancel := context.WithTimeout(ctx, s.o.DialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, s.network, s.addr)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	if err = sl.greet(ctx, c); err == nil && !stop() {
		err = ctx.Err()
	}
	stop()
	if err != nil {
		if cerr := context.Cause(ctx); cerr != nil && !errors.Is(err, ErrProtocol) {
			err = fmt.Errorf("no answer within %v: %w", s.o.DialTimeout, cerr)
		}
		raw.Close()
		return nil, err
	}
	return c, nil
}

func (sl *slot) greet(ctx context.Context, c *conn) error {
	s := sl.s
	if s.o.TLS != nil {
		tc := tls.Client(c.Conn, s.o.TLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS handshake: %w", err)
		}
		c.Conn = tc
	}
	sl.mu.Lock()
	sl.generation++
	h := hello{version: version, payload: maxPayload, session: s.id, slot: sl.number, generation: sl.generation}
	sl.mu.Unlock()
	if _, err := c.Write(h.encode()); err != nil {
		return err
	}
	w, err := readWelcome(c)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the server hung up during the handshake; does it expect TLS?", ErrProtocol)
	}
	if err != nil {
		return err
	}
	if w.payload < maxPayload {
		// Version 1 servers all take this much; one that does not is refused here
		// rather than by its answers later.
		return fmt.Errorf("%w: the server takes payloads of %d bytes, %d are needed", ErrProtocol, w.payload, maxPayload)
	}
	if w.inflight < maxInFlight {
		return fmt.Errorf("%w: the server answers %d requests at a time, %d are needed", ErrProtocol, w.inflight, maxInFlight)
	}
	c.heard.Store(time.Now().UnixNano())

	s.mu.Lock()
	c.known = maps.Clone(s.regions)
	s.mu.Unlock()
	for handle, r := range c.known {
		if err := reopen(c, handle, r); err != nil {
			return err
		}
	}
	return nil
}

// reopen opens r on a connection that nobody else uses yet.
func reopen(c *conn, handle uint32, r *openRegion) error {
	h := header{op: opOpen, handle: handle}
	if err := c.send(&h, []byte(r.name), time.Minute); err != nil {
		return err
	}
	var b [headerLen]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	h.get(&b)
	if h.length > maxText+infoLen+256 {
		return fmt.Errorf("%w: a description of %d bytes", ErrProtocol, h.length)
	}
	body := make([]byte, h.length)
	if _, err := io.ReadFull(c, body); err != nil {
		return err
	}
	if err := decodeError(h.code, cleanText(body)); err != nil {
		return fmt.Errorf("open %q again: %w", r.name, err)
	}
	info, _, err := cutInfo(body)
	if err != nil {
		return err
	}
	if info.Size != r.info.Size {
		return &changedError{fmt.Errorf("region %q had %d bytes and now has %d: it is another one", r.name, r.info.Size, info.Size)}
	}
	return nil
}

// A changedError is final: the server has something else under the same name.
type changedError struct{ error }

// run keeps the slot connected until the session closes.
func (sl *slot) run(first *conn) {
	s := sl.s
	c := first
	for reconnect := false; ; reconnect = true {
		if c == nil {
			if c = sl.dial(); c == nil {
				return
			}
			if reconnect {
				s.reconnects.Add(1)
				s.log.Info("reconnected", "server", s.addr, "slot", sl.number)
			}
		}
		s.conns.Add(1)
		if !sl.adopt(c) {
			c.Close()
			s.conns.Add(-1)
			return
		}
		err := sl.read(c)
		s.conns.Add(-1)
		sl.drop(c)
		if s.ctx.Err() != nil {
			return
		}
		s.log.Warn("connection lost", "server", s.addr, "slot", sl.number, "error", err)
		c = nil
	}
}

// dial connects with back-off until it succeeds, the session closes, or the
// server says what makes trying again pointless.
func (sl *slot) dial() *conn {
	s := sl.s
	lost := time.Now()
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		c, err := sl.connect(s.ctx)
		if err == nil {
			return c
		}
		if s.ctx.Err() != nil {
			return nil
		}
		if changed := (*changedError)(nil); errors.As(err, &changed) || errors.Is(err, ErrVersion) {
			s.log.Error("the server is not the one that it was", "server", s.addr, "error", err)
			sl.fail(err)
			return nil
		}
		sl.expire(lost, err)
		t := time.NewTimer(delay - rand.N(delay/2))
		select {
		case <-t.C:
		case <-s.ctx.Done():
			t.Stop()
			return nil
		}
		// Also between tries: the budget may be shorter than a try.
		sl.expire(lost, err)
	}
}

// expire fails the calls that have waited for a connection longer than the
// budget allows.
func (sl *slot) expire(lost time.Time, cause error) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	for id, c := range sl.pending {
		since := lost
		if c.started.After(lost) {
			since = c.started
		}
		if time.Since(since) < sl.s.o.RetryBudget {
			continue
		}
		sl.forgetLocked(id, c)
		c.finish(fmt.Errorf("%w for %v: %w", region.ErrUnavailable, sl.s.o.RetryBudget, cause))
	}
}

// forgetLocked drops a call without an answer. If it may yet change something at
// the server, later mutations have to pass this slot's next handshake first.
func (sl *slot) forgetLocked(id uint64, c *call) {
	delete(sl.pending, id)
	if c.mutates() && sl.failed == nil {
		sl.s.mu.Lock()
		sl.s.fence = sl
		sl.s.mu.Unlock()
	}
}

// adopt makes c the slot's connection and sends on it what waits.
func (sl *slot) adopt(c *conn) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.failed != nil {
		return false
	}
	sl.conn = c
	sl.s.mu.Lock()
	if sl.s.fence == sl {
		sl.s.fence = nil
	}
	regions := maps.Clone(sl.s.regions)
	sl.s.mu.Unlock()
	for handle, r := range regions {
		if c.known[handle] == nil { // opened while we connected
			h := header{op: opOpen, handle: handle}
			if c.send(&h, []byte(r.name), sl.s.o.KeepAlive*3) != nil {
				return true // read will notice
			}
		}
	}
	sl.up.Store(true)
	for _, id := range slices.Sorted(maps.Keys(sl.pending)) {
		p := sl.pending[id]
		sl.s.resent.Add(1)
		h := p.head
		if c.send(&h, p.out, sl.s.o.KeepAlive*3) != nil {
			break // read will notice
		}
	}
	return true
}

// drop ends c's time as the slot's connection.
func (sl *slot) drop(c *conn) {
	c.Close()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.up.Store(false)
	sl.conn = nil
	for id, p := range sl.pending {
		p.receiving = false
		if p.given {
			sl.forgetLocked(id, p)
			p.finish(cmp.Or(sl.failed, error(region.ErrUnavailable)))
		}
	}
}

// fail ends the slot for good.
func (sl *slot) fail(err error) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.failed == nil {
		sl.failed = err
	}
	sl.up.Store(false)
	for id, c := range sl.pending {
		if c.receiving {
			continue // drop finishes it
		}
		delete(sl.pending, id)
		c.finish(sl.failed)
	}
}

func (sl *slot) close() {
	sl.mu.Lock()
	c := sl.conn
	sl.failed = region.ErrClosed
	for _, p := range sl.pending {
		p.given = true
	}
	sl.mu.Unlock()
	if c != nil {
		c.Close()
	}
	sl.fail(region.ErrClosed)
}

// start registers c and sends it if there is a connection; otherwise run will.
func (sl *slot) start(c *call) error {
	sl.mu.Lock()
	if sl.failed != nil {
		err := sl.failed
		sl.mu.Unlock()
		return err
	}
	sl.nextID++
	c.head.id = sl.nextID
	c.started = time.Now()
	sl.pending[c.head.id] = c
	to := sl.conn
	// From here on the reply may arrive and c may be another's: send needs copies.
	h, out := c.head, c.out
	sl.mu.Unlock()
	sl.s.out.Add(int64(len(out)))
	if to != nil && to.send(&h, out, sl.s.o.KeepAlive*3) != nil {
		to.Close() // read notices, run reconnects and sends it again
	}
	return nil
}

// giveUp ends the wait for c because ctx has ended.
func (sl *slot) giveUp(ctx context.Context, c *call) error {
	sl.mu.Lock()
	if sl.pending[c.head.id] != c {
		sl.mu.Unlock()
		<-c.done
		return c.err // it was answered just now
	}
	to := sl.conn
	if to == nil && !c.receiving {
		sl.forgetLocked(c.head.id, c)
		sl.mu.Unlock()
		return ctx.Err()
	}
	wait := c.mutates() || c.receiving
	c.given = true
	if !wait {
		delete(sl.pending, c.head.id)
	}
	sl.mu.Unlock()
	if to != nil {
		h := header{op: opCancel, off: int64(c.head.id)}
		if to.send(&h, nil, sl.s.o.KeepAlive*3) != nil {
			to.Close()
		}
	}
	if wait {
		<-c.done
		if c.err == nil {
			return nil
		}
	}
	return ctx.Err()
}

// introduce opens a region on the slot's connection, if it has one that does not
// know it.
func (sl *slot) introduce(ctx context.Context, handle uint32, r *openRegion) error {
	sl.mu.Lock()
	up := sl.conn != nil
	sl.mu.Unlock()
	if !up {
		return nil
	}
	c := newCall(header{op: opOpen, handle: handle})
	defer c.free()
	c.grow, c.out = true, []byte(r.name)
	if err := sl.start(c); err != nil {
		return err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return sl.giveUp(ctx, c)
	}
}

// read delivers replies until the connection ends.
func (sl *slot) read(c *conn) error {
	stop := sl.watch(c)
	defer stop()
	r := bufio.NewReaderSize(c, 16<<10)
	var b [headerLen]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		var h header
		h.get(&b)
		c.heard.Store(time.Now().UnixNano())
		if h.length > maxPayload {
			return fmt.Errorf("%w: a reply of %d bytes, %d are allowed", ErrProtocol, h.length, maxPayload)
		}
		if err := sl.deliver(r, h); err != nil {
			return err
		}
		sl.s.in.Add(int64(h.length))
	}
}

func (sl *slot) deliver(r *bufio.Reader, h header) error {
	sl.mu.Lock()
	c := sl.pending[h.id]
	if c != nil {
		c.receiving = true
	}
	sl.mu.Unlock()
	if c == nil { // a ping's, or one that nobody waits for
		_, err := io.CopyN(io.Discard, r, int64(h.length))
		return err
	}
	result, err := c.receive(r, h)
	if err != nil {
		return err // the connection is broken; the call stays pending
	}
	sl.mu.Lock()
	delete(sl.pending, h.id)
	sl.mu.Unlock()
	c.reply = h
	c.finish(result)
	return nil
}

// receive reads the payload of c's reply and returns the result of the call.
func (c *call) receive(r io.Reader, h header) (result, err error) {
	if h.code != ok {
		if h.length > maxText {
			return nil, fmt.Errorf("%w: an error text of %d bytes", ErrProtocol, h.length)
		}
		text := make([]byte, h.length)
		if _, err := io.ReadFull(r, text); err != nil {
			return nil, err
		}
		return decodeError(h.code, cleanText(text)), nil
	}
	if c.grow {
		c.grown = make([]byte, h.length)
		_, err := io.ReadFull(r, c.grown)
		return nil, err
	}
	var want int
	for _, p := range c.in {
		want += len(p)
	}
	if int(h.length) != want {
		return nil, fmt.Errorf("%w: a reply of %d bytes, expected %d", ErrProtocol, h.length, want)
	}
	for _, p := range c.in {
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// watch pings when the connection is silent and closes it when it stays so.
func (sl *slot) watch(c *conn) (stop func()) {
	every := sl.s.o.KeepAlive
	done := make(chan struct{})
	sl.s.work.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			silent := time.Since(time.Unix(0, c.heard.Load()))
			if silent >= 3*every {
				sl.s.log.Warn("the server is silent", "server", sl.s.addr, "for", silent.Round(time.Millisecond))
				c.Close()
				return
			}
			if silent >= every {
				h := header{op: opPing}
				if c.send(&h, nil, every) != nil {
					c.Close()
					return
				}
			}
		}
	})
	return func() { close(done) }
}
