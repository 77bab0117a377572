package tcp

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// ServerOptions tune a [Server]. The zero value is a good start.
type ServerOptions struct {
	// TLS turns TLS on. Versions below 1.3 are refused whatever it says.
	TLS *tls.Config
	// MaxConns bounds the connections at one time; further ones are closed at
	// once. Zero means 1024.
	MaxConns int
	// MaxInFlight bounds the requests of one connection that are being answered;
	// further ones are not read meanwhile. It is at least 64, which is what a client
	// uses, and at most 65535.
	MaxInFlight int
	// MaxBytes bounds the payload bytes, in and out, of those requests; a request
	// above it is read when others are done. It is at least 68 MiB, which is what a
	// client uses at most.
	MaxBytes int64
	// HandshakeTimeout bounds the time until a peer has introduced itself. Zero
	// means 10 seconds.
	HandshakeTimeout time.Duration
	// IdleTimeout is how long a connection may be silent; clients ping more often
	// than that. Zero means 1 minute.
	IdleTimeout time.Duration
	// Grace is how long requests in flight may take at the end of Serve; those that
	// take longer are cancelled, their clients send them again elsewhere or later.
	// Zero means 5 seconds.
	Grace time.Duration
	// Logger is told of peers that misbehave. Nil discards.
	Logger *slog.Logger
}

func (o ServerOptions) withDefaults() ServerOptions {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.HandshakeTimeout, 10*time.Second)
	def(&o.IdleTimeout, time.Minute)
	def(&o.Grace, 5*time.Second)
	if o.MaxConns <= 0 {
		o.MaxConns = 1024
	}
	o.MaxInFlight = min(max(o.MaxInFlight, maxInFlight), 1<<16-1)
	o.MaxBytes = max(o.MaxBytes, clientBytes)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.MinVersion = tls.VersionTLS13
	}
	return o
}

// A Server answers sessions about the regions of a catalog. It may serve several
// listeners at once.
type Server struct {
	instance [16]byte // tells clients that they face another server than before
	catalog  transport.Catalog
	o        ServerOptions
	stats    serverCounters

	mu    sync.Mutex
	slots map[slotKey]*serverConn
}

// slotKey names one connection of one client, however often it reconnects.
type slotKey struct {
	session [16]byte
	slot    uint32
}

// NewServer makes a server. It does no I/O.
func NewServer(catalog transport.Catalog, o ServerOptions) *Server {
	s := &Server{catalog: catalog, o: o.withDefaults(), slots: map[slotKey]*serverConn{}}
	rand.Read(s.instance[:]) // never fails
	return s
}

// ServerStats is a snapshot of what a server did.
type ServerStats struct {
	Connections, InFlight int64 // now
	Requests, Errors      int64
	BytesIn, BytesOut     int64 // payloads
	Refused               int64 // connections that were not let in
}

type serverCounters struct {
	conns, inflight, requests, errors, in, out, refused atomic.Int64
}

// Stats returns a snapshot; its figures are each right but not of one instant.
func (s *Server) Stats() ServerStats {
	c := &s.stats
	return ServerStats{c.conns.Load(), c.inflight.Load(), c.requests.Load(), c.errors.Load(), c.in.Load(), c.out.Load(), c.refused.Load()}
}

// Serve answers connections to l until ctx ends or l fails, and closes l. Then
// it reads no more requests, lets those in flight finish for a while, and returns
// when all its goroutines have. It returns nil if ctx ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for delay := 5 * time.Millisecond; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			delay = 5 * time.Millisecond
		case ctx.Err() != nil:
			return nil
		case isTemporary(err):
			// Out of descriptors, say: those that end will free some.
			s.o.Logger.Warn("cannot accept a connection now", "error", err, "retry in", delay)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			}
			delay = min(2*delay, time.Second)
			continue
		default:
			return fmt.Errorf("accept a connection: %w", err)
		}
		if s.stats.conns.Add(1) > int64(s.o.MaxConns) {
			s.stats.conns.Add(-1)
			s.stats.refused.Add(1)
			if s.o.TLS == nil {
				// These bytes fit into the socket's empty buffer.
				c.SetWriteDeadline(time.Now().Add(time.Second))
				c.Write(welcome{version: version, status: unavailable, text: "the server has as many connections as it may"}.encode())
			}
			c.Close()
			continue
		}
		conns.Go(func() {
			defer s.stats.conns.Add(-1)
			defer c.Close()
			if err := s.serveConn(ctx, c); err != nil && ctx.Err() == nil {
				s.o.Logger.Warn("connection ended", "peer", c.RemoteAddr().String(), "error", err)
			}
		})
	}
}

func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// A serverConn is one connection and the requests on it.
type serverConn struct {
	s          *Server
	c          net.Conn
	key        slotKey
	generation uint64
	payload    int64 // longest that the client takes

	ctx    context.Context // of its requests
	cancel context.CancelFunc

	inflight chan struct{} // one per request
	bytes    *semaphore.Weighted
	requests sync.WaitGroup
	finished chan struct{} // closed when no request runs any more

	wmu sync.Mutex // writing a frame

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
	regions map[uint32]*opened
}

// An opened is a region that a client opened, from when the request came.
type opened struct {
	ready  chan struct{} // closed when the rest is set
	export transport.Export
	err    error
}

// cut ends the connection and cancels its requests. In this order: no reply may
// tell the client that it has cancelled what it has not.
func (sc *serverConn) cut() {
	sc.c.Close()
	sc.cancel()
}

func (s *Server) serveConn(ctx context.Context, c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(s.o.HandshakeTimeout)); err != nil {
		return err
	}
	raw := c
	greeted := context.AfterFunc(ctx, func() { raw.Close() })
	defer greeted()
	if s.o.TLS != nil {
		tc := tls.Server(c, s.o.TLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			s.stats.refused.Add(1)
			return fmt.Errorf("TLS handshake: %w", err)
		}
		c = tc
	}
	sc, err := s.welcome(ctx, c)
	if err != nil {
		s.stats.refused.Add(1)
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil || !greeted() {
		sc.leave(0)
		return err
	}
	// When ctx ends, reading does; requests in flight go on for the grace.
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = sc.readLoop(ctx)
	grace := time.Duration(0)
	if ctx.Err() != nil {
		grace = s.o.Grace
	}
	sc.leave(grace)
	return err
}

// welcome does the handshake and lets the connection into its slot.
func (s *Server) welcome(ctx context.Context, c net.Conn) (*serverConn, error) {
	var b [helloLen]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	h, err := decodeHello(b[:])
	if err != nil {
		w := welcome{version: version, status: badRequest, text: err.Error()}
		if errors.Is(err, ErrVersion) {
			w.status, w.text = badVersion, fmt.Sprintf("the server speaks version %d, not %d", version, h.version)
		}
		_, werr := c.Write(w.encode())
		return nil, errors.Join(err, werr)
	}
	sc := &serverConn{
		s: s, c: c, key: slotKey{h.session, h.slot}, generation: h.generation, payload: int64(min(h.payload, maxPayload)),
		inflight: make(chan struct{}, s.o.MaxInFlight), bytes: semaphore.NewWeighted(s.o.MaxBytes),
		finished: make(chan struct{}), cancels: map[uint64]context.CancelFunc{}, regions: map[uint32]*opened{},
	}
	sc.ctx, sc.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.enter(ctx, sc); err != nil {
		sc.cancel()
		_, werr := c.Write(welcome{version: version, status: unavailable, text: err.Error()}.encode())
		return nil, errors.Join(err, werr)
	}
	if _, err := c.Write(welcome{version: version, payload: maxPayload, inflight: uint16(s.o.MaxInFlight), instance: s.instance}.encode()); err != nil {
		sc.leave(0)
		return nil, err
	}
	return sc, nil
}

// enter puts sc into its slot once every request of the slot's earlier
// connection has finished.
func (s *Server) enter(ctx context.Context, sc *serverConn) error {
	timeout := time.NewTimer(s.o.HandshakeTimeout)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		old := s.slots[sc.key]
		if old == nil {
			s.slots[sc.key] = sc
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if old.generation >= sc.generation {
			return errors.New("a newer connection of this session has taken over")
		}
		old.cut()
		select {
		case <-old.finished:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return errors.New("requests of the session's earlier connection are still running")
		}
	}
}

// leave waits for the requests in flight, cancels those that take longer than
// grace, and gives the slot free.
func (sc *serverConn) leave(grace time.Duration) {
	if grace > 0 {
		t := time.AfterFunc(grace, sc.cut)
		defer t.Stop()
	} else {
		sc.cut()
	}
	sc.requests.Wait()
	sc.cancel()
	sc.c.Close()
	sc.s.mu.Lock()
	if sc.s.slots[sc.key] == sc {
		delete(sc.s.slots, sc.key)
	}
	sc.s.mu.Unlock()
	close(sc.finished)
}

// readLoop reads requests until the connection ends. A clean end is nil.
func (sc *serverConn) readLoop(ctx context.Context) error {
	r := bufio.NewReaderSize(sc.c, 16<<10)
	var b [headerLen]byte
	var deadline time.Time
	for {
		// Renewing costs a little, so not for every request.
		if now := time.Now(); deadline.Sub(now) < sc.s.o.IdleTimeout/2 {
			deadline = now.Add(sc.s.o.IdleTimeout)
			if err := sc.c.SetReadDeadline(deadline); err != nil {
				return nil // closed
			}
			if ctx.Err() != nil {
				return nil
			}
		}
		if _, err := io.ReadFull(r, b[:]); err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read a request: %w", err)
		}
		var h header
		h.get(&b)
		if err := sc.request(ctx, r, h); err != nil {
			return err
		}
	}
}

// request reads the rest of a request and starts answering it. An error ends
// the connection.
func (sc *serverConn) request(serving context.Context, r io.Reader, h header) error {
	if h.length > maxPayload {
		return fmt.Errorf("%w: a payload of %d bytes, %d are allowed", ErrProtocol, h.length, maxPayload)
	}
	switch h.op {
	case opPing:
		if h.length != 0 {
			return fmt.Errorf("%w: a ping with a payload", ErrProtocol)
		}
		return sc.reply(h, ok, nil)
	case opCancel:
		if h.length != 0 {
			return fmt.Errorf("%w: a cancel with a payload", ErrProtocol)
		}
		sc.mu.Lock()
		if cancel := sc.cancels[uint64(h.off)]; cancel != nil {
			cancel()
		}
		sc.mu.Unlock()
		return nil
	case opClose:
		if h.length != 0 {
			return fmt.Errorf("%w: a close with a payload", ErrProtocol)
		}
		sc.mu.Lock()
		delete(sc.regions, h.handle)
		sc.mu.Unlock()
		return nil
	}
	need := int64(h.length)
	if h.op == opRead && h.n > 0 {
		need += min(h.n, maxPayload)
	} else if h.op == opReadVec {
		need += min(max(h.n, 0), maxPayload)
	}
	// A client that keeps to its limits never waits here, so its pings are read.
	select {
	case sc.inflight <- struct{}{}:
	default:
		select {
		case sc.inflight <- struct{}{}:
		case <-sc.ctx.Done():
			return sc.ctx.Err()
		case <-serving.Done():
			return serving.Err()
		}
	}
	if !sc.bytes.TryAcquire(need) {
		wait, stop := context.WithCancel(sc.ctx)
		after := context.AfterFunc(serving, stop)
		err := sc.bytes.Acquire(wait, need)
		after()
		stop()
		if err != nil {
			<-sc.inflight
			return err
		}
	}
	sc.requests.Add(1)
	sc.s.stats.inflight.Add(1)
	release := func() {
		sc.s.stats.inflight.Add(-1)
		sc.bytes.Release(need)
		<-sc.inflight
		sc.requests.Done()
	}
	var payload *[]byte
	if h.length > 0 {
		payload = getBuffer(int(h.length))
		if _, err := io.ReadFull(r, *payload); err != nil {
			putBuffer(payload)
			release()
			return fmt.Errorf("read a request's payload: %w", err)
		}
		sc.s.stats.in.Add(int64(h.length))
	}
	ctx, cancel := context.WithCancel(sc.ctx)
	sc.mu.Lock()
	if _, twice := sc.cancels[h.id]; twice {
		sc.mu.Unlock()
		cancel()
		release()
		return fmt.Errorf("%w: two requests with id %d", ErrProtocol, h.id)
	}
	sc.cancels[h.id] = cancel
	var opening *opened
	if _, there := sc.regions[h.handle]; h.op == opOpen && (there || len(sc.regions) < maxRegions) {
		// Requests that follow may already use the handle. They wait.
		opening = &opened{ready: make(chan struct{})}
		sc.regions[h.handle] = opening
	}
	sc.mu.Unlock()
	go func() {
		defer release()
		defer cancel()
		sc.answer(ctx, h, payload, opening)
	}()
	return nil
}

// answer carries a request out and replies.
func (sc *serverConn) answer(ctx context.Context, h header, payload *[]byte, opening *opened) {
	var in []byte
	if payload != nil {
		in = *payload
		defer putBuffer(payload)
	}
	out, done, err := sc.do(ctx, &h, in, opening)
	if out != nil {
		defer putBuffer(out)
	}
	// Before the reply: the client may use the id again from then on.
	sc.mu.Lock()
	delete(sc.cancels, h.id)
	sc.mu.Unlock()
	sc.s.stats.requests.Add(1)
	var body []byte
	if out != nil {
		body = *out
	}
	c := ok
	if err != nil {
		if sc.ctx.Err() != nil {
			return // cut: the client asks again
		}
		var text string
		if c, text = encodeError(err); c != eof {
			sc.s.stats.errors.Add(1)
		}
		h.n = done
		body = append(slices.Clip(body), text...)
	}
	if sc.reply(h, c, body) != nil {
		// The reader learns of it too; the client asks again elsewhere.
		sc.c.Close()
	}
}

func (sc *serverConn) reply(h header, c code, body []byte) error {
	h.length, h.code = uint32(len(body)), c
	f := frames.Get().(*frame)
	defer frames.Put(f)
	sc.wmu.Lock()
	defer sc.wmu.Unlock()
	// A peer that does not read holds a buffer and this lock; not for ever.
	if err := sc.c.SetWriteDeadline(time.Now().Add(sc.s.o.IdleTimeout)); err != nil {
		return err
	}
	err := f.write(sc.c, &h, body)
	sc.s.stats.out.Add(int64(len(body)))
	return err
}

// do carries out one request. It changes h to what the reply's header says. With
// an error come the bytes done until then, and those of them that were read.
func (sc *serverConn) do(ctx context.Context, h *header, in []byte, opening *opened) (out *[]byte, done int64, err error) {
	if opening != nil {
		defer func() { // also after a panic
			opening.err = err
			close(opening.ready)
			if err != nil {
				sc.forget(h.handle, opening)
			}
		}()
	}
	defer func() {
		if v := recover(); v != nil {
			sc.s.o.Logger.Error("a region panicked", "op", h.op, "off", h.off, "n", h.n, "panic", v)
			err = errors.New("the server's storage panicked")
		}
	}()
	switch h.op {
	case opOpen:
		out, err = sc.open(ctx, opening, string(in))
		return out, 0, err
	case opList:
		out, err = sc.list(ctx)
		return out, 0, err
	}
	x, err := sc.region(ctx, h.handle)
	if err != nil {
		return nil, 0, err
	}
	r, size := x.Region, x.Info.Size
	switch h.op {
	case opWrite, opZero, opDiscard:
		if x.Info.ReadOnly {
			return nil, 0, region.ErrReadOnly
		}
	}
	switch h.op {
	case opRead:
		if h.n < 0 || h.n > sc.payload {
			return nil, 0, fmt.Errorf("a read of %d bytes, %d are allowed: %w", h.n, sc.payload, region.ErrBadRequest)
		}
		if !region.Check(h.off, h.n, size) {
			return nil, 0, region.ErrOutOfRange
		}
		return readAt(ctx, r, h.off, int(h.n))
	case opReadVec:
		out, err = readVec(ctx, r, size, in, min(h.n, sc.payload))
		return out, 0, err
	case opWrite:
		if !region.Check(h.off, int64(len(in)), size) {
			return nil, 0, region.ErrOutOfRange
		}
		n, err := r.WriteAt(ctx, in, h.off)
		n, err = counted(n, len(in), err, io.ErrShortWrite)
		return nil, int64(n), err
	case opSync:
		return nil, 0, r.Sync(ctx)
	case opZero, opDiscard:
		if !region.Check(h.off, h.n, size) {
			return nil, 0, region.ErrOutOfRange
		}
		return nil, 0, zero(ctx, r, h.op, h.off, h.n)
	case opNextData:
		if h.off < 0 || h.off > size {
			return nil, 0, region.ErrOutOfRange
		}
		d, err := nextData(ctx, r, h.off)
		if err == nil && (d.Off < h.off || d.Len <= 0 || !region.Check(d.Off, d.Len, size)) {
			err = fmt.Errorf("the storage says that data behind %d are at %v", h.off, d)
		}
		h.off, h.n = d.Off, d.Len
		return nil, 0, err
	}
	return nil, 0, fmt.Errorf("unknown request %d: %w", h.op, errors.ErrUnsupported)
}

// region is what a client opened under handle.
func (sc *serverConn) region(ctx context.Context, handle uint32) (transport.Export, error) {
	sc.mu.Lock()
	o := sc.regions[handle]
	sc.mu.Unlock()
	if o == nil {
		return transport.Export{}, fmt.Errorf("no region was opened as %d: %w", handle, region.ErrBadRequest)
	}
	select {
	case <-o.ready:
	default: // ctx makes its channel only when somebody asks for it
		select {
		case <-o.ready:
		case <-ctx.Done():
			return transport.Export{}, ctx.Err()
		}
	}
	return o.export, o.err
}

// forget drops what a client opened under handle, unless that is another by now.
func (sc *serverConn) forget(handle uint32, o *opened) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.regions[handle] == o {
		delete(sc.regions, handle)
	}
}

func (sc *serverConn) open(ctx context.Context, o *opened, name string) (*[]byte, error) {
	if o == nil {
		return nil, fmt.Errorf("%d regions are open on this connection: %w", maxRegions, region.ErrBadRequest)
	}
	if len(name) > transport.MaxName {
		return nil, fmt.Errorf("a name of %d bytes, %d are allowed: %w", len(name), transport.MaxName, region.ErrBadRequest)
	}
	x, err := sc.s.catalog.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	x.Info.Size = x.Region.Size()
	o.export = x
	out := getBuffer(0)
	*out = appendInfo(*out, x.Info)
	return out, nil
}

// maxRegions bounds the regions open on one connection.
const maxRegions = 1024

func (sc *serverConn) list(ctx context.Context) (*[]byte, error) {
	infos, err := sc.s.catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	out := getBuffer(0)
	for _, in := range infos {
		if int64(len(*out)+infoLen+transport.MaxName) > sc.payload {
			break // there is no paging; nobody has that many
		}
		*out = appendInfo(*out, in)
	}
	return out, nil
}

// filled is a buffer of n bytes that fill has filled.
func filled(n int64, fill func([]byte) error) (*[]byte, error) {
	out := getBuffer(int(n))
	if err := fill(*out); err != nil {
		putBuffer(out)
		return nil, err
	}
	return out, nil
}

// readAt reads n bytes that lie in the region, or those before a failure.
func readAt(ctx context.Context, r transport.Region, off int64, n int) (*[]byte, int64, error) {
	out := getBuffer(n)
	k, err := r.ReadAt(ctx, *out, off)
	k, err = counted(k, n, err, io.ErrUnexpectedEOF)
	*out = (*out)[:k]
	return out, int64(k), err
}

// counted makes of what storage said about size bytes that lie in the region:
// all of them without an error, or fewer with one.
func counted(n, size int, err, short error) (int, error) {
	switch {
	case n < 0 || n > size:
		return 0, fmt.Errorf("the storage says that it did %d of %d bytes: %w", n, size, short)
	case n == size:
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		return n, fmt.Errorf("the storage did %d of %d bytes: %w", n, size, short)
	}
	return n, err
}

func readFull(ctx context.Context, r transport.Region, p []byte, off int64) error {
	n, err := r.ReadAt(ctx, p, off)
	_, err = counted(n, len(p), err, io.ErrUnexpectedEOF)
	return err
}

func readVec(ctx context.Context, r transport.Region, size int64, in []byte, most int64) (*[]byte, error) {
	if len(in)%vecLen != 0 || len(in) > maxVecs*vecLen {
		return nil, fmt.Errorf("a list of ranges of %d bytes: %w", len(in), region.ErrBadRequest)
	}
	var total int64
	for v := in; len(v) > 0; v = v[vecLen:] {
		off, n := int64(binary.LittleEndian.Uint64(v)), int64(binary.LittleEndian.Uint64(v[8:]))
		if !region.Check(off, n, size) {
			return nil, region.ErrOutOfRange
		}
		if total += n; n > most || total > most {
			return nil, fmt.Errorf("ranges of %d bytes in all, %d are allowed: %w", total, most, region.ErrBadRequest)
		}
	}
	return filled(total, func(buf []byte) error {
		if vr, ok := r.(interface {
			ReadVec(ctx context.Context, v []region.Vec) error
		}); ok {
			vec := make([]region.Vec, len(in)/vecLen)
			for i := range vec {
				v := in[i*vecLen:]
				n := binary.LittleEndian.Uint64(v[8:])
				vec[i] = region.Vec{P: buf[:n:n], Off: int64(binary.LittleEndian.Uint64(v))}
				buf = buf[n:]
			}
			return vr.ReadVec(ctx, vec)
		}
		for v := in; len(v) > 0; v = v[vecLen:] {
			off, n := int64(binary.LittleEndian.Uint64(v)), int64(binary.LittleEndian.Uint64(v[8:]))
			if err := readFull(ctx, r, buf[:n], off); err != nil {
				return err
			}
			buf = buf[n:]
		}
		return nil
	})
}

func zero(ctx context.Context, r transport.Region, what op, off, n int64) error {
	if d, ok := r.(interface {
		Discard(ctx context.Context, off, n int64) error
	}); ok && what == opDiscard {
		return d.Discard(ctx, off, n)
	}
	if z, ok := r.(interface {
		Zero(ctx context.Context, off, n int64) error
	}); ok {
		return z.Zero(ctx, off, n)
	}
	for n > 0 {
		p := zeros[:min(n, int64(len(zeros)))]
		k, err := r.WriteAt(ctx, p, off)
		if k, err = counted(k, len(p), err, io.ErrShortWrite); err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

var zeros [64 << 10]byte

func nextData(ctx context.Context, r transport.Region, off int64) (region.Range, error) {
	if e, ok := r.(interface {
		NextData(ctx context.Context, off int64) (region.Range, error)
	}); ok {
		return e.NextData(ctx, off)
	}
	if off == r.Size() {
		return region.Range{}, io.EOF
	}
	return region.Range{Off: off, Len: r.Size() - off}, nil
}
