package limit

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// Options says what the limits are. Zero means none.
type Options struct {
	// ReadRate and WriteRate are in bytes per second.
	ReadRate, WriteRate int64
	// Burst is how many bytes may move at once after a pause, each way. Zero
	// means those of a tenth of a second.
	Burst int64
	// Concurrency is how many operations are passed on at a time.
	Concurrency int
}

// Stats counts since the backend was made.
type Stats struct {
	Waits  int64         // operations that had to wait for a rate or their turn
	Waited time.Duration // how long they did, all together
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// A Backend is another one with limits. Make one with [New].
type Backend struct {
	b           backend.Backend
	read, write *bucket       // nil without a rate
	turns       chan struct{} // nil without a limit

	waits, waited atomic.Int64

	closed chan struct{}
	once   sync.Once
}

// New makes a backend that passes operations on to b within limits. Closing it
// closes b.
func New(b backend.Backend, o Options) *Backend {
	l := &Backend{b: b, read: newBucket(o.ReadRate, o.Burst), write: newBucket(o.WriteRate, o.Burst), closed: make(chan struct{})}
	if o.Concurrency > 0 {
		l.turns = make(chan struct{}, o.Concurrency)
	}
	return l
}

// Unwrap is the backend behind b.
func (b *Backend) Unwrap() backend.Backend { return b.b }

// Stats is a snapshot of the counters.
func (b *Backend) Stats() Stats { return Stats{b.waits.Load(), time.Duration(b.waited.Load())} }

// A bucket says when bytes may move. It holds tokens in the form of the moment
// at which it would be full again, so that nothing has to refill it.
type bucket struct {
	rate  float64       // bytes per second
	burst time.Duration // how long the rate takes for the burst

	mu   sync.Mutex
	full time.Time
}

func newBucket(rate, burst int64) *bucket {
	if rate <= 0 {
		return nil
	}
	b := &bucket{rate: float64(rate), burst: 100 * time.Millisecond}
	if burst > 0 {
		b.burst = b.cost(burst)
	}
	return b
}

// cost is how long n bytes take.
func (b *bucket) cost(n int64) time.Duration {
	s := float64(n) / b.rate * float64(time.Second)
	return time.Duration(min(s, float64(math.MaxInt64/4)))
}

// take pays for n bytes and says how long to wait before they move.
func (b *bucket) take(now time.Time, n int64) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(b.cost(n))
	return max(0, b.full.Sub(now)-b.burst)
}

// giveBack undoes a take whose bytes did not move.
func (b *bucket) giveBack(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.full = b.full.Add(-b.cost(n))
}

// enter waits until an operation of n bytes may go on. It must then leave.
func (b *Backend) enter(ctx context.Context, rate *bucket, n int64) error {
	if rate != nil && n > 0 {
		if wait := rate.take(time.Now(), n); wait > 0 {
			if err := b.sleep(ctx, wait); err != nil {
				rate.giveBack(n)
				return err
			}
		}
	}
	if b.turns == nil {
		return nil
	}
	select {
	case b.turns <- struct{}{}:
		return nil
	default:
	}
	defer b.count(time.Now())
	select {
	case b.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		return backend.ErrClosed
	}
}

func (b *Backend) leave() {
	if b.turns != nil {
		<-b.turns
	}
}

func (b *Backend) sleep(ctx context.Context, d time.Duration) error {
	defer b.count(time.Now())
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

// count records a wait that began at start.
func (b *Backend) count(start time.Time) {
	b.waits.Add(1)
	b.waited.Add(int64(time.Since(start)))
}

// payable is how many of n bytes from off on lie in the region: a request for
// more than that moves no more.
func (b *Backend) payable(off, n int64) int64 {
	if off < 0 || off > b.b.Size() {
		return 0
	}
	return max(0, min(n, b.b.Size()-off))
}

// ReadAt reads from the backend behind b.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := b.enter(ctx, b.read, b.payable(off, int64(len(p)))); err != nil {
		return 0, err
	}
	defer b.leave()
	return b.b.ReadAt(ctx, p, off)
}

// WriteAt writes to the backend behind b.
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := b.enter(ctx, b.write, b.payable(off, int64(len(p)))); err != nil {
		return 0, err
	}
	defer b.leave()
	return b.b.WriteAt(ctx, p, off)
}

// ReadVec reads from the backend behind b, as one operation.
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	var n int64
	for _, x := range v {
		n += b.payable(x.Off, int64(len(x.P)))
	}
	if err := b.enter(ctx, b.read, n); err != nil {
		return err
	}
	defer b.leave()
	return backend.ReadVec(ctx, b.b, v)
}

// Zero zeroes a range of the backend behind b. That costs bytes only if b has to
// write them.
func (b *Backend) Zero(ctx context.Context, off, n int64) error {
	cost := b.payable(off, n)
	if _, ok := b.b.(backend.Zeroer); ok {
		cost = 0
	}
	if err := b.enter(ctx, b.write, cost); err != nil {
		return err
	}
	defer b.leave()
	return backend.Zero(ctx, b.b, off, n)
}

// Discard discards a range of the backend behind b. That costs bytes only if b
// has to write them.
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	cost := b.payable(off, n)
	_, discards := b.b.(backend.Discarder)
	if _, zeroes := b.b.(backend.Zeroer); discards || zeroes {
		cost = 0
	}
	if err := b.enter(ctx, b.write, cost); err != nil {
		return err
	}
	defer b.leave()
	return backend.Discard(ctx, b.b, off, n)
}

// NextData asks the backend behind b.
func (b *Backend) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := b.enter(ctx, nil, 0); err != nil {
		return region.Range{}, err
	}
	defer b.leave()
	return backend.NextData(ctx, b.b, off)
}

// Sync syncs the backend behind b.
func (b *Backend) Sync(ctx context.Context) error {
	if err := b.enter(ctx, nil, 0); err != nil {
		return err
	}
	defer b.leave()
	return b.b.Sync(ctx)
}

// Size is the length of the backend behind b.
func (b *Backend) Size() int64 { return b.b.Size() }

// Close ends waits with [backend.ErrClosed] and closes the backend behind b.
func (b *Backend) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.b.Close()
}
