package flaky

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// ErrInjected is what operations fail with unless a Failure says otherwise. It
// wraps [backend.ErrUnavailable], hence is retryable.
var ErrInjected = fmt.Errorf("injected failure: %w", backend.ErrUnavailable)

// An Op is a kind of operation.
type Op int

// Kinds of operations. ReadVec is a Read.
const (
	Read Op = iota
	Write
	Sync
	Zero
	Discard
	NextData
	Close
	ops
)

func (o Op) String() string {
	if o < 0 || o >= ops {
		return fmt.Sprintf("op %d", int(o))
	}
	return [...]string{"read", "write", "sync", "zero", "discard", "next data", "close"}[o]
}

// A Failure says which operations fail and how. Set it up before it is given to
// [Wrap] or [Backend.Inject]; give it to one backend only.
type Failure struct {
	op     Op
	strike func(nth int64) bool
	err    error
	after  bool
	short  int
	delay  time.Duration

	mu     sync.Mutex // makes counting and choosing one step
	seen   int64
	stop   bool
	fired  atomic.Int64
	held   chan struct{} // closed when an operation is held; nil if none is to be
	let    chan struct{} // closed by Release
	first  sync.Once
	letOne sync.Once
}

func failure(op Op, strike func(nth int64) bool) *Failure {
	return &Failure{op: op, strike: strike, err: ErrInjected, short: -1}
}

// Fail fails the nth operation of its kind, counted from 1 and from when the
// Failure was given to the backend.
func Fail(op Op, nth int64) *Failure {
	return failure(op, func(n int64) bool { return n == nth })
}

// FailFrom fails the nth operation and every later one, until [Failure.Stop].
func FailFrom(op Op, nth int64) *Failure {
	return failure(op, func(n int64) bool { return n >= nth })
}

// FailUntil fails every operation before the nth, as a backend does that is
// unreachable for a while.
func FailUntil(op Op, nth int64) *Failure {
	return failure(op, func(n int64) bool { return n < nth })
}

// Chance fails each operation with probability p. The same seed fails the same
// operations, as far as they come in the same order.
func Chance(op Op, p float64, seed uint64) *Failure {
	r := rand.New(rand.NewPCG(seed, 0))
	return failure(op, func(int64) bool { return r.Float64() < p })
}

// Short lets the nth read or write do its first n bytes and then fail.
func Short(op Op, nth int64, n int) *Failure {
	f := Fail(op, nth)
	f.short = n
	return f
}

// Delay makes every operation take d longer. It gives up when the context does.
func Delay(op Op, d time.Duration) *Failure {
	f := FailFrom(op, 1).With(nil)
	f.delay = d
	return f
}

// Stall holds the nth operation until [Failure.Release] or until its context
// is done, and then lets it go on.
func Stall(op Op, nth int64) *Failure { return stall(Fail(op, nth)) }

// StallFrom holds the nth operation and every later one.
func StallFrom(op Op, nth int64) *Failure { return stall(FailFrom(op, nth)) }

func stall(f *Failure) *Failure {
	f.held, f.let = make(chan struct{}), make(chan struct{})
	return f.With(nil)
}

// With sets the error that operations fail with; nil lets them succeed. It
// returns f.
func (f *Failure) With(err error) *Failure {
	f.err = err
	return f
}

// After carries the operation out before it fails, is delayed or held, as when
// the reply is lost. It returns f.
func (f *Failure) After() *Failure {
	f.after = true
	return f
}

// Fired is how many operations the Failure has struck.
func (f *Failure) Fired() int64 { return f.fired.Load() }

// Held is closed once an operation is held by [Stall] or [StallFrom].
func (f *Failure) Held() <-chan struct{} { return f.held }

// Release lets the held operations, and those that come later, go on. It may be
// called more than once, and on a Failure that holds nothing.
func (f *Failure) Release() {
	if f.let != nil {
		f.letOne.Do(func() { close(f.let) })
	}
}

// Stop ends the Failure: it strikes no further operation. Those held go on.
func (f *Failure) Stop() {
	f.mu.Lock()
	f.stop = true
	f.mu.Unlock()
	f.Release()
}

// strikes counts an operation and says whether it is struck.
func (f *Failure) strikes(op Op) bool {
	if f.op != op {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	if f.stop || !f.strike(f.seen) {
		return false
	}
	f.fired.Add(1)
	return true
}

// suffer is the time the failure takes and the error it ends in.
func (f *Failure) suffer(ctx context.Context, closed <-chan struct{}) error {
	if f.let != nil {
		f.first.Do(func() { close(f.held) })
		select {
		case <-f.let:
		case <-ctx.Done():
			return ctx.Err()
		case <-closed:
			return backend.ErrClosed
		}
	}
	if f.delay > 0 {
		t := time.NewTimer(f.delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-closed:
			return backend.ErrClosed
		}
	}
	return f.err
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// A Backend fails as its Failures say. Make one with [Wrap].
type Backend struct {
	b     backend.Backend
	calls [ops]atomic.Int64

	mu       sync.Mutex
	failures []*Failure

	closed chan struct{}
	once   sync.Once
}

// Wrap makes a backend that passes operations on to b, except where a Failure
// strikes. Closing it closes b.
func Wrap(b backend.Backend, f ...*Failure) *Backend {
	return &Backend{b: b, failures: slices.Clone(f), closed: make(chan struct{})}
}

// Inject adds failures; they count operations from now on.
func (b *Backend) Inject(f ...*Failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = append(slices.Clip(b.failures), f...) // pick may be walking the old ones
}

// Unwrap is the backend behind b.
func (b *Backend) Unwrap() backend.Backend { return b.b }

// Calls is how many operations of a kind were begun, struck or not.
func (b *Backend) Calls(op Op) int64 { return b.calls[op].Load() }

// do carries out operation op on n bytes. The operation itself, act, is told how
// many of them to do.
func (b *Backend) do(ctx context.Context, op Op, n int, act func(n int) (int, error)) (int, error) {
	b.calls[op].Add(1)
	b.mu.Lock()
	failures := b.failures
	b.mu.Unlock()

	// Every failure counts the operation, even if another one strikes it first.
	var before, after []*Failure
	for _, f := range failures {
		if f.strikes(op) {
			if f.after || f.short >= 0 {
				after = append(after, f)
			} else {
				before = append(before, f)
			}
			if f.short >= 0 {
				n = min(n, f.short)
			}
		}
	}
	for _, f := range before {
		if err := f.suffer(ctx, b.closed); err != nil {
			return 0, err
		}
	}
	done, err := act(n)
	for _, f := range after {
		late := f.suffer(ctx, b.closed)
		if late == nil || err != nil && err != io.EOF {
			continue
		}
		if f.short < 0 {
			done = 0 // nobody learns what was done
		}
		err = late
	}
	return done, err
}

// ReadAt reads from the backend behind b.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return b.do(ctx, Read, len(p), func(n int) (int, error) { return b.b.ReadAt(ctx, p[:n], off) })
}

// WriteAt writes to the backend behind b.
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	return b.do(ctx, Write, len(p), func(n int) (int, error) { return b.b.WriteAt(ctx, p[:n], off) })
}

// ReadVec reads from the backend behind b; it counts as one read.
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	_, err := b.do(ctx, Read, 0, func(int) (int, error) { return 0, backend.ReadVec(ctx, b.b, v) })
	return err
}

// Sync syncs the backend behind b.
func (b *Backend) Sync(ctx context.Context) error {
	_, err := b.do(ctx, Sync, 0, func(int) (int, error) { return 0, b.b.Sync(ctx) })
	return err
}

// Zero zeroes a range of the backend behind b.
func (b *Backend) Zero(ctx context.Context, off, n int64) error {
	_, err := b.do(ctx, Zero, 0, func(int) (int, error) { return 0, backend.Zero(ctx, b.b, off, n) })
	return err
}

// Discard discards a range of the backend behind b.
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	_, err := b.do(ctx, Discard, 0, func(int) (int, error) { return 0, backend.Discard(ctx, b.b, off, n) })
	return err
}

// NextData asks the backend behind b.
func (b *Backend) NextData(ctx context.Context, off int64) (r region.Range, err error) {
	_, err = b.do(ctx, NextData, 0, func(int) (int, error) {
		r, err = backend.NextData(ctx, b.b, off)
		return 0, err
	})
	if err != nil {
		r = region.Range{}
	}
	return r, err
}

// Size is the length of the backend behind b.
func (b *Backend) Size() int64 { return b.b.Size() }

// Close ends what is held or delayed with [backend.ErrClosed] and closes the
// backend behind b, also if the Close itself is to fail.
func (b *Backend) Close() error {
	b.once.Do(func() { close(b.closed) })
	_, err := b.do(context.Background(), Close, 0, func(int) (int, error) { return 0, nil })
	if errors.Is(err, backend.ErrClosed) {
		err = nil // a Close that was held
	}
	return errors.Join(err, b.b.Close())
}
