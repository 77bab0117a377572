package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// Options tunes retries. The zero value is a good start.
type Options struct {
	// Budget is how long one operation may take, pauses included, before it is
	// not tried again. Zero means 30 s. A try that is running is not cut off by
	// it, see Attempt.
	Budget time.Duration
	// MinDelay is the longest pause behind the first try, MaxDelay behind any.
	// Zero means 20 ms and 2 s.
	MinDelay, MaxDelay time.Duration
	// Attempt cuts a single try off; it counts as failed then. Zero leaves a
	// try as long as it takes.
	Attempt time.Duration
	// Logger gets a warning when an operation fails for the first time and when
	// it is given up, and an info when it succeeds after all. Nil discards.
	Logger *slog.Logger
}

// Stats counts since the backend was made.
type Stats struct {
	Retries   int64 // tries behind the first
	Recovered int64 // operations that succeeded behind the first try
	GaveUp    int64 // operations whose budget was spent
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// A Backend repeats the operations of another one. Make one with [New].
type Backend struct {
	b backend.Backend
	o Options

	retries, recovered, gaveUp atomic.Int64

	closed chan struct{}
	once   sync.Once
}

// New makes a backend that repeats operations of b. Closing it closes b.
func New(b backend.Backend, o Options) *Backend {
	if o.Budget == 0 {
		o.Budget = 30 * time.Second
	}
	if o.MinDelay == 0 {
		o.MinDelay = 20 * time.Millisecond
	}
	if o.MaxDelay == 0 {
		o.MaxDelay = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Backend{b: b, o: o, closed: make(chan struct{})}
}

// Unwrap is the backend behind b.
func (b *Backend) Unwrap() backend.Backend { return b.b }

// Stats is a snapshot of the counters.
func (b *Backend) Stats() Stats {
	return Stats{b.retries.Load(), b.recovered.Load(), b.gaveUp.Load()}
}

// errAttempt is the cause with which a single try is cut off.
var errAttempt = fmt.Errorf("no answer in time: %w", backend.ErrUnavailable)

// try makes one try, cut off if the options say so.
func (b *Backend) try(ctx context.Context, act func(ctx context.Context) error) error {
	if b.o.Attempt <= 0 {
		return act(ctx)
	}
	short, cancel := context.WithTimeoutCause(ctx, b.o.Attempt, errAttempt)
	defer cancel()
	err := act(short)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && context.Cause(short) == errAttempt {
		return errAttempt
	}
	return err
}

// again repeats act, which just failed with err, and which began at start.
func (b *Backend) again(ctx context.Context, op string, start time.Time, err error, act func(ctx context.Context) error) error {
	if !backend.Retryable(err) {
		return err
	}
	b.o.Logger.WarnContext(ctx, "storage operation failed, trying again", "op", op, "err", err)
	most := b.o.MinDelay
	for tries := 1; ; tries++ {
		pause := time.Duration(rand.Int64N(int64(most) + 1))
		most = min(2*most, b.o.MaxDelay)
		if time.Since(start)+pause > b.o.Budget {
			b.gaveUp.Add(1)
			spent := time.Since(start).Round(time.Millisecond)
			b.o.Logger.WarnContext(ctx, "storage operation given up", "op", op, "tries", tries, "took", spent, "err", err)
			return fmt.Errorf("%w (given up after %d tries in %v)", err, tries, spent)
		}
		if stop := b.sleep(ctx, pause); stop != nil {
			return stop
		}
		b.retries.Add(1)
		if err = b.try(ctx, act); err == nil || err == io.EOF {
			b.recovered.Add(1)
			b.o.Logger.InfoContext(ctx, "storage operation succeeded", "op", op, "tries", tries+1, "took", time.Since(start))
			return err
		}
		if !backend.Retryable(err) {
			return err
		}
	}
}

// sleep waits, unless somebody gives up meanwhile.
func (b *Backend) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		return backend.ErrClosed
	}
}

// do makes the first try and the others.
func (b *Backend) do(ctx context.Context, op string, act func(ctx context.Context) error) error {
	start := time.Now()
	err := b.try(ctx, act)
	if err == nil {
		return nil
	}
	return b.again(ctx, op, start, err, act)
}

// ReadAt reads from the backend behind b.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	start := time.Now()
	if b.o.Attempt > 0 {
		return b.resume(ctx, "read", start, p, off, 0, nil, b.b.ReadAt)
	}
	n, err := b.b.ReadAt(ctx, p, off)
	if err == nil || !backend.Retryable(err) {
		return n, err
	}
	return b.resume(ctx, "read", start, p, off, n, err, b.b.ReadAt)
}

// WriteAt writes to the backend behind b.
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	start := time.Now()
	if b.o.Attempt > 0 {
		return b.resume(ctx, "write", start, p, off, 0, nil, b.b.WriteAt)
	}
	n, err := b.b.WriteAt(ctx, p, off)
	if err == nil || !backend.Retryable(err) {
		return n, err
	}
	return b.resume(ctx, "write", start, p, off, n, err, b.b.WriteAt)
}

// resume goes on behind the first done bytes, which a try did before it failed
// with err; a nil err means there was none.
func (b *Backend) resume(ctx context.Context, op string, start time.Time, p []byte, off int64, done int, err error,
	at func(ctx context.Context, p []byte, off int64) (int, error)) (int, error) {
	act := func(ctx context.Context) error {
		n, err := at(ctx, p[done:], off+int64(done))
		done += n
		return err
	}
	if err == nil {
		if err = b.try(ctx, act); err == nil {
			return done, nil
		}
	}
	return done, b.again(ctx, op, start, err, act)
}

// ReadVec reads from the backend behind b.
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	return b.do(ctx, "read", func(ctx context.Context) error { return backend.ReadVec(ctx, b.b, v) })
}

// Sync syncs the backend behind b.
func (b *Backend) Sync(ctx context.Context) error {
	return b.do(ctx, "sync", b.b.Sync)
}

// Zero zeroes a range of the backend behind b.
func (b *Backend) Zero(ctx context.Context, off, n int64) error {
	return b.do(ctx, "zero", func(ctx context.Context) error { return backend.Zero(ctx, b.b, off, n) })
}

// Discard discards a range of the backend behind b.
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	return b.do(ctx, "discard", func(ctx context.Context) error { return backend.Discard(ctx, b.b, off, n) })
}

// NextData asks the backend behind b.
func (b *Backend) NextData(ctx context.Context, off int64) (r region.Range, err error) {
	err = b.do(ctx, "seek", func(ctx context.Context) (err error) {
		r, err = backend.NextData(ctx, b.b, off)
		return err
	})
	return r, err
}

// Size is the length of the backend behind b.
func (b *Backend) Size() int64 { return b.b.Size() }

// Close ends pauses between tries with [backend.ErrClosed] and closes the
// backend behind b.
func (b *Backend) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.b.Close()
}
