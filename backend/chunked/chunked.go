package chunked

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/internal/gate"
	"github.com/telemap/telemap/region"
)

var (
	_ backend.Backend      = (*Backend)(nil)
	_ backend.Zeroer       = (*Backend)(nil)
	_ backend.Discarder    = (*Backend)(nil)
	_ backend.Extenter     = (*Backend)(nil)
	_ backend.VectorReader = (*Backend)(nil)
)

// Options tunes a [Backend]. The zero value is a good start.
type Options struct {
	// Name is what errors call the region. It must not contain credentials.
	Name string
	// Workers is how many chunks one operation reads or writes at a time. Zero
	// means 16.
	Workers int
	// ReadOnly refuses writes.
	ReadOnly bool
}

// stripes is how many locks there are. Chunk i takes lock i mod stripes, so the
// chunks that one big write handles at a time never share one.
const stripes = 256

// A Backend stores a region in chunks. Make one with [New].
type Backend struct {
	s     Store
	g     region.Geometry
	o     Options
	gate  gate.Gate
	locks [stripes]lock
	// buffers are *[]byte of one chunk.
	buffers sync.Pool
	zeros   []byte

	// What s can do besides; nil if it cannot.
	deleter Deleter
	parts   PartWriter
	batch   BatchReader
	lister  Lister
}

// A lock is held by whoever's value is in it, unlike a mutex one can stop
// waiting for it.
type lock chan struct{}

// New makes a backend of a store whose chunks are those of g. Closing it closes
// the store.
func New(s Store, g region.Geometry, o Options) *Backend {
	if o.Workers <= 0 {
		o.Workers = 16
	}
	b := &Backend{s: s, g: g, o: o}
	for i := range b.locks {
		b.locks[i] = make(lock, 1)
	}
	b.buffers.New = func() any {
		p := make([]byte, min(g.ChunkSize(), g.Size()))
		return &p
	}
	b.zeros = make([]byte, min(g.ChunkSize(), g.Size()))
	b.deleter, _ = s.(Deleter)
	b.parts, _ = s.(PartWriter)
	b.batch, _ = s.(BatchReader)
	b.lister, _ = s.(Lister)
	return b
}

// Geometry says how the region is cut into chunks.
func (b *Backend) Geometry() region.Geometry { return b.g }

// ChunkSize is the length of a chunk in bytes.
func (b *Backend) ChunkSize() int64 { return b.g.ChunkSize() }

// ReadOnly says whether writes are refused.
func (b *Backend) ReadOnly() bool { return b.o.ReadOnly }

// Size is the region's length in bytes.
func (b *Backend) Size() int64 { return b.g.Size() }

// ReadAt reads the chunks that p touches, several at a time. It waits for no
// write.
func (b *Backend) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := b.enter(ctx); err != nil {
		return 0, b.fail("read", off, int64(len(p)), err)
	}
	defer b.gate.Leave()
	q, end := backend.Clip(p, off, b.g.Size())
	n, err := b.read(ctx, q, off)
	if err == nil {
		if err = end; err == nil || err == io.EOF {
			return n, err
		}
	}
	return n, b.fail("read", off, int64(len(p)), err)
}

// read fills p, which lies in the region.
func (b *Backend) read(ctx context.Context, p []byte, off int64) (int, error) {
	r := region.Range{Off: off, Len: int64(len(p))}
	if b.batch != nil && !b.inOneChunk(r) {
		if err := b.readParts(ctx, b.cut(nil, p, off)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if b.inOneChunk(r) { // the common case needs no closure
		if err := b.readOne(ctx, b.g.Index(off), p, off); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	n, err := b.each(ctx, r, func(ctx context.Context, i region.ChunkIndex, part region.Range) error {
		return b.readOne(ctx, i, p[part.Off-off:][:part.Len], part.Off)
	})
	return int(n), err
}

func (b *Backend) inOneChunk(r region.Range) bool {
	return r.Len > 0 && b.g.Index(r.Off) == b.g.Index(r.End()-1)
}

// readOne fills p, which lies in chunk i, from byte off of the region on.
func (b *Backend) readOne(ctx context.Context, i region.ChunkIndex, p []byte, off int64) error {
	n, err := b.s.ReadChunk(ctx, i, p, off-b.g.Offset(i))
	if err != nil {
		return err
	}
	clear(p[n:])
	return nil
}

// cut appends the parts of the chunks that p from off on touches.
func (b *Backend) cut(parts []Part, p []byte, off int64) []Part {
	for len(p) > 0 {
		i := b.g.Index(off)
		n := min(int64(len(p)), b.g.Offset(i+1)-off)
		parts = append(parts, Part{I: i, P: p[:n:n], Off: off - b.g.Offset(i)})
		p, off = p[n:], off+n
	}
	return parts
}

func (b *Backend) readParts(ctx context.Context, parts []Part) error {
	if len(parts) == 0 {
		return nil
	}
	if err := b.batch.ReadChunks(ctx, parts); err != nil {
		return err
	}
	for _, x := range parts {
		clear(x.P[x.N:])
	}
	return nil
}

// ReadVec reads all pieces in one round trip if the store can, else several
// chunks at a time.
func (b *Backend) ReadVec(ctx context.Context, v []backend.Vec) error {
	if err := b.enter(ctx); err != nil {
		return b.fail("read", 0, 0, err)
	}
	defer b.gate.Leave()
	var parts []Part
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), b.g.Size()) {
			return b.fail("read", x.Off, int64(len(x.P)), backend.ErrOutOfRange)
		}
		parts = b.cut(parts, x.P, x.Off)
	}
	if len(parts) == 0 {
		return nil
	}
	var err error
	if b.batch != nil {
		err = b.readParts(ctx, parts)
	} else {
		_, err = b.parallel(ctx, len(parts), func(ctx context.Context, k int) error {
			x := parts[k]
			return b.readOne(ctx, x.I, x.P, b.g.Offset(x.I)+x.Off)
		})
	}
	if err != nil {
		return b.fail("read", v[0].Off, int64(len(v[0].P)), err)
	}
	return nil
}

// WriteAt writes the chunks that p touches, several at a time. Chunks that p
// covers are stored as they are, others are read, changed and stored under
// their lock.
func (b *Backend) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := int64(len(p))
	if err := b.enterWrite(ctx, off, n); err != nil {
		return 0, b.fail("write", off, n, err)
	}
	defer b.gate.Leave()
	r := region.Range{Off: off, Len: n}
	if b.inOneChunk(r) { // the common case needs no closure
		if err := b.writeOne(ctx, b.g.Index(off), p, off); err != nil {
			return 0, b.fail("write", off, n, err)
		}
		return len(p), nil
	}
	done, err := b.each(ctx, r, func(ctx context.Context, i region.ChunkIndex, part region.Range) error {
		return b.writeOne(ctx, i, p[part.Off-off:][:part.Len], part.Off)
	})
	if err != nil {
		return int(done), b.fail("write", off, n, err)
	}
	return int(done), nil
}

// writeOne stores p, which lies in chunk i, at byte off of the region.
func (b *Backend) writeOne(ctx context.Context, i region.ChunkIndex, p []byte, off int64) error {
	// Whole chunks are locked too: a read-modify-write beside it could bring back
	// bytes that it never meant to touch.
	l, err := b.lock(ctx, i)
	if err != nil {
		return err
	}
	defer l.unlock()
	whole := b.g.Range(i)
	if int64(len(p)) == whole.Len {
		return b.store(ctx, i, p)
	}
	if b.parts != nil {
		return b.parts.WritePart(ctx, i, p, off-whole.Off)
	}
	buf := b.buffers.Get().(*[]byte)
	defer b.buffers.Put(buf)
	chunk := (*buf)[:whole.Len]
	if err := b.readOne(ctx, i, chunk, whole.Off); err != nil {
		return err
	}
	copy(chunk[off-whole.Off:], p)
	return b.store(ctx, i, chunk)
}

// store writes the whole of chunk i, which is locked, or deletes it if p is zero.
func (b *Backend) store(ctx context.Context, i region.ChunkIndex, p []byte) error {
	// Comparing real data stops at the first word that is not zero.
	if b.deleter != nil && bytes.Equal(p, b.zeros[:len(p)]) {
		return b.deleter.DeleteChunk(ctx, i)
	}
	return b.s.WriteChunk(ctx, i, p)
}

// Zero deletes the chunks that lie in the range, if the store can, and writes
// zeros to the rest.
func (b *Backend) Zero(ctx context.Context, off, n int64) error {
	return b.erase(ctx, "zero", off, n)
}

// Discard is the same as Zero.
func (b *Backend) Discard(ctx context.Context, off, n int64) error {
	return b.erase(ctx, "discard", off, n)
}

func (b *Backend) erase(ctx context.Context, op string, off, n int64) error {
	if err := b.enterWrite(ctx, off, n); err != nil {
		return b.fail(op, off, n, err)
	}
	defer b.gate.Leave()
	for r := (region.Range{Off: off, Len: n}); !r.Empty(); {
		next := r
		if b.lister != nil { // what is not stored is zero
			first, end, err := b.lister.NextChunks(ctx, b.g.Index(r.Off))
			if err != nil {
				return b.fail(op, off, n, err)
			}
			if first >= end {
				break
			}
			if next = r.Intersect(b.g.Span(first, end)); next.Empty() {
				break
			}
		}
		if _, err := b.each(ctx, next, func(ctx context.Context, i region.ChunkIndex, part region.Range) error {
			return b.writeOne(ctx, i, b.zeros[:part.Len], part.Off)
		}); err != nil {
			return b.fail(op, off, n, err)
		}
		r = region.Range{Off: next.End(), Len: r.End() - next.End()}
	}
	return nil
}

// NextData is the next run of stored chunks, if the store can list them.
func (b *Backend) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := b.enter(ctx); err != nil {
		return region.Range{}, b.fail("seek", off, 0, err)
	}
	defer b.gate.Leave()
	rest := region.Range{Off: off, Len: b.g.Size() - off}
	switch {
	case off < 0 || off > b.g.Size():
		return region.Range{}, b.fail("seek", off, 0, backend.ErrOutOfRange)
	case rest.Empty():
		return region.Range{}, io.EOF
	case b.lister == nil:
		return rest, nil
	}
	first, end, err := b.lister.NextChunks(ctx, b.g.Index(off))
	switch {
	case err != nil:
		return region.Range{}, b.fail("seek", off, 0, err)
	case first >= end:
		return region.Range{}, io.EOF
	}
	return b.g.Span(first, end).Intersect(rest), nil
}

// Sync makes what was written durable.
func (b *Backend) Sync(ctx context.Context) error {
	if err := b.enter(ctx); err != nil {
		return b.fail("sync", 0, 0, err)
	}
	defer b.gate.Leave()
	if b.o.ReadOnly {
		return nil
	}
	if err := b.s.Sync(ctx); err != nil {
		return b.fail("sync", 0, 0, err)
	}
	return nil
}

// Close waits for operations in flight and closes the store.
func (b *Backend) Close() error {
	if !b.gate.Shut() {
		return nil
	}
	if err := b.s.Close(); err != nil {
		return b.fail("close", 0, 0, err)
	}
	return nil
}

// each calls do for every chunk that r touches, with the part of r that is in
// it. It returns how many bytes from r's start on are done.
func (b *Backend) each(ctx context.Context, r region.Range, do func(ctx context.Context, i region.ChunkIndex, part region.Range) error) (int64, error) {
	first, end := b.g.Cover(r)
	k, err := b.parallel(ctx, int(end-first), func(ctx context.Context, k int) error {
		i := first + region.ChunkIndex(k)
		return do(ctx, i, b.g.Range(i).Intersect(r))
	})
	if err == nil {
		return r.Len, nil
	}
	return max(0, b.g.Offset(first+region.ChunkIndex(k))-r.Off), err
}

// parallel calls do for 0 … n-1 from a few goroutines, one of which is the
// caller's. After an error it begins no further call. It returns the least k
// that was not done, and the error that came first.
func (b *Backend) parallel(ctx context.Context, n int, do func(ctx context.Context, k int) error) (int, error) {
	if n <= 1 || b.o.Workers == 1 {
		for k := range n {
			if err := do(ctx, k); err != nil {
				return k, err
			}
		}
		return n, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		next   atomic.Int64
		mu     sync.Mutex
		failed = n
		first  error
	)
	work := func() {
		for {
			k := int(next.Add(1)) - 1
			if k >= n {
				return
			}
			err := ctx.Err()
			if err == nil {
				err = do(ctx, k)
			}
			if err != nil {
				mu.Lock()
				failed = min(failed, k)
				if first == nil {
					first = err
				}
				mu.Unlock()
				cancel()
				return
			}
		}
	}
	var wg sync.WaitGroup
	for range min(n, b.o.Workers) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return failed, first
}

// lock waits for the lock of chunk i.
func (b *Backend) lock(ctx context.Context, i region.ChunkIndex) (lock, error) {
	l := b.locks[i%stripes]
	select {
	case l <- struct{}{}:
		return l, nil
	default:
	}
	select {
	case l <- struct{}{}:
		return l, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l lock) unlock() { <-l }

// enter returns nil if the operation may go on; it must then leave the gate.
func (b *Backend) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !b.gate.Enter() {
		return backend.ErrClosed
	}
	return nil
}

// enterWrite is enter for an operation that changes [off, off+n).
func (b *Backend) enterWrite(ctx context.Context, off, n int64) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	switch {
	case b.o.ReadOnly:
		b.gate.Leave()
		return backend.ErrReadOnly
	case !region.Check(off, n, b.g.Size()):
		b.gate.Leave()
		return backend.ErrOutOfRange
	}
	return nil
}

func (b *Backend) fail(op string, off, n int64, err error) error {
	if errors.Is(err, io.EOF) {
		// An end inside the region is no end for the caller.
		err = io.ErrUnexpectedEOF
	}
	return &backend.OpError{Op: op, Name: b.o.Name, Off: off, Len: max(n, 0), Err: err}
}
