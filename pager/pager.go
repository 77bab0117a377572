package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// A Pager is a local, writable copy of a region that fills itself from a backend
// and writes itself back. Methods may be called concurrently.
type Pager struct {
	b     backend.Backend
	opts  Options
	geo   region.Geometry
	store store
	log   *slog.Logger

	// local chunks can be read from the store; dirty ones must be pushed. A dirty
	// chunk is local.
	local, dirty *region.Bitmap

	// markMu orders writers that mark (readers of the lock) and a Sync that
	// decides what is durable now.
	markMu sync.RWMutex
	// fresh are the chunks written since the last Sync began.
	fresh *region.Bitmap
	// unsynced are the chunks whose bytes may not be durable in the backend, as
	// the cache directory remembers them. Nil without one.
	unsynced *stateFile

	syncMu  sync.Mutex
	covered *region.Bitmap // what the running Sync covers

	mu       sync.Mutex
	inflight map[region.ChunkIndex]*fetch // being fetched or overwritten whole
	pushing  map[region.ChunkIndex]*push

	peeked chan struct{} // one per chunk that is fetched after a peek

	workCtx    context.Context // of fetches and background work; ends when Close begins
	cancelWork context.CancelFunc
	work       sync.WaitGroup  // fetches and background work
	pushCtx    context.Context // of pushes; ends when Close gives up
	cancelPush context.CancelFunc
	pushes     sync.WaitGroup

	gate   sync.RWMutex // held for reading by operations
	closed bool         // guarded by gate
	once   sync.Once
	closeE error

	stats counters
}

// Open starts paging b. It does not close b. ctx bounds the opening alone, with
// Pull.First the whole pull.
//
// With Options.Dir, chunks that an earlier pager of the directory had not made
// durable are dirty again. Open fails with [ErrBusy] if another pager has the
// directory open and with [ErrForeign] if it holds another region.
func Open(ctx context.Context, b backend.Backend, o Options) (*Pager, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open pager: %w", err)
	}
	geo, err := region.NewGeometry(b.Size(), o.ChunkSize)
	if err != nil {
		return nil, fmt.Errorf("open pager: %w", err)
	}
	p := &Pager{
		b: b, opts: o, geo: geo, log: o.Logger,
		local:    region.NewBitmap(geo.Chunks()),
		dirty:    region.NewBitmap(geo.Chunks()),
		fresh:    region.NewBitmap(geo.Chunks()),
		covered:  region.NewBitmap(geo.Chunks()),
		inflight: map[region.ChunkIndex]*fetch{},
		pushing:  map[region.ChunkIndex]*push{},
		peeked:   make(chan struct{}, maxPeeked),
	}
	if o.Dir == "" {
		p.store, err = newMemStore(geo.Size())
	} else {
		err = p.openDir()
	}
	if err != nil {
		return nil, fmt.Errorf("open pager: %w", err)
	}
	p.workCtx, p.cancelWork = context.WithCancel(context.Background())
	p.pushCtx, p.cancelPush = context.WithCancel(context.Background())

	if o.Pull.First {
		if err := p.pull(ctx, true); err != nil {
			return nil, errors.Join(fmt.Errorf("pull before opening: %w", err), p.abort())
		}
	} else if !o.Pull.Off {
		p.work.Go(func() {
			// Without First, errors of single ranges are logged and retried.
			_ = p.pull(p.workCtx, false)
		})
	}
	if !o.Push.Off && !o.ReadOnly {
		p.work.Go(func() { p.pushLoop(p.workCtx) })
	}
	return p, nil
}

// openDir takes up what the cache directory remembers.
func (p *Pager) openDir() error {
	state, data, err := openStateDir(p.opts.Dir, p.opts.Name, p.geo)
	if err != nil {
		return fmt.Errorf("cache directory %s: %w", p.opts.Dir, err)
	}
	p.unsynced = state
	p.store = &fileStore{f: data}
	if state.dirty.NextSet(0) < p.geo.Chunks() && p.opts.ReadOnly {
		return errors.Join(p.closeStore(), fmt.Errorf(
			"cache directory %s holds writes that were never pushed: mount it writable once", p.opts.Dir))
	}
	var end region.ChunkIndex
	for i, j := range state.dirty.Runs() {
		if err := p.dropStore(end, i); err != nil {
			return errors.Join(err, p.closeStore())
		}
		for k := i; k < j; k++ {
			p.local.Set(k)
			p.dirty.Set(k)
			p.fresh.Set(k)
		}
		p.stats.local.Add(int64(j - i))
		p.stats.dirty.Add(int64(j - i))
		end = j
	}
	if err := p.dropStore(end, p.geo.Chunks()); err != nil {
		return errors.Join(err, p.closeStore())
	}
	return nil
}

// dropStore empties the store's chunks [i, j).
func (p *Pager) dropStore(i, j region.ChunkIndex) error {
	if i == j {
		return nil
	}
	return p.store.zero(p.geo.Span(i, j))
}

// Size is the region's length in bytes.
func (p *Pager) Size() int64 { return p.geo.Size() }

// Geometry says how the region is cut into chunks.
func (p *Pager) Geometry() region.Geometry { return p.geo }

func (p *Pager) enter() error {
	p.gate.RLock()
	if p.closed {
		p.gate.RUnlock()
		return region.ErrClosed
	}
	return nil
}

// ReadAt fills buf from byte offset off as backend.Backend's ReadAt does. A
// chunk that is not local is fetched first; an error of that fetch is returned,
// and the next read tries again. Cancelling ctx ends the wait, not the fetch
// that others wait for.
func (p *Pager) ReadAt(ctx context.Context, buf []byte, off int64) (int, error) {
	if err := p.enter(); err != nil {
		return 0, err
	}
	defer p.gate.RUnlock()
	if off < 0 || off > p.geo.Size() {
		return 0, fmt.Errorf("read %d bytes at %d: %w", len(buf), off, region.ErrOutOfRange)
	}
	n := min(int64(len(buf)), p.geo.Size()-off)
	r := region.Range{Off: off, Len: n}
	if peeked, err := p.peek(ctx, buf[:n], r); err != nil {
		return 0, err
	} else if !peeked {
		if err := p.ensure(ctx, r); err != nil {
			return 0, err
		}
		if err := p.store.readAt(buf[:n], off); err != nil {
			return 0, fmt.Errorf("read from the local copy: %w", err)
		}
	}
	if n < int64(len(buf)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// View returns the bytes [off, off+n) of the local copy itself, fetched if need
// be. It may be read until Close and shows later writes; do not write to it. It
// is nil without an error when the local copy is not in memory, or when ReadAt
// would be faster.
func (p *Pager) View(ctx context.Context, off, n int64) ([]byte, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.gate.RUnlock()
	if !region.Check(off, n, p.geo.Size()) {
		return nil, fmt.Errorf("view %d bytes at %d: %w", n, off, region.ErrOutOfRange)
	}
	mem := p.store.bytes(region.Range{Off: off, Len: n})
	if mem == nil || p.peeks(region.Range{Off: off, Len: n}) {
		return nil, nil
	}
	if err := p.ensure(ctx, region.Range{Off: off, Len: n}); err != nil {
		return nil, err
	}
	return mem, nil
}

// Ensure returns once every byte of [off, off+n) is local.
func (p *Pager) Ensure(ctx context.Context, off, n int64) error {
	if err := p.enter(); err != nil {
		return err
	}
	defer p.gate.RUnlock()
	if !region.Check(off, n, p.geo.Size()) {
		return fmt.Errorf("ensure %d bytes at %d: %w", n, off, region.ErrOutOfRange)
	}
	return p.ensure(ctx, region.Range{Off: off, Len: n})
}

// WriteAt stores buf at off in the local copy and returns; the bytes reach the
// backend by a later push or Sync. A chunk that buf covers only in part is
// fetched first.
func (p *Pager) WriteAt(ctx context.Context, buf []byte, off int64) (int, error) {
	return p.write(ctx, region.Range{Off: off, Len: int64(len(buf))}, func(r region.Range) error {
		return p.store.writeAt(buf[r.Off-off:r.End()-off], r.Off)
	})
}

// Zero makes [off, off+n) read as zeros, as a write of zeros would.
func (p *Pager) Zero(ctx context.Context, off, n int64) error {
	_, err := p.write(ctx, region.Range{Off: off, Len: n}, p.store.zero)
	return err
}

// Discard is Zero: space is freed at both ends where they can.
func (p *Pager) Discard(ctx context.Context, off, n int64) error { return p.Zero(ctx, off, n) }

// write has put change the bytes of r in the store, piece by piece, and returns
// how many it changed.
func (p *Pager) write(ctx context.Context, r region.Range, put func(region.Range) error) (int, error) {
	if err := p.enter(); err != nil {
		return 0, err
	}
	defer p.gate.RUnlock()
	if p.opts.ReadOnly {
		return 0, fmt.Errorf("write %d bytes at %d: %w", r.Len, r.Off, region.ErrReadOnly)
	}
	if !region.Check(r.Off, r.Len, p.geo.Size()) {
		return 0, fmt.Errorf("write %d bytes at %d: %w", r.Len, r.Off, region.ErrOutOfRange)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var n int64
	for n < r.Len {
		piece, whole := p.nextPiece(region.Range{Off: r.Off + n, Len: r.Len - n})
		if err := p.writePiece(ctx, piece, whole, put); err != nil {
			return int(n), err
		}
		n += piece.Len
	}
	p.stats.written.Add(n)
	return int(n), nil
}

// nextPiece is the head of r that either covers chunks whole or lies in one.
func (p *Pager) nextPiece(r region.Range) (piece region.Range, whole bool) {
	first, end := p.geo.Cover(r)
	if c := p.geo.Range(first); !r.Contains(c) {
		return r.Intersect(c), false
	}
	if !r.Contains(p.geo.Range(end - 1)) {
		end--
	}
	return p.geo.Span(first, end), true
}

func (p *Pager) writePiece(ctx context.Context, piece region.Range, whole bool, put func(region.Range) error) error {
	first, end := p.geo.Cover(piece)
	if p.local.NextClear(first) < end {
		if whole {
			return p.overwrite(ctx, piece, put)
		}
		if err := p.ensure(ctx, piece); err != nil {
			return err
		}
	}
	err := put(piece)
	// Also after a failure: some bytes may have changed, and what reads see here
	// the backend must come to hold.
	p.mark(first, end)
	if err != nil {
		return fmt.Errorf("write to the local copy: %w", err)
	}
	return nil
}

// overwrite writes whole chunks of which some are absent, without fetching them.
func (p *Pager) overwrite(ctx context.Context, r region.Range, put func(region.Range) error) error {
	first, end := p.geo.Cover(r)
	f := &fetch{first: first, end: end, done: make(chan struct{})}
	for {
		busy := p.claim(f)
		if busy == nil {
			break
		}
		// Whether that fetch succeeded does not matter: its bytes are replaced.
		_ = p.wait(ctx, busy)
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.workCtx.Err() != nil {
			return region.ErrClosed
		}
	}
	err := put(r)
	if err == nil {
		p.setLocal(f)
		p.mark(first, end)
	} else {
		err = fmt.Errorf("write to the local copy: %w", err)
		for i := first; i < end; i++ {
			if p.local.Test(i) {
				p.mark(i, i+1)
			} else if zerr := p.store.zero(p.geo.Range(i)); zerr != nil {
				err = errors.Join(err, zerr)
			}
		}
	}
	p.release(f, err)
	return err
}

// mark notes that the chunks [first, end) were written.
func (p *Pager) mark(first, end region.ChunkIndex) {
	p.markMu.RLock()
	defer p.markMu.RUnlock()
	for i := first; i < end; i++ {
		if p.unsynced != nil {
			p.unsynced.dirty.Set(i)
		}
		p.fresh.Set(i)
		if p.dirty.Set(i) {
			p.stats.dirty.Add(1)
		}
	}
}

// Close runs the BeforeClose hook, makes everything durable as Sync does, and
// frees the local copy, or with Options.Dir leaves it for the next Open. Reads
// that wait for a fetch end with region.ErrClosed. When ctx ends, the rest is not
// pushed and Close returns its error. The pager is closed even if an error is
// returned; the first call's result is returned by every call.
func (p *Pager) Close(ctx context.Context) error {
	p.once.Do(func() {
		var errs []error
		if h := p.opts.Hooks.BeforeClose; h != nil {
			if err := h(ctx); err != nil {
				errs = append(errs, fmt.Errorf("before close: %w", err))
			}
		}
		if !p.opts.ReadOnly {
			errs = append(errs, p.beforeSync(ctx))
		}
		p.cancelWork()
		p.gate.Lock()
		p.closed = true
		p.gate.Unlock()
		p.work.Wait()
		if !p.opts.ReadOnly {
			errs = append(errs, p.sync(ctx))
		}
		p.closeE = errors.Join(append(errs, p.abort())...)
	})
	return p.closeE
}

// abort ends all work and frees the store without pushing anything.
func (p *Pager) abort() error {
	p.cancelWork()
	p.cancelPush()
	p.work.Wait()
	p.pushes.Wait()
	return p.closeStore()
}

func (p *Pager) closeStore() error {
	err := p.store.close()
	if p.unsynced != nil {
		err = errors.Join(err, p.unsynced.close())
	}
	return err
}
