package trace

import (
	"context"
	"io"
	"log/slog"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// Options tunes a [Backend]. The zero value is a good start.
type Options struct {
	// Logger gets every operation at debug level. Nil discards.
	Logger *slog.Logger
	// Name is what log records call the region. It must not contain credentials.
	Name string
}

// Stats is what happened since the backend was made.
type Stats struct {
	Read, Write, Sync, Zero, Discard, NextData OpStats // ReadVec counts as a Read
}

// OpStats is what happened to one kind of operation.
type OpStats struct {
	Count  int64         // operations that returned
	Errors int64         // of those, how many failed; the end of the region is no failure
	Bytes  int64         // bytes read, written, zeroed or discarded
	Active int64         // operations that have not returned
	Time   time.Duration // of all operations together
	// Buckets counts operations by how long they took: those in Buckets[i] took
	// at most Bound(i) and more than Bound(i-1).
	Buckets [NumBuckets]int64
}

// NumBuckets is how many buckets a histogram has.
const NumBuckets = 28

// Bound is the longest time in bucket i: 1 µs, 2 µs, 4 µs and so on. The last
// bucket has no bound and returns 1<<63 - 1.
func Bound(i int) time.Duration {
	if i >= NumBuckets-1 {
		return 1<<63 - 1
	}
	return time.Microsecond << i
}

// Mean is the average time of an operation, or 0 if there was none.
func (s OpStats) Mean() time.Duration {
	if s.Count == 0 {
		return 0
	}
	return s.Time / time.Duration(s.Count)
}

// Quantile is a time that the part q, from 0 to 1, of the operations did not
// exceed, rounded up to a bound of the histogram.
func (s OpStats) Quantile(q float64) time.Duration {
	var total, seen int64
	for _, n := range s.Buckets {
		total += n
	}
	for i, n := range s.Buckets {
		if seen += n; n > 0 && float64(seen) >= q*float64(total) {
			return Bound(i)
		}
	}
	return 0
}

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// A Backend watches another one. Make one with [New].
type Backend struct {
	b backend.Backend
	o Options

	read, write, sync, zero, discard, next op
}

// New makes a backend that passes operations on to b. Closing it closes b.
func New(b backend.Backend, o Options) *Backend {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Backend{b: b, o: o}
}

// op counts one kind of operation.
type op struct {
	count, errors, bytes, active, time atomic.Int64
	buckets                            [NumBuckets]atomic.Int64
}

func (o *op) snapshot() OpStats {
	s := OpStats{
		Count: o.count.Load(), Errors: o.errors.Load(), Bytes: o.bytes.Load(),
		Active: o.active.Load(), Time: time.Duration(o.time.Load()),
	}
	for i := range s.Buckets {
		s.Buckets[i] = o.buckets[i].Load()
	}
	return s
}

// bucket is the first i with d <= Bound(i).
func bucket(d time.Duration) int {
	if d <= time.Microsecond {
		return 0
	}
	return min(NumBuckets-1, bits.Len64(uint64((d-1)/time.Microsecond)))
}

func (o *op) begin() time.Time {
	o.active.Add(1)
	return time.Now()
}

// end records an operation on length bytes from off, done of which were moved.
func (b *Backend) end(ctx context.Context, o *op, name string, start time.Time, off, length, done int64, err error) {
	took := time.Since(start)
	o.active.Add(-1)
	o.count.Add(1)
	o.bytes.Add(done)
	o.time.Add(int64(took))
	o.buckets[bucket(took)].Add(1)
	failed := err != nil && err != io.EOF
	if failed {
		o.errors.Add(1)
	}
	if !b.o.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := [7]slog.Attr{
		slog.String("op", name), slog.String("region", b.o.Name), slog.Int64("off", off),
		slog.Int64("len", length), slog.Int64("done", done), slog.Duration("took", took),
	}
	n := 6
	if failed {
		attrs[n] = slog.Any("err", err)
		n++
	}
	b.o.Logger.LogAttrs(ctx, slog.LevelDebug, "storage operation", attrs[:n]...)
}

// Stats is a snapshot. Operations that run meanwhile may be counted in one
// field and not yet in another.
func (b *Backend) Stats() Stats {
	return Stats{
		Read: b.read.snapshot(), Write: b.write.snapshot(), Sync: b.sync.snapshot(),
		Zero: b.zero.snapshot(), Discard: b.discard.snapshot(), NextData: b.next.snapshot(),
	}
}

// Unwrap is the backend behind b.
func (b *Backend) Unwrap() backend.Backend { return b.b }

// ReadAt reads from the backend behind b.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	start := b.read.begin()
	n, err := b.b.ReadAt(ctx, p, off)
	b.end(ctx, &b.read, "read", start, off, int64(len(p)), int64(n), err)
	return n, err
}

// WriteAt writes to the backend behind b.
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	start := b.write.begin()
	n, err := b.b.WriteAt(ctx, p, off)
	b.end(ctx, &b.write, "write", start, off, int64(len(p)), int64(n), err)
	return n, err
}

// ReadVec reads from the backend behind b; it counts as one read.
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	start := b.read.begin()
	err := backend.ReadVec(ctx, b.b, v)
	var off, n int64
	for i, x := range v {
		if i == 0 {
			off = x.Off
		}
		n += int64(len(x.P))
	}
	b.end(ctx, &b.read, "read vec", start, off, n, doneIf(err, n), err)
	return err
}

// Zero zeroes a range of the backend behind b.
func (b *Backend) Zero(ctx context.Context, off, n int64) error {
	start := b.zero.begin()
	err := backend.Zero(ctx, b.b, off, n)
	b.end(ctx, &b.zero, "zero", start, off, n, doneIf(err, n), err)
	return err
}

// Discard discards a range of the backend behind b.
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	start := b.discard.begin()
	err := backend.Discard(ctx, b.b, off, n)
	b.end(ctx, &b.discard, "discard", start, off, n, doneIf(err, n), err)
	return err
}

func doneIf(err error, n int64) int64 {
	if err != nil {
		return 0
	}
	return n
}

// NextData asks the backend behind b.
func (b *Backend) NextData(ctx context.Context, off int64) (region.Range, error) {
	start := b.next.begin()
	r, err := backend.NextData(ctx, b.b, off)
	b.end(ctx, &b.next, "next data", start, off, 0, 0, err)
	return r, err
}

// Sync syncs the backend behind b.
func (b *Backend) Sync(ctx context.Context) error {
	start := b.sync.begin()
	err := b.b.Sync(ctx)
	b.end(ctx, &b.sync, "sync", start, 0, 0, 0, err)
	return err
}

// Size is the length of the backend behind b.
func (b *Backend) Size() int64 { return b.b.Size() }

// Close closes the backend behind b. The counters stay.
func (b *Backend) Close() error { return b.b.Close() }
