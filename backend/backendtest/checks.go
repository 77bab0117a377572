package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
)

// sizes are those at which implementations go wrong: one byte, just around
// blocks and chunks, and multiples of nothing.
var sizes = []int64{1, 7, 4095, 4096, 4097, 65536, 65537, 300_007}

var checks = []check{
	{"size", "Size is the region's length in bytes; it never changes, not even by Close.", checkSize},
	{"zeros", "Bytes never written read as zero, whatever the buffer held before.", checkZeros},
	{"read back", "A read returns what was written, at any offset and of any length.", checkReadBack},
	{"neighbours", "A write touches no byte outside its own range.", checkNeighbours},
	{"read at the end", "ReadAt fills what there is and returns io.EOF itself when the region ends before p does; at the end it is io.EOF.", checkReadEnd},
	{"read out of range", "An offset below zero or behind the end is ErrOutOfRange.", checkReadRange},
	{"write out of range", "A write that does not lie in the region is ErrOutOfRange and nothing is written.", checkWriteRange},
	{"zero length", "An operation on no bytes inside the region succeeds and changes nothing.", checkEmpty},
	{"buffers", "WriteAt does not keep or change p: the caller may reuse it at once.", checkBuffers},
	{"cancelled", "With a cancelled context an operation either does its work or returns the context's error; it keeps no buffer.", checkCancelled},
	{"sync", "Sync returns nil when every write is durable, also when there was none, and changes no byte.", checkSync},
	{"closed", "After Close every operation returns ErrClosed; closing twice is harmless.", checkClosed},
	{"close waits", "Close waits for operations in flight: afterwards none uses its buffer.", checkCloseWaits},
	{"concurrent writers", "Concurrent writes to disjoint ranges are all kept, also inside one chunk.", checkWriters},
	{"reads beside writes", "A read sees no change in bytes that nobody writes, whatever is written beside them.", checkReadsBesideWrites},
	{"model", "Any sequence of operations acts like the same on a slice of bytes.", checkModel},
	{"zero", "After Zero the range reads as zeros and no other byte changed; a range outside the region is ErrOutOfRange.", checkZero},
	{"discard", "After Discard the range reads as zeros and no other byte changed; a range outside the region is ErrOutOfRange.", checkDiscard},
	{"next data", "NextData misses no byte that is not zero, moves forward, stays in the region, and ends with io.EOF.", checkNextData},
	{"read vec", "ReadVec fills each piece whole or fails; a piece that does not lie in the region is ErrOutOfRange.", checkReadVec},
	{"file", "A Filer's file holds the region's bytes at the same offsets.", checkFile},
}

func checkSize(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		for _, when := range []string{"after opening", "after a write", "after Close"} {
			switch when {
			case "after a write":
				if err := write(ctx, b, []byte{1}, size-1); err != nil {
					return err
				}
			case "after Close":
				if err := b.Close(); err != nil {
					return fmt.Errorf("Close() = %v; want nil", err)
				}
			}
			if got := b.Size(); got != size {
				return fmt.Errorf("Size() = %d %s; want %d", got, when, size)
			}
		}
	}
	return nil
}

func checkZeros(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		if err := read(ctx, b, make([]byte, size), 0); err != nil {
			return err
		}
		// A write makes storage for the bytes around it: those are zero too.
		model := make([]byte, size)
		for range 4 {
			off := e.rand.Int64N(size)
			model[off] = 0x77
			if err := write(ctx, b, []byte{0x77}, off); err != nil {
				return err
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after one byte was written at %d: %w", off, err)
			}
		}
		// Short reads of bytes near written ones meet pooled buffers.
		for range 8 {
			off, n := e.span(size, 5000)
			if err := read(ctx, b, model[off:off+n], off); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkReadBack(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		whole := e.bytes(int(size))
		if err := write(ctx, b, whole, 0); err != nil {
			return err
		}
		if err := read(ctx, b, whole, 0); err != nil {
			return err
		}
		for range 16 {
			off, n := e.span(size, size)
			if err := read(ctx, b, whole[off:off+n], off); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkNeighbours(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		model := e.bytes(int(size))
		if err := write(ctx, b, model, 0); err != nil {
			return err
		}
		for range 8 {
			off, n := e.span(size, 10_000)
			p := e.bytes(int(n))
			copy(model[off:], p)
			if err := write(ctx, b, p, off); err != nil {
				return err
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after WriteAt(off=%d, len=%d): %w", off, n, err)
			}
		}
	}
	return nil
}

func checkReadEnd(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		whole := e.bytes(int(size))
		if err := write(ctx, b, whole, 0); err != nil {
			return err
		}
		if err := readEnd(ctx, b, whole); err != nil {
			return err
		}
	}
	return nil
}

func readEnd(ctx context.Context, b backend.Backend, whole []byte) error {
	size := int64(len(whole))
	for _, off := range []int64{size, size - 1, max(0, size-4096), size / 2, 0} {
		for _, beyond := range []int64{1, 511, 70_000} {
			p := dirtied(int(size - off + beyond))
			n, err := b.ReadAt(ctx, p, off)
			if int64(n) != size-off || err != io.EOF {
				return fmt.Errorf("ReadAt(off=%d, len=%d) of %d bytes = %d, %v; want %d, EOF", off, len(p), size, n, err, size-off)
			}
			if err := same(p[:n], whole[off:], fmt.Sprintf("ReadAt(off=%d, len=%d)", off, len(p)), off); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkReadRange(ctx context.Context, e *env) error {
	for _, size := range sizes {
		if err := readRange(ctx, e.open(size)); err != nil {
			return err
		}
	}
	return nil
}

func readRange(ctx context.Context, b backend.Backend) error {
	size := b.Size()
	for _, off := range []int64{-1, -size, -4096, math.MinInt64, size + 1, size + 4096, math.MaxInt64 - 9, math.MaxInt64} {
		for _, n := range []int{0, 1, 10, 5000} {
			p := make([]byte, n)
			k, err := b.ReadAt(ctx, p, off)
			if err := refused(fmt.Sprintf("ReadAt(off=%d, len=%d) of %d bytes", off, n, size), k, err, backend.ErrOutOfRange); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkWriteRange(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		model := e.bytes(int(size))
		if err := write(ctx, b, model, 0); err != nil {
			return err
		}
		for _, r := range [][2]int64{
			{size, 1}, {size - 1, 2}, {0, size + 1}, {size / 2, size + 1}, {size + 1, 0}, {size + 1, 1}, {size + 70_000, 10},
			{-1, 0}, {-1, 1}, {-1, 2}, {-size, size}, {math.MinInt64, 1}, {math.MaxInt64, 1}, {math.MaxInt64 - 4, 10},
		} {
			p := dirtied(int(r[1]))
			n, err := b.WriteAt(ctx, p, r[0])
			if err := refused(fmt.Sprintf("WriteAt(off=%d, len=%d) of %d bytes", r[0], r[1], size), n, err, backend.ErrOutOfRange); err != nil {
				return err
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after the refused WriteAt(off=%d, len=%d): %w", r[0], r[1], err)
			}
		}
		if got := b.Size(); got != size {
			return fmt.Errorf("Size() = %d after refused writes; want %d", got, size)
		}
	}
	return nil
}

func checkEmpty(ctx context.Context, e *env) error {
	for _, size := range []int64{1, 4097} {
		b := e.open(size)
		model := e.bytes(int(size))
		if err := write(ctx, b, model, 0); err != nil {
			return err
		}
		for _, off := range []int64{0, size / 2, size} {
			for _, p := range [][]byte{nil, {}} {
				if n, err := b.ReadAt(ctx, p, off); n != 0 || err != nil && !(err == io.EOF && off == size) {
					return fmt.Errorf("ReadAt(off=%d, len=0) = %d, %v; want 0, nil", off, n, err)
				}
				if n, err := b.WriteAt(ctx, p, off); n != 0 || err != nil {
					return fmt.Errorf("WriteAt(off=%d, len=0) = %d, %v; want 0, nil", off, n, err)
				}
			}
		}
		if err := read(ctx, b, model, 0); err != nil {
			return err
		}
	}
	return nil
}

func checkBuffers(ctx context.Context, e *env) error {
	const size = 150_001
	b := e.open(size)
	model := make([]byte, size)
	buf := make([]byte, 40_000)
	for range 16 {
		off, n := e.span(size, int64(len(buf)))
		p := buf[:n]
		copy(p, e.bytes(int(n)))
		copy(model[off:], p)
		if err := write(ctx, b, p, off); err != nil {
			return err
		}
		for i := range p {
			p[i] = dirty
		}
	}
	if err := b.Sync(ctx); err != nil {
		return fmt.Errorf("Sync() = %v; want nil", err)
	}
	return read(ctx, b, model, 0)
}

func checkCancelled(ctx context.Context, e *env) error {
	const size = 100_003
	b := e.open(size)
	old, next := e.bytes(size), e.bytes(size)
	if err := write(ctx, b, old, 0); err != nil {
		return err
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	verdict := func(what string, n, want int, err error) error {
		if n == want && err == nil || n >= 0 && n <= want && errors.Is(err, context.Canceled) {
			return nil
		}
		return fmt.Errorf("%s with a cancelled context = %d, %v; want all done, or %v", what, n, err, context.Canceled)
	}
	p := dirtied(size)
	n, err := b.ReadAt(gone, p, 0)
	if err := verdict("ReadAt", n, size, err); err != nil {
		return err
	}
	if err := same(p[:n], old[:n], "ReadAt with a cancelled context", 0); err != nil {
		return err
	}
	if n, err = b.WriteAt(gone, next, 0); n < size {
		if err := verdict("WriteAt", n, size, err); err != nil {
			return err
		}
	}
	if err := b.Sync(gone); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("Sync with a cancelled context = %v; want nil or %v", err, context.Canceled)
	}
	// What was cut short may be there or not, byte by byte, but nothing else.
	got := dirtied(size)
	if err := backend.ReadFull(ctx, b, got, 0); err != nil {
		return fmt.Errorf("reading after a cancelled write: %w", err)
	}
	for i := range got {
		if got[i] != next[i] && (i < n || got[i] != old[i]) {
			return fmt.Errorf("byte %d is %#02x after a cancelled write of %#02x over %#02x that reported %d bytes", i, got[i], next[i], old[i], n)
		}
	}

	// A read given up half-way must not come back to its buffer later. Close
	// waits for whatever is still running.
	var abandoned [][]byte
	for i := range 8 {
		soon, cancel := context.WithCancel(ctx)
		p := make([]byte, size)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.ReadAt(soon, p, 0)
		}()
		if i%2 == 0 {
			cancel()
		}
		<-done
		cancel()
		copy(p, next)
		abandoned = append(abandoned, p)
	}
	if err := b.Close(); err != nil {
		return fmt.Errorf("Close() = %v; want nil", err)
	}
	for _, p := range abandoned {
		if i := differ(p, next); i >= 0 {
			return fmt.Errorf("byte %d of a buffer was changed after ReadAt had returned", i)
		}
	}
	return nil
}

func checkSync(ctx context.Context, e *env) error {
	for _, size := range []int64{1, 70_001} {
		b := e.open(size)
		model := make([]byte, size)
		for i := range 3 {
			if err := b.Sync(ctx); err != nil {
				return fmt.Errorf("Sync() number %d = %v; want nil", i+1, err)
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after Sync: %w", err)
			}
			off, n := e.span(size, size)
			copy(model[off:], e.bytes(int(n)))
			if err := write(ctx, b, model[off:off+n], off); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkClosed(ctx context.Context, e *env) error {
	const size = 9000
	b := e.open(size)
	if err := write(ctx, b, e.bytes(size), 0); err != nil {
		return err
	}
	for i := range 2 {
		if err := b.Close(); err != nil {
			return fmt.Errorf("Close() number %d = %v; want nil", i+1, err)
		}
	}
	p := make([]byte, 100)
	n, err := b.WriteAt(ctx, p, 0)
	if err := refused("WriteAt after Close", n, err, backend.ErrClosed); err != nil {
		return err
	}
	return afterClose(ctx, b)
}

// afterClose wants everything but WriteAt to say ErrClosed.
func afterClose(ctx context.Context, b backend.Backend) error {
	p := make([]byte, 100)
	n, err := b.ReadAt(ctx, p, 0)
	if err := refused("ReadAt after Close", n, err, backend.ErrClosed); err != nil {
		return err
	}
	if err := refused("Sync after Close", 0, b.Sync(ctx), backend.ErrClosed); err != nil {
		return err
	}
	if z, ok := b.(backend.Zeroer); ok {
		if err := refused("Zero after Close", 0, z.Zero(ctx, 0, 10), backend.ErrClosed); err != nil {
			return err
		}
	}
	if d, ok := b.(backend.Discarder); ok {
		if err := refused("Discard after Close", 0, d.Discard(ctx, 0, 10), backend.ErrClosed); err != nil {
			return err
		}
	}
	if x, ok := b.(backend.Extenter); ok {
		_, err := x.NextData(ctx, 0)
		if err := refused("NextData after Close", 0, err, backend.ErrClosed); err != nil {
			return err
		}
	}
	if v, ok := b.(backend.VectorReader); ok {
		if err := refused("ReadVec after Close", 0, v.ReadVec(ctx, []backend.Vec{{P: p}}), backend.ErrClosed); err != nil {
			return err
		}
	}
	return nil
}

// warmReads is how many reads each reader of checkCloseWaits has done before
// Close is called.
const warmReads, closeReaders = 2, 4

func checkCloseWaits(ctx context.Context, e *env) error {
	const size = 1 << 20
	b := e.open(size)
	whole := e.bytes(size)
	if err := write(ctx, b, whole, 0); err != nil {
		return err
	}
	return closeWaits(ctx, b, whole)
}

func closeWaits(ctx context.Context, b backend.Backend, whole []byte) error {
	bufs := make([][]byte, closeReaders)
	reading := make(chan struct{}, closeReaders)
	var closed atomic.Bool
	var readers errgroup.Group
	for i := range bufs {
		bufs[i] = make([]byte, len(whole))
		readers.Go(func() error {
			for k := 0; ; k++ {
				if k == warmReads {
					reading <- struct{}{}
				}
				late := closed.Load()
				n, err := b.ReadAt(ctx, bufs[i], 0)
				if n == len(whole) && (err == nil || err == io.EOF) && !late {
					continue
				}
				if k < warmReads {
					reading <- struct{}{}
				}
				return refused("ReadAt during Close", n, err, backend.ErrClosed)
			}
		})
	}
	for range bufs {
		<-reading
	}
	closeErr := b.Close()
	closed.Store(true)
	for _, p := range bufs {
		for i := range p {
			p[i] = dirty
		}
	}
	if err := readers.Wait(); err != nil {
		return err
	}
	for _, p := range bufs {
		if i := slices.IndexFunc(p, func(c byte) bool { return c != dirty }); i >= 0 {
			return fmt.Errorf("byte %d of a buffer was read into after Close had returned", i)
		}
	}
	if closeErr != nil {
		return fmt.Errorf("Close() = %v; want nil", closeErr)
	}
	return nil
}

// stripes deals a region out to owners in turns of width bytes.
type stripes struct {
	size, width int64
	owners      int64
}

// pick is a random range inside one stripe of the owner.
func (s stripes) pick(r *rand.Rand, owner int64) (off, n int64) {
	lap := s.width * s.owners
	off = r.Int64N((s.size+lap-1)/lap)*lap + owner*s.width
	if off >= s.size {
		off = owner * s.width
	}
	room := min(s.width, s.size-off)
	lead := r.Int64N(room)
	return off + lead, 1 + r.Int64N(room-lead)
}

func checkWriters(ctx context.Context, e *env) error {
	const size, owners = 140_003, 6
	for _, width := range []int64{61, 1000, 4099} {
		b := e.open(size)
		s := stripes{size, width, owners}
		model := make([]byte, size)
		var mu sync.Mutex // guards e.rand
		var g errgroup.Group
		for owner := range int64(owners) {
			mu.Lock()
			r := rand.New(rand.NewPCG(e.rand.Uint64(), 0))
			mu.Unlock()
			g.Go(func() error {
				for range e.ops/4 + 1 {
					off, n := s.pick(r, owner)
					if r.IntN(6) == 0 {
						if err := backend.Zero(ctx, b, off, n); err != nil {
							return fmt.Errorf("zeroing [%d,%d): %w", off, off+n, err)
						}
						clear(model[off : off+n])
						continue
					}
					p := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, int(n))
					copy(model[off:], p)
					if err := write(ctx, b, p, off); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if err := read(ctx, b, model, 0); err != nil {
			return fmt.Errorf("after %d writers to disjoint ranges of at most %d bytes: %w", owners, width, err)
		}
	}
	return nil
}

func checkReadsBesideWrites(ctx context.Context, e *env) error {
	const size, width = 140_003, 700
	b := e.open(size)
	s := stripes{size, width, 4}
	model := e.bytes(size)
	if err := write(ctx, b, model, 0); err != nil {
		return err
	}
	seed := e.rand.Uint64()
	quiet, stop := context.WithCancel(ctx)
	defer stop()
	var readers, writers errgroup.Group
	for k := range uint64(2) { // owners 2 and 3 are never written
		readers.Go(func() error {
			r := rand.New(rand.NewPCG(seed, 10+k))
			for quiet.Err() == nil {
				off, n := s.pick(r, int64(2+k))
				if err := read(ctx, b, model[off:off+n], off); err != nil {
					return fmt.Errorf("while others write elsewhere: %w", err)
				}
			}
			return nil
		})
		writers.Go(func() error {
			r := rand.New(rand.NewPCG(seed, k))
			for range e.ops/2 + 1 {
				off, n := s.pick(r, int64(k))
				if err := write(ctx, b, bytes.Repeat([]byte{byte(k + 1)}, int(n)), off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := writers.Wait()
	stop()
	return errors.Join(err, readers.Wait())
}

func checkModel(ctx context.Context, e *env) error {
	for _, size := range []int64{1, 4097, 3<<20 + 12_345} {
		b := e.open(size)
		model := make([]byte, size)
		var trail []string
		for range e.ops {
			most := int64(1) << (1 + e.rand.IntN(17))
			if e.rand.IntN(20) == 0 {
				most = size
			}
			off, n := e.span(size, most)
			var err error
			var what string
			switch k := e.rand.IntN(100); {
			case k < 40:
				what = fmt.Sprintf("WriteAt(%d, %d)", off, n)
				p := bytes.Repeat(e.bytes(17), int(n)/17+1)[:n]
				copy(model[off:], p)
				err = write(ctx, b, p, off)
			case k < 80:
				what = fmt.Sprintf("ReadAt(%d, %d)", off, n)
				err = read(ctx, b, model[off:off+n], off)
			case k < 90:
				what = fmt.Sprintf("Zero(%d, %d)", off, n)
				clear(model[off : off+n])
				err = backend.Zero(ctx, b, off, n)
			case k < 96:
				what = fmt.Sprintf("Discard(%d, %d)", off, n)
				clear(model[off : off+n])
				err = backend.Discard(ctx, b, off, n)
			case k < 98:
				what = fmt.Sprintf("NextData(%d)", off)
				err = nextData(ctx, b, model, off)
			default:
				what = "Sync()"
				err = b.Sync(ctx)
			}
			trail = append(trail, what)
			if err != nil {
				return fmt.Errorf("%d operations on %d bytes, the last being %v: %w", len(trail), size, trail[max(0, len(trail)-8):], err)
			}
		}
		if err := read(ctx, b, model, 0); err != nil {
			return fmt.Errorf("after %d operations: %w", len(trail), err)
		}
	}
	return nil
}

func checkZero(ctx context.Context, e *env) error {
	return erase(ctx, e, "Zero", func(b backend.Backend) func(context.Context, int64, int64) error {
		if z, ok := b.(backend.Zeroer); ok {
			return z.Zero
		}
		return nil
	})
}

func checkDiscard(ctx context.Context, e *env) error {
	return erase(ctx, e, "Discard", func(b backend.Backend) func(context.Context, int64, int64) error {
		if d, ok := b.(backend.Discarder); ok {
			return d.Discard
		}
		return nil
	})
}

func erase(ctx context.Context, e *env, name string, ability func(backend.Backend) func(context.Context, int64, int64) error) error {
	for _, size := range sizes {
		b := e.open(size)
		do := ability(b)
		if do == nil {
			e.lacks = name
			return nil
		}
		model := e.bytes(int(size))
		if err := write(ctx, b, model, 0); err != nil {
			return err
		}
		for i := range 10 {
			off, n := e.span(size, size)
			if i == 9 {
				off, n = 0, size
			}
			clear(model[off : off+n])
			if err := do(ctx, off, n); err != nil {
				return fmt.Errorf("%s(%d, %d) = %v; want nil", name, off, n, err)
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after %s(%d, %d): %w", name, off, n, err)
			}
			off, n = e.span(size, size)
			p := e.bytes(int(n))
			copy(model[off:], p)
			if err := write(ctx, b, p, off); err != nil {
				return err
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after writing where %s had been: %w", name, err)
			}
		}
		for _, r := range [][2]int64{
			{size, 1}, {size - 1, 2}, {0, size + 1}, {size + 1, 0}, {-1, 1}, {-1, 0}, {0, -1}, {1, -1}, {0, math.MaxInt64},
			{1, math.MaxInt64}, {math.MaxInt64, math.MaxInt64}, {math.MinInt64, 1},
		} {
			err := do(ctx, r[0], r[1])
			if err := refused(fmt.Sprintf("%s(%d, %d) of %d bytes", name, r[0], r[1], size), 0, err, backend.ErrOutOfRange); err != nil {
				return err
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("after the refused %s(%d, %d): %w", name, r[0], r[1], err)
			}
		}
	}
	return nil
}

func checkNextData(ctx context.Context, e *env) error {
	for _, size := range append(sizes, 5<<20+99) {
		b := e.open(size)
		if _, ok := b.(backend.Extenter); !ok {
			e.lacks = "NextData"
			return nil
		}
		model := make([]byte, size)
		for range 4 {
			if err := nextData(ctx, b, model, e.rand.Int64N(size)); err != nil {
				return err
			}
			off, n := e.span(size, 100_000)
			copy(model[off:], e.bytes(int(n)))
			if err := write(ctx, b, model[off:off+n], off); err != nil {
				return err
			}
			if err := nextData(ctx, b, model, 0); err != nil {
				return err
			}
		}
		if err := backend.Discard(ctx, b, 0, size/2); err != nil {
			return fmt.Errorf("Discard(0, %d) = %v; want nil", size/2, err)
		}
		clear(model[:size/2])
		if err := nextData(ctx, b, model, 0); err != nil {
			return err
		}
	}
	return nil
}

// nextData walks from off to the end.
func nextData(ctx context.Context, b backend.Backend, model []byte, off int64) error {
	size := int64(len(model))
	for at := off; ; {
		r, err := backend.NextData(ctx, b, at)
		end := size
		if err == nil {
			end = r.Off
		} else if err != io.EOF {
			return fmt.Errorf("NextData(%d) = %v, %v; want a range or EOF", at, r, err)
		}
		if err == nil && (r.Off < at || r.Len <= 0 || r.Off >= size || r.Len > size-r.Off) {
			return fmt.Errorf("NextData(%d) = %v; want a range in [%d,%d)", at, r, at, size)
		}
		if i := slices.IndexFunc(model[at:end], func(c byte) bool { return c != 0 }); i >= 0 {
			return fmt.Errorf("NextData(%d) = %v, %v; but byte %d is not zero", at, r, err, at+int64(i))
		}
		if err == io.EOF {
			break
		}
		at = r.End()
	}
	if r, err := backend.NextData(ctx, b, size); err != io.EOF {
		return fmt.Errorf("NextData(%d) = %v, %v at the end; want EOF", size, r, err)
	}
	for _, off := range []int64{-1, size + 1, math.MaxInt64, math.MinInt64} {
		_, err := backend.NextData(ctx, b, off)
		if err := refused(fmt.Sprintf("NextData(%d) of %d bytes", off, size), 0, err, backend.ErrOutOfRange); err != nil {
			return err
		}
	}
	return nil
}

func checkReadVec(ctx context.Context, e *env) error {
	for _, size := range sizes {
		b := e.open(size)
		model := make([]byte, size)
		off, n := e.span(size, size)
		copy(model[off:], e.bytes(int(n)))
		if err := write(ctx, b, model[off:off+n], off); err != nil {
			return err
		}
		if has, err := readVec(ctx, e, b, model); err != nil {
			return err
		} else if !has {
			e.lacks = "ReadVec"
			return nil
		}
	}
	return nil
}

func readVec(ctx context.Context, e *env, b backend.Backend, model []byte) (has bool, err error) {
	v, ok := b.(backend.VectorReader)
	if !ok {
		return false, nil
	}
	size := int64(len(model))
	for count := range 12 {
		vec := make([]backend.Vec, count)
		for i := range vec {
			off, n := e.span(size, 20_000)
			vec[i] = backend.Vec{P: dirtied(int(n)), Off: off}
		}
		if err := v.ReadVec(ctx, vec); err != nil {
			return true, fmt.Errorf("ReadVec of %d pieces = %v; want nil", count, err)
		}
		for i, x := range vec {
			what := fmt.Sprintf("piece %d of ReadVec (off=%d, len=%d)", i, x.Off, len(x.P))
			if err := same(x.P, model[x.Off:x.Off+int64(len(x.P))], what, x.Off); err != nil {
				return true, err
			}
		}
	}
	for _, r := range [][2]int64{{size, 1}, {size - 1, 2}, {0, size + 1}, {-1, 1}, {size + 1, 1}, {math.MaxInt64, 9}, {math.MinInt64, 1}} {
		vec := []backend.Vec{{P: make([]byte, 1)}, {P: make([]byte, r[1]), Off: r[0]}}
		err := v.ReadVec(ctx, vec)
		if err := refused(fmt.Sprintf("ReadVec with a piece (off=%d, len=%d) of %d bytes", r[0], r[1], size), 0, err, backend.ErrOutOfRange); err != nil {
			return true, err
		}
	}
	return true, nil
}

func checkFile(ctx context.Context, e *env) error {
	for _, size := range []int64{1, 70_001} {
		b := e.open(size)
		f, ok := b.(backend.Filer)
		if !ok || f.File() == nil {
			e.lacks = "File"
			return nil
		}
		model := make([]byte, size)
		off, n := e.span(size, size)
		copy(model[off:], e.bytes(int(n)))
		if err := write(ctx, b, model[off:off+n], off); err != nil {
			return err
		}
		p := dirtied(int(size))
		if n, err := f.File().ReadAt(p, 0); int64(n) != size {
			return fmt.Errorf("the file's ReadAt(off=0, len=%d) = %d, %v; want %d", size, n, err, size)
		}
		if err := same(p, model, "the file", 0); err != nil {
			return err
		}
	}
	return nil
}

var persistentChecks = []check{
	{"reopen", "What was written before Sync and Close is there after opening again, and nothing else is.", checkReopen},
	{"crash", "What was written before Sync is there after a crash, in which nobody calls Close.", checkCrash},
}

func checkReopen(ctx context.Context, e *env) error {
	for _, size := range []int64{1, 4097, 300_007} {
		open := e.storage(size)
		model := make([]byte, size)
		for round := range 3 {
			b := e.keep(open())
			if got := b.Size(); got != size {
				return fmt.Errorf("Size() = %d on opening number %d; want %d", got, round+1, size)
			}
			if err := read(ctx, b, model, 0); err != nil {
				return fmt.Errorf("on opening number %d: %w", round+1, err)
			}
			for range 5 {
				off, n := e.span(size, size/3+1)
				copy(model[off:], e.bytes(int(n)))
				if err := write(ctx, b, model[off:off+n], off); err != nil {
					return err
				}
			}
			off, n := e.span(size, size/2)
			clear(model[off : off+n])
			if err := backend.Zero(ctx, b, off, n); err != nil {
				return fmt.Errorf("zeroing [%d,%d): %w", off, off+n, err)
			}
			if err := b.Sync(ctx); err != nil {
				return fmt.Errorf("Sync() = %v; want nil", err)
			}
			if err := b.Close(); err != nil {
				return fmt.Errorf("Close() = %v; want nil", err)
			}
		}
	}
	return nil
}

func checkCrash(ctx context.Context, e *env) error {
	const size = 200_003
	open := e.storage(size)
	model := make([]byte, size)
	for round := range 3 {
		b := e.keep(open()) // the one before is left open, unused
		if err := read(ctx, b, model, 0); err != nil {
			return fmt.Errorf("on opening number %d, without Close in between: %w", round+1, err)
		}
		off, n := e.span(size, size)
		copy(model[off:], e.bytes(int(n)))
		if err := write(ctx, b, model[off:off+n], off); err != nil {
			return err
		}
		if err := b.Sync(ctx); err != nil {
			return fmt.Errorf("Sync() = %v; want nil", err)
		}
	}
	return nil
}

var readOnlyChecks = []check{
	{"read-only reads", "A read returns what is stored, follows io.ReaderAt at the end, and refuses offsets outside the region.", checkFixedReads},
	{"read-only writes", "Whatever would change a read-only region is ErrReadOnly and changes nothing.", checkFixedWrites},
	{"read-only closed", "After Close every operation returns ErrClosed; closing twice is harmless; Close waits for operations in flight.", checkFixedClosed},
}

func checkFixedReads(ctx context.Context, e *env) error {
	for _, size := range sizes {
		content := e.bytes(int(size))
		off, n := e.span(size, size)
		clear(content[off : off+n])
		b := e.keep(e.fixed(content))
		if got := b.Size(); got != size {
			return fmt.Errorf("Size() = %d; want %d", got, size)
		}
		for range 12 {
			off, n := e.span(size, size)
			if err := read(ctx, b, content[off:off+n], off); err != nil {
				return err
			}
		}
		if err := readEnd(ctx, b, content); err != nil {
			return err
		}
		if err := readRange(ctx, b); err != nil {
			return err
		}
		if err := nextData(ctx, b, content, 0); err != nil {
			return err
		}
		if _, err := readVec(ctx, e, b, content); err != nil {
			return err
		}
	}
	return nil
}

func checkFixedWrites(ctx context.Context, e *env) error {
	const size = 70_001
	content := e.bytes(size)
	b := e.keep(e.fixed(content))
	n, err := b.WriteAt(ctx, []byte{1, 2, 3}, 10)
	if err := refused("WriteAt of a read-only region", n, err, backend.ErrReadOnly); err != nil {
		return err
	}
	if err := refused("Zero of a read-only region", 0, backend.Zero(ctx, b, 5, 100), backend.ErrReadOnly); err != nil {
		return err
	}
	if err := refused("Discard of a read-only region", 0, backend.Discard(ctx, b, 5, 100), backend.ErrReadOnly); err != nil {
		return err
	}
	if err := b.Sync(ctx); err != nil {
		return fmt.Errorf("Sync() of a read-only region = %v; want nil", err)
	}
	return read(ctx, b, content, 0)
}

func checkFixedClosed(ctx context.Context, e *env) error {
	const size = 256 << 10
	content := e.bytes(size)
	b := e.keep(e.fixed(content))
	if err := closeWaits(ctx, b, content); err != nil {
		return err
	}
	return afterClose(ctx, b)
}
