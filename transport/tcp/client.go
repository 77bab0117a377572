package tcp

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// Options tune a [Session]. The zero value is a good start.
type Options struct {
	// TLS turns TLS on; a version below 1.3 is refused whatever it says. An empty
	// ServerName becomes the host of the address.
	TLS *tls.Config
	// Conns is the number of connections. Zero means 2.
	Conns int
	// DialTimeout bounds one try to connect, the handshake included. Zero means 10
	// seconds.
	DialTimeout time.Duration
	// RetryBudget is how long a request may wait for a connection to come back
	// before it fails with region.ErrUnavailable. Zero means 30 seconds.
	RetryBudget time.Duration
	// KeepAlive is how long a connection may be silent before the peer is asked
	// whether it is there; silent for three times that, it is given up. Zero means
	// 5 seconds.
	KeepAlive time.Duration
	// Logger is told of connections lost and found. Nil discards.
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.Conns < 0 || o.DialTimeout < 0 || o.RetryBudget < 0 || o.KeepAlive < 0 {
		return o, errors.New("negative options are not allowed")
	}
	if o.Conns == 0 {
		o.Conns = 2
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 10 * time.Second
	}
	if o.RetryBudget == 0 {
		o.RetryBudget = 30 * time.Second
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Stats is a snapshot of what a session did.
type Stats struct {
	Connections       int64 // now
	Requests          int64
	Resent            int64 // requests sent again on a new connection
	Reconnects        int64
	BytesIn, BytesOut int64 // payloads
}

// A Session is a client's relation to one server. It implements
// [transport.Session].
type Session struct {
	network, addr string
	o             Options
	id            [16]byte
	log           *slog.Logger
	dial          func(context.Context) (net.Conn, error)

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	slots  []*slot
	work   sync.WaitGroup

	nextHandle atomic.Uint32

	instances atomic.Int64 // of the server, that connections have reached

	mu       sync.Mutex
	instance [16]byte               // the last of these
	regions  map[uint32]*openRegion // to be opened on every new connection
	fences   map[*slot]bool         // where a mutation was given up unanswered
	eased    chan struct{}          // closed when that changes
	fenced   atomic.Int32           // their number

	conns, requests, resent, reconnects, in, out atomic.Int64
}

var _ transport.Session = (*Session)(nil)

type openRegion struct {
	name string
	info transport.Info
	*transport.Witness
	// failed is set once the server has something else under the name.
	failed atomic.Pointer[changedError]
}

// Dial connects to the server at addr: host:port, or unix:PATH. It returns once
// the first connection stands or has failed, without retrying, so that a mistyped address is
// told at once. ctx bounds the dialling alone.
func Dial(ctx context.Context, addr string, o Options) (*Session, error) {
	s, err := newSession(addr, o)
	if err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// newSession makes a session that is not connected.
func newSession(addr string, o Options) (*Session, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Session{network: "tcp", addr: addr, o: o, log: o.Logger, regions: map[uint32]*openRegion{}, fences: map[*slot]bool{}, eased: make(chan struct{})}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		s.network, s.addr = "unix", path
	}
	if o.TLS != nil {
		c := o.TLS.Clone()
		c.MinVersion = tls.VersionTLS13
		if host, _, err := net.SplitHostPort(addr); err == nil && c.ServerName == "" && s.network == "tcp" {
			c.ServerName = host
		}
		s.o.TLS = c
	}
	rand.Read(s.id[:])
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i := range o.Conns {
		s.slots = append(s.slots, &slot{s: s, number: uint32(i), pending: map[uint64]*call{}, tokens: make(chan struct{}, maxInFlight)})
	}
	s.dial = func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, s.network, s.addr)
	}
	return s, nil
}

// begin makes the first connection and starts the slots.
func (s *Session) begin(ctx context.Context) error {
	first, err := s.slots[0].connect(ctx)
	if err != nil {
		s.cancel()
		return fmt.Errorf("connect to %s: %w", s.addr, err)
	}
	s.slots[0].adopt(first)
	for i, sl := range s.slots {
		c := first
		if i > 0 {
			c = nil
		}
		s.work.Go(func() { sl.run(c) })
	}
	return nil
}

// Stats returns a snapshot; its figures are each right but not of one instant.
func (s *Session) Stats() Stats {
	return Stats{s.conns.Load(), s.requests.Load(), s.resent.Load(), s.reconnects.Load(), s.in.Load(), s.out.Load()}
}

// Close implements [transport.Session].
func (s *Session) Close() error {
	s.cancel()
	for _, sl := range s.slots {
		sl.close()
	}
	s.work.Wait()
	return nil
}

// acquire chooses the slot for a request and takes one of its tokens: the slot
// with the least in flight of those that are connected. A lone requester so stays on
// one connection, whose threads and caches are warm. A mutation
// goes where an earlier one is unresolved; if that is so in several slots, it
// waits until all but one have resolved theirs.
func (s *Session) acquire(ctx context.Context, c *call) (*slot, error) {
	var sl *slot
	for c.mutates() && s.fenced.Load() > 0 {
		s.mu.Lock()
		eased, n := s.eased, len(s.fences)
		for sl = range s.fences {
			break
		}
		s.mu.Unlock()
		if n <= 1 {
			break
		}
		budget := time.NewTimer(time.Until(c.started.Add(s.o.RetryBudget)))
		select {
		case <-eased:
			budget.Stop()
			sl = nil
		case <-budget.C:
			return nil, fmt.Errorf("%w for %v: earlier writes are unresolved", region.ErrUnavailable, s.o.RetryBudget)
		case <-ctx.Done():
			budget.Stop()
			return nil, ctx.Err()
		case <-s.ctx.Done():
			budget.Stop()
			return nil, region.ErrClosed
		}
	}
	if sl == nil {
		sl = s.slots[0]
		for _, next := range s.slots[1:] {
			up := next.up.Load()
			if up != sl.up.Load() && up || up == sl.up.Load() && len(next.tokens) < len(sl.tokens) {
				sl = next
			}
		}
	}
	select {
	case sl.tokens <- struct{}{}:
		return sl, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, region.ErrClosed
	}
}

// met notes which instance of the server a connection reached.
func (s *Session) met(instance [16]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.instance != instance || s.instances.Load() == 0 {
		s.instance = instance
		s.instances.Add(1)
	}
}

// fence ties later mutations to sl until that has reconnected.
func (s *Session) fence(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fences[sl] = true
	s.fenced.Store(int32(len(s.fences)))
}

func (s *Session) unfence(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fences[sl] {
		delete(s.fences, sl)
		s.fenced.Store(int32(len(s.fences)))
		close(s.eased)
		s.eased = make(chan struct{})
	}
}

// do sends a request and waits for its reply. ctx bounds the wait. A mutation
// that reached the server is waited for even when ctx ends, while its connection lives:
// it must not land later.
func (s *Session) do(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.requests.Add(1)
	c.started = time.Now()
	sl, err := s.acquire(ctx, c)
	if err != nil {
		return err
	}
	return sl.call(ctx, c)
}

// List implements [transport.Session].
func (s *Session) List(ctx context.Context) ([]transport.Info, error) {
	c := newCall(header{op: opList})
	defer c.free()
	c.grow = true
	if err := s.do(ctx, c); err != nil {
		return nil, err
	}
	var infos []transport.Info
	for rest := c.grown; len(rest) > 0; {
		var in transport.Info
		var err error
		if in, rest, err = cutInfo(rest); err != nil {
			return nil, err
		}
		infos = append(infos, in)
	}
	return infos, nil
}

// Open implements [transport.Session].
func (s *Session) Open(ctx context.Context, name string) (transport.Region, transport.Info, error) {
	if len(name) > transport.MaxName {
		return nil, transport.Info{}, fmt.Errorf("region name of %d bytes, %d are allowed: %w", len(name), transport.MaxName, region.ErrNotFound)
	}
	c := newCall(header{op: opOpen, handle: s.nextHandle.Add(1)})
	defer c.free()
	c.grow = true
	c.out = []byte(name)
	if err := s.do(ctx, c); err != nil {
		return nil, transport.Info{}, err
	}
	info, _, err := cutInfo(c.grown)
	if err != nil {
		return nil, transport.Info{}, err
	}
	o := &openRegion{name: name, info: info, Witness: transport.NewWitness()}
	s.mu.Lock()
	s.regions[c.head.handle] = o
	s.mu.Unlock()
	r := &Region{s: s, handle: c.head.handle, info: info, open: o}
	// The other connections that stand learn of it here, later ones when they
	// connect.
	for _, sl := range s.slots {
		if err := sl.introduce(ctx, c.head.handle, o); err != nil {
			r.Close()
			return nil, transport.Info{}, err
		}
	}
	return r, info, nil
}
