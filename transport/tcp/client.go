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

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	slots  []*slot
	work   sync.WaitGroup
	turn   atomic.Uint32

	nextHandle atomic.Uint32

	mu      sync.Mutex
	regions map[uint32]*openRegion // to be opened on every new connection
	fence   *slot                  // where a write was given up unanswered

	conns, requests, resent, reconnects, in, out atomic.Int64
}

var _ transport.Session = (*Session)(nil)

type openRegion struct {
	name string
	info transport.Info
}

// Dial connects to the server at addr: host:port, or unix:PATH. It returns once
// the first connection stands or has failed, without retrying, so that a mistyped address is
// told at once. ctx bounds the dialling alone.
func Dial(ctx context.Context, addr string, o Options) (*Session, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Session{network: "tcp", addr: addr, o: o, log: o.Logger, regions: map[uint32]*openRegion{}}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		s.network, s.addr = "unix", path
	}
	if o.TLS != nil {
		c := o.TLS.Clone()
		c.MinVersion = tls.VersionTLS13
		if host, _, err := net.SplitHostPort(addr); err == nil && c.ServerName == "" {
			c.ServerName = host
		}
		s.o.TLS = c
	}
	rand.Read(s.id[:])
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for i := range o.Conns {
		s.slots = append(s.slots, &slot{s: s, number: uint32(i), pending: map[uint64]*call{}, tokens: make(chan struct{}, maxInFlight)})
	}
	first, err := s.slots[0].connect(ctx)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	for i, sl := range s.slots {
		c := first
		if i > 0 {
			c = nil
		}
		s.work.Go(func() { sl.run(c) })
	}
	return s, nil
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

// pick chooses the slot for a request: in turn, but a slot that is connected
// before one that is not, and for a mutation the one where an earlier mutation is
// unresolved.
func (s *Session) pick(mutates bool) *slot {
	if mutates {
		s.mu.Lock()
		f := s.fence
		s.mu.Unlock()
		if f != nil {
			return f
		}
	}
	n := uint32(len(s.slots))
	start := s.turn.Add(1)
	for i := range n {
		if sl := s.slots[(start+i)%n]; sl.up.Load() {
			return sl
		}
	}
	return s.slots[start%n]
}

// do sends a request and waits for its reply. ctx bounds the wait. A mutation
// that reached the server is waited for even when ctx ends, while its connection lives:
// it must not land later.
func (s *Session) do(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.requests.Add(1)
	sl := s.pick(c.mutates())
	select {
	case sl.tokens <- struct{}{}:
		defer func() { <-sl.tokens }()
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return region.ErrClosed
	}
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
	o := &openRegion{name, info}
	s.mu.Lock()
	s.regions[c.head.handle] = o
	s.mu.Unlock()
	// The other connections that stand learn of it here, later ones when they
	// connect.
	for _, sl := range s.slots {
		if err := sl.introduce(ctx, c.head.handle, o); err != nil {
			return nil, transport.Info{}, err
		}
	}
	return &Region{s: s, handle: c.head.handle, info: info}, info, nil
}
