package mem

import (
	"context"
	"fmt"
	"io"
	"math/bits"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/internal/gate"
	"github.com/telemap/telemap/region"
)

var (
	_ backend.Backend      = (*Store)(nil)
	_ backend.Zeroer       = (*Store)(nil)
	_ backend.Discarder    = (*Store)(nil)
	_ backend.Extenter     = (*Store)(nil)
	_ backend.VectorReader = (*Store)(nil)
)

// A granule is the unit in which a Store knows whether something was written.
// Reads of other granules are filled with zeros without touching the mapping,
// which would cost page tables. There are at most maxGranules, so that the
// bookkeeping stays within 4 MiB.
const (
	minGranuleShift = 16
	maxGranules     = 1 << 25
)

// A Store is a region in memory. Make one with [New].
type Store struct {
	size int64
	gate gate.Gate

	data   []byte // nil if err
	err    error  // why there is no memory
	shift  uint   // a granule is 1<<shift bytes
	stored *region.Bitmap
}

// New makes a region of size bytes, all zero. It takes address space only. If
// even that cannot be had, every write returns [backend.ErrNoSpace]. Like make,
// New panics if size is not positive: a size from a user is to be checked before.
func New(size int64) *Store {
	if size <= 0 {
		panic(fmt.Sprintf("mem: region size is %d bytes: it must be positive", size))
	}
	s := &Store{size: size}
	s.shift = max(minGranuleShift, uint(bits.Len64(uint64((size-1)/maxGranules))))
	s.stored = region.NewBitmap(s.granule(size-1) + 1)
	s.data, s.err = allocate(size)
	return s
}

func (s *Store) granule(off int64) region.ChunkIndex { return region.ChunkIndex(off >> s.shift) }

// Size is the region's length in bytes.
func (s *Store) Size() int64 { return s.size }

// ReadAt copies from memory. It takes no lock and allocates nothing.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.enter(ctx); err != nil {
		return 0, fail("read", off, int64(len(p)), err)
	}
	defer s.gate.Leave()
	q, end := backend.Clip(p, off, s.size)
	s.read(q, off)
	if end != nil && end != io.EOF {
		end = fail("read", off, int64(len(p)), end)
	}
	return len(q), end
}

// read fills p, which lies in the region.
func (s *Store) read(p []byte, off int64) {
	for len(p) > 0 {
		g := s.granule(off)
		there := s.stored.Test(g)
		// A run of alike granules is one copy.
		n := s.room(g, off, len(p))
		for n < len(p) && s.stored.Test(s.granule(off+int64(n))) == there {
			n += s.room(s.granule(off+int64(n)), off+int64(n), len(p)-n)
		}
		if there {
			copy(p[:n], s.data[off:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// room is how many of n bytes from off lie in granule g.
func (s *Store) room(g region.ChunkIndex, off int64, n int) int {
	return int(min(int64(n), int64(g+1)<<s.shift-off))
}

// WriteAt copies into memory. It takes no lock and allocates nothing from the
// Go heap.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.enter(ctx); err != nil {
		return 0, fail("write", off, int64(len(p)), err)
	}
	defer s.gate.Leave()
	n := int64(len(p))
	switch {
	case !region.Check(off, n, s.size):
		return 0, fail("write", off, n, backend.ErrOutOfRange)
	case n == 0:
		return 0, nil
	case s.err != nil:
		return 0, fail("write", off, n, s.err)
	}
	copy(s.data[off:], p)
	// Marked after the copy: a Zero that clears the mark in between then drops the
	// bytes too. The other order could leave bytes behind a cleared mark, to
	// reappear with the next write to the granule.
	for g := s.granule(off); g <= s.granule(off+n-1); g++ {
		s.stored.Set(g)
	}
	return len(p), nil
}

// Zero gives the memory of whole granules back and clears the rest.
func (s *Store) Zero(ctx context.Context, off, n int64) error {
	return s.erase(ctx, "zero", off, n)
}

// Discard is the same as Zero.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	return s.erase(ctx, "discard", off, n)
}

func (s *Store) erase(ctx context.Context, op string, off, n int64) error {
	if err := s.enter(ctx); err != nil {
		return fail(op, off, n, err)
	}
	defer s.gate.Leave()
	if !region.Check(off, n, s.size) {
		return fail(op, off, n, backend.ErrOutOfRange)
	}
	for end := off + n; off < end; {
		g := s.stored.NextSet(s.granule(off))
		if g == s.stored.Len() {
			break
		}
		start := int64(g) << s.shift
		off = max(off, start)
		if off >= end {
			break
		}
		if off > start || !s.holds(g, off, end) {
			k := int64(s.room(g, off, int(end-off)))
			clear(s.data[off : off+k])
			off += k
			continue
		}
		// Whole granules, as many as follow each other, go in one system call.
		next := g
		for next < s.stored.Len() && s.holds(next, int64(next)<<s.shift, end) && s.stored.Clear(next) {
			next++
		}
		stop := min(int64(next)<<s.shift, s.size)
		if stop <= off {
			continue // another Zero cleared it first
		}
		if err := release(s.data[off:stop]); err != nil {
			return fail(op, off, stop-off, err)
		}
		off = stop
	}
	return nil
}

// holds reports whether [off,end) holds granule g from off, its start, on.
func (s *Store) holds(g region.ChunkIndex, off, end int64) bool {
	return end == s.size || int64(g+1)<<s.shift <= end && off < end
}

// NextData is the next run of granules that were written and not zeroed since.
func (s *Store) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := s.enter(ctx); err != nil {
		return region.Range{}, fail("seek", off, 0, err)
	}
	defer s.gate.Leave()
	if off < 0 || off > s.size {
		return region.Range{}, fail("seek", off, 0, backend.ErrOutOfRange)
	}
	g := s.stored.NextSet(s.granule(off))
	if off == s.size || g == s.stored.Len() {
		return region.Range{}, io.EOF
	}
	off = max(off, int64(g)<<s.shift)
	end := min(int64(s.stored.NextClear(g))<<s.shift, s.size)
	if end <= off { // the granule was zeroed just now: it may be named all the same
		end = min(int64(g+1)<<s.shift, s.size)
	}
	return region.Range{Off: off, Len: end - off}, nil
}

// ReadVec copies one piece after the other.
func (s *Store) ReadVec(ctx context.Context, v []backend.Vec) error {
	if err := s.enter(ctx); err != nil {
		return fail("read", 0, 0, err)
	}
	defer s.gate.Leave()
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), s.size) {
			return fail("read", x.Off, int64(len(x.P)), backend.ErrOutOfRange)
		}
		s.read(x.P, x.Off)
	}
	return nil
}

// Sync does nothing: memory is as durable as it gets.
func (s *Store) Sync(ctx context.Context) error {
	if err := s.enter(ctx); err != nil {
		return fail("sync", 0, 0, err)
	}
	s.gate.Leave()
	return nil
}

// Close waits for operations in flight and gives the memory back.
func (s *Store) Close() error {
	if !s.gate.Shut() || s.data == nil {
		return nil
	}
	data := s.data
	s.data = nil
	if err := free(data); err != nil {
		return fail("close", 0, 0, err)
	}
	return nil
}

// enter returns nil if the operation may go on; it must then leave the gate.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.gate.Enter() {
		return backend.ErrClosed
	}
	return nil
}

func fail(op string, off, n int64, err error) error {
	return &backend.OpError{Op: op, Name: "mem", Off: off, Len: n, Err: err}
}
