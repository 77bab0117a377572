package grpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/telemap/telemap/region"
)

// Options tunes a client. The zero value is a good start on a trusted link.
type Options struct {
	// TLS says whom to trust and how to prove who we are. Nil means plain text,
	// for loopback and unix sockets. Versions below 1.3 are never used.
	TLS *tls.Config
	// RetryBudget is how long an operation waits for a server that went away to
	// come back, counted from when it first noticed. What fails then wraps
	// region.ErrUnavailable. Zero means 30 s; negative means not to wait. It does
	// not bound how long a server that is there may take: that is ctx's part.
	RetryBudget time.Duration
	// MaxPayload is the most bytes of a region that one message carries. Longer
	// operations are split, and up to four parts are under way at once. Zero means
	// 1 MiB; the server's own limit holds as well. At most 64 MiB.
	MaxPayload int64
	// Logger hears of lost connections. Nil discards.
	Logger *slog.Logger
}

const (
	defaultPayload = 1 << 20
	maxPayload     = 64 << 20
	minPayload     = 4 << 10
	// overhead is how much longer a message may be than the bytes it carries.
	overhead = 64 << 10
	// parallel is how many parts of one split operation are under way at once.
	parallel = 4
	// window lets a payload of the default size travel without waiting for the
	// other side to ask for more; gRPC's 64 KiB cost a round trip per read.
	window = 4 << 20
	// ioBuffer is what is read from and written to a socket at once.
	ioBuffer = 128 << 10
)

// A client is one gRPC connection that knows when to try again. Session and R3map
// are made of it.
type client struct {
	target string
	conn   *grpc.ClientConn
	budget time.Duration
	log    *slog.Logger
	gate   gate
}

func newClient(target string, o *Options) (*client, error) {
	if o.MaxPayload == 0 {
		o.MaxPayload = defaultPayload
	}
	if o.MaxPayload < minPayload || o.MaxPayload > maxPayload {
		return nil, fmt.Errorf("max payload is %d bytes: choose from %d to %d", o.MaxPayload, minPayload, maxPayload)
	}
	if o.RetryBudget == 0 {
		o.RetryBudget = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	creds := insecure.NewCredentials()
	if o.TLS != nil {
		creds = credentials.NewTLS(tls13(o.TLS))
	}
	connect := 5 * time.Second
	if o.RetryBudget > 0 {
		connect = min(connect, o.RetryBudget)
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(creds),
		grpc.WithDisableServiceConfig(), // nobody but us decides what is tried again
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: connect,
		}),
		grpc.WithInitialWindowSize(window),
		grpc.WithInitialConnWindowSize(2*window),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(newCodec()),
			grpc.MaxCallRecvMsgSize(int(o.MaxPayload+overhead)),
			grpc.MaxCallSendMsgSize(int(o.MaxPayload+overhead)),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("grpc target %s: %w", target, err)
	}
	return &client{target: target, conn: conn, budget: o.RetryBudget, log: o.Logger}, nil
}

// tls13 is c for version 1.3 and later.
func tls13(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	return c
}

// close ends what is in flight and waits for it.
func (c *client) close() error {
	if !c.gate.shut() {
		c.gate.wait()
		return nil
	}
	err := c.conn.Close()
	c.gate.wait()
	return err
}

// once makes one call. The error is mapped; answered tells whether the server's
// handler is known to be done with the request.
func (c *client) once(ctx context.Context, method string, in, out any) (err error, answered bool) {
	if err := ctx.Err(); err != nil {
		return err, true
	}
	err = c.conn.Invoke(ctx, method, in, out)
	if err == nil {
		return nil, true
	}
	mapped, answered := fromStatus(err)
	switch {
	case answered:
		return mapped, true
	case c.gate.isShut():
		return region.ErrClosed, false
	case ctx.Err() != nil:
		return ctx.Err(), false
	}
	return mapped, false
}

// A retry is the patience of one operation.
type retry struct {
	c     *client
	until time.Time // zero before the first failure
	tries int
}

// again waits until the server that failed an operation with err can be asked
// once more. It returns nil then, and otherwise what the operation fails with:
// err itself if that is nothing which asking again may cure.
func (r *retry) again(ctx context.Context, err error) error {
	if !errors.Is(err, errUnreachable) {
		return err
	}
	now := time.Now()
	if r.until.IsZero() {
		r.until = now.Add(r.c.budget)
		r.c.log.Debug("grpc: lost the server, waiting for it", "target", r.c.target, "err", err)
	}
	gone := fmt.Errorf("grpc %s: %w: %w", r.c.target, region.ErrUnavailable, err)
	if r.c.budget < 0 || !now.Before(r.until) {
		return gone
	}
	wait, cancel := context.WithDeadline(ctx, r.until)
	defer cancel()
	over := func() error {
		switch {
		case r.c.gate.isShut():
			return region.ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return gone
	}
	for ready := r.c.conn.GetState(); ready != connectivity.Ready; ready = r.c.conn.GetState() {
		if ready == connectivity.Shutdown {
			return over()
		}
		r.c.conn.Connect()
		if !r.c.conn.WaitForStateChange(wait, ready) {
			return over()
		}
	}
	// A server may be there and yet fail each request at once, as proxies do.
	if r.tries++; r.tries > 1 {
		t := time.NewTimer(min(time.Second, 10*time.Millisecond<<min(r.tries, 10)))
		defer t.Stop()
		select {
		case <-t.C:
		case <-wait.Done():
			return over()
		}
	}
	return nil
}

// do makes a call that may safely be made twice, until the server answers.
func (c *client) do(ctx context.Context, method string, in, out any) error {
	r := retry{c: c}
	for {
		err, _ := c.once(ctx, method, in, out)
		if err == nil {
			return nil
		}
		if err := r.again(ctx, err); err != nil {
			return err
		}
	}
}

// A gate lets operations in until it is shut, and knows when the last has left.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return region.ErrClosed
	}
	g.inside.Add(1)
	return nil
}

func (g *gate) leave() { g.inside.Done() }

// shut lets nobody in any more and reports whether it did before.
func (g *gate) shut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.closed
	g.closed = true
	return !was
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *gate) wait() { g.inside.Wait() }
