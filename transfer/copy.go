package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// Options tune [Copy]. The zero value is a good start.
type Options struct {
	// Workers is how many ranges are copied at once. Zero means 8.
	Workers int
	// Block is the most bytes that one read and one write carry. Zero means 1 MiB.
	Block int64
	// DstIsZero promises that the destination reads as zeros, as a new one does.
	// Holes and zeros then cost nothing there.
	DstIsZero bool
	// Progress, if not nil, is called after every range, by one goroutine at a
	// time.
	Progress func(Stats)
}

// Stats says how far a copy is. Done + Holes + Zeros reaches the size.
type Stats struct {
	Size  int64 `json:"size_bytes"`
	Done  int64 `json:"copied_bytes"` // read and written
	Holes int64 `json:"hole_bytes"`   // the source said that nothing is there
	Zeros int64 `json:"zero_bytes"`   // read, found to be zeros, not written
}

// Covered is how many bytes of the region are dealt with.
func (s Stats) Covered() int64 { return s.Done + s.Holes + s.Zeros }

var errSizes = errors.New("sizes differ")

// Copy makes dst hold the bytes of src, which has the same size, and syncs dst.
// It returns how far it came, also with an error. Nothing else may write either
// meanwhile.
func Copy(ctx context.Context, dst, src backend.Backend, o Options) (Stats, error) {
	if dst.Size() != src.Size() {
		return Stats{}, fmt.Errorf("source has %d bytes, destination has %d: %w", src.Size(), dst.Size(), errSizes)
	}
	if o.Workers < 0 || o.Block < 0 {
		return Stats{}, fmt.Errorf("%d workers, blocks of %d bytes: neither can be negative", o.Workers, o.Block)
	}
	if o.Workers == 0 {
		o.Workers = 8
	}
	if o.Block == 0 {
		o.Block = 1 << 20
	}
	c := &copier{dst: dst, src: src, o: o}
	c.buffers.New = func() any { b := make([]byte, o.Block); return &b }
	err := c.run(ctx)
	if err == nil {
		err = dst.Sync(ctx)
	}
	return c.stats(), err
}

type copier struct {
	dst, src           backend.Backend
	o                  Options
	done, holes, zeros atomic.Int64
	buffers            sync.Pool
	mu                 sync.Mutex // held while Progress runs
}

func (c *copier) stats() Stats {
	return Stats{c.src.Size(), c.done.Load(), c.holes.Load(), c.zeros.Load()}
}

func (c *copier) report() {
	if c.o.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.o.Progress(c.stats())
}

func (c *copier) run(ctx context.Context) error {
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Workers)
	size := c.src.Size()
	var err error
	for off := int64(0); off < size && ctx.Err() == nil; {
		var data region.Range
		data, err = backend.NextData(ctx, c.src, off)
		if errors.Is(err, io.EOF) {
			data, err = region.Range{Off: size}, nil
		}
		if err != nil {
			err = fmt.Errorf("find the next data at %d: %w", off, err)
			break
		}
		if hole := (region.Range{Off: off, Len: data.Off - off}); !hole.Empty() {
			g.Go(func() error { return c.skip(ctx, hole, &c.holes) })
		}
		for off = data.Off; off < data.End() && ctx.Err() == nil; {
			r := region.Range{Off: off, Len: min(c.o.Block, data.End()-off)}
			g.Go(func() error { return c.move(ctx, r) })
			off = r.End()
		}
	}
	if werr := g.Wait(); werr != nil {
		return werr
	}
	if err == nil {
		err = parent.Err()
	}
	return err
}

// skip makes r read as zeros at the destination.
func (c *copier) skip(ctx context.Context, r region.Range, count *atomic.Int64) error {
	if !c.o.DstIsZero {
		// Not Zero, which may keep the space reserved.
		if err := backend.Discard(ctx, c.dst, r.Off, r.Len); err != nil {
			return fmt.Errorf("zero %v: %w", r, err)
		}
	}
	count.Add(r.Len)
	c.report()
	return nil
}

func (c *copier) move(ctx context.Context, r region.Range) error {
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	p := (*buf)[:r.Len]
	if err := backend.ReadFull(ctx, c.src, p, r.Off); err != nil {
		return err
	}
	if region.AllZero(p) {
		return c.skip(ctx, r, &c.zeros)
	}
	if n, err := c.dst.WriteAt(ctx, p, r.Off); err != nil {
		return err
	} else if n < len(p) {
		return fmt.Errorf("write %v: %w", r, io.ErrShortWrite)
	}
	c.done.Add(r.Len)
	c.report()
	return nil
}
