package tcp

import (
	"bufio"
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
	"syscall"
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
	region  *openRegion // that it is about; may be nil
	left    bool        // a ghost holds its token

	// Guarded by the slot's mutex.
	busy  int  // of the reader, which writes to in, and of resend, which reads out
	over  bool // it finishes with ended when they are through with it
	ended error
	given bool // the caller wants to leave when the connection ends
	sent  int  // how often it was sent again
	ghost bool // nobody waits for it; holds its token until the server has answered
}

// maxResends is after how many connections a request is given up that none of
// them survived.
const maxResends = 8

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

	resend   []uint64  // calls that waited for it
	since    time.Time // it was adopted
	answered bool      // a call; the reader's
}

// Read notes that the peer lives: a long reply may take long to come.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
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
	cause      error // why the last try to connect failed

	tokens chan struct{} // one per call in flight

	// The slot's goroutine's.
	lost  time.Time     // since when no connection was of use
	delay time.Duration // before the next try to connect
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
	raw, err := s.dial(ctx)
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
			err = fmt.Errorf("the server does not finish the handshake: %w", cerr)
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
		err := tc.HandshakeContext(ctx)
		if foreign := (tls.RecordHeaderError{}); errors.As(err, &foreign) {
			return fmt.Errorf("%w: TLS handshake: the server does not speak TLS: %w", ErrProtocol, err)
		}
		if err != nil {
			return fmt.Errorf("TLS handshake: %w", err)
		}
		c.Conn = tc
	}
	sl.mu.Lock()
	sl.generation++
	h := hello{version: version, payload: maxPayload, session: s.id, slot: sl.number, generation: sl.generation}
	sl.mu.Unlock()
	// A server that is full says so without reading; what it said can be read even
	// when writing fails.
	_, werr := c.Write(h.encode())
	w, err := readWelcome(c)
	switch {
	case err == nil:
		err = werr
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
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
	s.met(w.instance)

	s.mu.Lock()
	c.known = maps.Clone(s.regions)
	s.mu.Unlock()
	for handle, r := range c.known {
		if r.failed.Load() != nil {
			continue
		}
		err := reopen(c, handle, r)
		if changed := (*changedError)(nil); errors.As(err, &changed) {
			// The region is lost, the session is not. Nothing may be asked of what has
			// taken its place.
			s.log.Error("a region is not the one that it was", "server", s.addr, "error", err)
			r.failed.Store(changed)
			h := header{op: opClose, handle: handle}
			err = c.send(&h, nil, s.o.KeepAlive*3)
		}
		if err != nil {
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
		return &changedError{r.name, r.info.Size, info.Size}
	}
	return nil
}

// A changedError is final: the server has something else under the same name.
type changedError struct {
	name     string
	was, now int64
}

func (e *changedError) Error() string {
	return fmt.Sprintf("region %q had %d bytes and now has %d: it is another one", e.name, e.was, e.now)
}

// run keeps the slot connected until the session closes. The first connection,
// if there is one, has been adopted.
func (sl *slot) run(c *conn) {
	s := sl.s
	sl.lost = time.Now()
	for reconnect := false; ; reconnect = true {
		if c == nil {
			if c = sl.dial(); c == nil {
				return
			}
			if reconnect {
				s.reconnects.Add(1)
				s.log.Info("reconnected", "server", s.addr, "slot", sl.number)
			}
			if !sl.adopt(c) {
				c.Close()
				return
			}
		}
		// Beside reading: the server may not take more before we took its replies.
		resent := make(chan struct{})
		go func() {
			defer close(resent)
			sl.resend(c)
		}()
		err := sl.read(c)
		c.Close()
		<-resent
		s.conns.Add(-1)
		sl.drop(c)
		if s.ctx.Err() != nil {
			return
		}
		s.log.Warn("connection lost", "server", s.addr, "slot", sl.number, "error", err)
		if c.answered || time.Since(c.since) > s.o.KeepAlive {
			sl.lost, sl.delay = time.Now(), 0
		}
		c = nil
	}
}

// dial connects with back-off until it succeeds, the session closes, or the
// server says what makes trying again pointless.
func (sl *slot) dial() *conn {
	s := sl.s
	// Not between tries only: one may take longer than the budget is.
	trying, tried := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(tried)
		t := time.NewTicker(min(max(s.o.RetryBudget/16, time.Millisecond), time.Second))
		defer t.Stop()
		for {
			select {
			case <-t.C:
				sl.expire()
			case <-trying:
				return
			}
		}
	}()
	defer func() { close(trying); <-tried }()
	for {
		if sl.delay > 0 {
			t := time.NewTimer(sl.delay - rand.N(sl.delay/2))
			select {
			case <-t.C:
			case <-s.ctx.Done():
				t.Stop()
				return nil
			}
		}
		sl.delay = min(max(2*sl.delay, 10*time.Millisecond), 2*time.Second)
		c, err := sl.connect(s.ctx)
		if err == nil {
			return c
		}
		if s.ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrVersion) {
			s.log.Error("the server is not the one that it was", "server", s.addr, "error", err)
			sl.fail(err)
			return nil
		}
		s.log.Debug("cannot connect", "server", s.addr, "slot", sl.number, "error", err)
		sl.mu.Lock()
		sl.cause = err
		sl.mu.Unlock()
	}
}

// expire fails the calls that have waited for a connection longer than the
// budget allows.
func (sl *slot) expire() {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	for id, c := range sl.pending {
		since := sl.lost
		if c.started.After(since) {
			since = c.started
		}
		if time.Since(since) < sl.s.o.RetryBudget {
			continue
		}
		err := fmt.Errorf("%w for %v", region.ErrUnavailable, sl.s.o.RetryBudget)
		if sl.cause != nil {
			err = fmt.Errorf("%w: %w", err, sl.cause)
		}
		sl.forgetLocked(id, c, err)
	}
}

// endLocked ends a call, as soon as nobody uses its buffers.
func (sl *slot) endLocked(id uint64, c *call, err error) {
	delete(sl.pending, id)
	switch {
	case c.ghost:
		<-sl.tokens
	case c.busy > 0:
		c.over, c.ended = true, err
	default:
		c.finish(err)
	}
}

// freeLocked says that the reader or resend is through with a call's buffers.
func (sl *slot) freeLocked(c *call) {
	if c.busy--; c.busy == 0 && c.over {
		c.finish(c.ended)
	}
}

// forgetLocked ends a call without an answer. If it may yet change something at
// the server, later mutations have to pass this slot's next handshake first.
func (sl *slot) forgetLocked(id uint64, c *call, err error) {
	if c.mutates() {
		sl.s.fence(sl)
	}
	sl.endLocked(id, c, err)
}

// adopt makes c the slot's connection.
func (sl *slot) adopt(c *conn) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.failed != nil {
		return false
	}
	c.since = time.Now()
	sl.conn = c
	sl.s.conns.Add(1)
	sl.s.unfence(sl)
	for id, p := range sl.pending {
		if err := p.lost(); err != nil {
			sl.endLocked(id, p, err)
		}
	}
	sl.s.mu.Lock()
	regions := maps.Clone(sl.s.regions)
	sl.s.mu.Unlock()
	for handle, r := range regions {
		if c.known[handle] == nil { // opened while we connected
			sl.nextID++
			h := header{op: opOpen, handle: handle, id: sl.nextID}
			if c.send(&h, []byte(r.name), sl.s.o.KeepAlive*3) != nil {
				c.Close() // read will notice
				return true
			}
		}
	}
	sl.up.Store(true)
	c.resend = slices.Sorted(maps.Keys(sl.pending))
	return true
}

// resend sends what waited when c was adopted.
func (sl *slot) resend(c *conn) {
	for _, id := range c.resend {
		sl.mu.Lock()
		p := sl.pending[id]
		if p == nil || p.ghost {
			if p != nil { // given up before it was sent: no answer will come
				sl.endLocked(id, p, nil)
			}
			sl.mu.Unlock()
			continue
		}
		if p.sent++; p.sent > maxResends {
			err := fmt.Errorf("%w: %d connections broke before this was answered", region.ErrUnavailable, p.sent)
			sl.forgetLocked(id, p, err)
			sl.mu.Unlock()
			continue
		}
		p.busy++
		h, out := p.head, p.out
		sl.mu.Unlock()
		sl.s.resent.Add(1)
		err := c.send(&h, out, sl.s.o.KeepAlive*3)
		sl.mu.Lock()
		sl.freeLocked(p)
		sl.mu.Unlock()
		if err != nil {
			c.Close() // read will notice
			return
		}
	}
}

// drop ends c's time as the slot's connection.
func (sl *slot) drop(c *conn) {
	c.Close()
	sl.mu.Lock()
	defer sl.mu.Unlock()
	sl.up.Store(false)
	sl.conn = nil
	for id, p := range sl.pending {
		switch {
		case p.ghost:
			sl.endLocked(id, p, nil)
		case p.given:
			sl.forgetLocked(id, p, region.ErrUnavailable)
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
		sl.forgetLocked(id, c, sl.failed)
	}
}

func (sl *slot) close() {
	sl.mu.Lock()
	c := sl.conn
	sl.failed = region.ErrClosed
	sl.mu.Unlock()
	if c != nil {
		c.Close()
	}
	sl.fail(region.ErrClosed)
}

// lost is why a call cannot be sent any more: its region has changed.
func (c *call) lost() error {
	if c.region != nil {
		if err := c.region.failed.Load(); err != nil {
			return err
		}
	}
	return nil
}

// start registers c and sends it if there is a connection; otherwise run will.
func (sl *slot) start(c *call) error {
	sl.mu.Lock()
	if sl.failed != nil {
		err := sl.failed
		sl.mu.Unlock()
		return err
	}
	if err := c.lost(); err != nil {
		sl.mu.Unlock()
		return err
	}
	sl.nextID++
	c.head.id = sl.nextID
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
	if to == nil {
		sl.forgetLocked(c.head.id, c, ctx.Err())
		sl.mu.Unlock()
		<-c.done
		return ctx.Err()
	}
	wait := c.mutates() || c.busy > 0
	c.given = true
	if !wait {
		// The server counts it until it has answered, and so do we.
		sl.pending[c.head.id] = &call{head: c.head, ghost: true}
		c.left = true
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
	c.started = time.Now()
	select {
	case sl.tokens <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-sl.s.ctx.Done():
		return region.ErrClosed
	}
	return sl.call(ctx, c)
}

// call sends a request, for which the caller has taken a token, and waits for
// its reply.
func (sl *slot) call(ctx context.Context, c *call) error {
	err := sl.start(c)
	if err == nil {
		select {
		case <-c.done:
			err = c.err
		case <-ctx.Done():
			err = sl.giveUp(ctx, c)
		}
	}
	if !c.left {
		<-sl.tokens
	}
	return err
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
		if h.length > maxPayload {
			return fmt.Errorf("%w: a reply of %d bytes, %d are allowed", ErrProtocol, h.length, maxPayload)
		}
		if err := sl.deliver(c, r, h); err != nil {
			return err
		}
		sl.s.in.Add(int64(h.length))
	}
}

func (sl *slot) deliver(from *conn, r *bufio.Reader, h header) error {
	sl.mu.Lock()
	c := sl.pending[h.id]
	if c != nil && c.ghost {
		sl.endLocked(h.id, c, nil)
		c = nil
	}
	if c != nil {
		c.busy++
	}
	sl.mu.Unlock()
	if c == nil { // a ping's, or one that nobody waits for
		_, err := io.CopyN(io.Discard, r, int64(h.length))
		return err
	}
	result, err := c.receive(r, h)
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if err == nil {
		c.reply = h
		from.answered = true
	} else if errors.Is(err, ErrProtocol) {
		// To ask again would bring the same answer.
		result = err
	} else {
		sl.freeLocked(c)
		return err // the connection is broken; the call stays pending
	}
	if !c.over {
		c.over, c.ended = true, result
		delete(sl.pending, h.id)
	}
	sl.freeLocked(c)
	return err
}

// receive reads the payload of c's reply and returns the result of the call.
func (c *call) receive(r io.Reader, h header) (result, err error) {
	if h.code != ok {
		length := int64(h.length)
		switch c.head.op {
		case opRead:
			if h.n < 0 || h.n > length || h.n > int64(len(c.in[0])) {
				return nil, fmt.Errorf("%w: a reply with %d bytes of data", ErrProtocol, h.n)
			}
			if _, err := io.ReadFull(r, c.in[0][:h.n]); err != nil {
				return nil, err
			}
			length -= h.n
		case opWrite:
			if h.n < 0 || h.n > int64(len(c.out)) {
				return nil, fmt.Errorf("%w: a reply says that %d of %d bytes were written", ErrProtocol, h.n, len(c.out))
			}
		}
		if length > maxText {
			return nil, fmt.Errorf("%w: an error text of %d bytes", ErrProtocol, length)
		}
		text := make([]byte, length)
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
				if !c.wmu.TryLock() {
					continue // whoever writes will learn of it
				}
				c.wmu.Unlock()
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
