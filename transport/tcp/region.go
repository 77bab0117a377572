package tcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// A Region is a region of the server. Besides what [transport.Region] asks for
// it has the abilities Zero, Discard, NextData and ReadVec; where the server's
// storage has not, the server makes do.
type Region struct {
	s      *Session
	handle uint32
	info   transport.Info
	open   *openRegion
	closed atomic.Bool
}

var _ transport.Region = (*Region)(nil)

// mostPerFrame is how many bytes one request reads or writes at most. What is
// longer becomes several, side by side on several connections.
const mostPerFrame = 1 << 20

func (r *Region) newCall(h header) *call {
	c := newCall(h)
	c.head.handle, c.region = r.handle, r.open
	return c
}

func (r *Region) usable() error {
	if r.closed.Load() {
		return region.ErrClosed
	}
	return nil
}

// Size implements [transport.Region].
func (r *Region) Size() int64 { return r.info.Size }

// Close implements [transport.Region]. The session stays open.
func (r *Region) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	r.s.mu.Lock()
	delete(r.s.regions, r.handle)
	r.s.mu.Unlock()
	for _, sl := range r.s.slots {
		sl.tell(header{op: opClose, handle: r.handle})
	}
	return nil
}

// ReadAt implements [transport.Region].
func (r *Region) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.usable(); err != nil {
		return 0, err
	}
	if off < 0 || off > r.info.Size {
		return 0, region.ErrOutOfRange
	}
	var end error
	if most := r.info.Size - off; int64(len(p)) > most {
		p, end = p[:most], io.EOF
	}
	if len(p) == 0 {
		return 0, end
	}
	n, err := r.split(ctx, p, off, (*Region).read)
	if err == nil {
		err = end
	}
	return n, err
}

func (r *Region) read(ctx context.Context, p []byte, off int64) (int, error) {
	c := r.newCall(header{op: opRead, off: off, n: int64(len(p))})
	defer c.free()
	c.one[0] = p
	c.in = c.one[:]
	return c.count(len(p), r.s.do(ctx, c))
}

// WriteAt implements [transport.Region].
func (r *Region) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.usable(); err != nil {
		return 0, err
	}
	if !region.Check(off, int64(len(p)), r.info.Size) {
		return 0, region.ErrOutOfRange
	}
	if r.info.ReadOnly {
		return 0, region.ErrReadOnly
	}
	if len(p) == 0 {
		return 0, nil
	}
	return r.split(ctx, p, off, (*Region).write)
}

func (r *Region) write(ctx context.Context, p []byte, off int64) (int, error) {
	c := r.newCall(header{op: opWrite, off: off, n: int64(len(p))})
	defer c.free()
	c.out = p
	// The instance of before: if the server restarts meanwhile, the write may have
	// gone to either.
	defer r.open.Wrote(r.s.instances.Load())
	return c.count(len(p), r.s.do(ctx, c))
}

// count is how many of n bytes a call did that ended with err, and that.
func (c *call) count(n int, err error) (int, error) {
	if err != nil {
		n = int(c.reply.n) // zero if there was none
	}
	return n, err
}

// split does one for p, or if p is long for its pieces at the same time. It
// returns how many bytes from the start of p were done.
func (r *Region) split(ctx context.Context, p []byte, off int64, one func(*Region, context.Context, []byte, int64) (int, error)) (int, error) {
	if len(p) <= mostPerFrame {
		return one(r, ctx, p, off)
	}
	return r.splitUp(ctx, p, off, one)
}

func (r *Region) splitUp(ctx context.Context, p []byte, off int64, one func(*Region, context.Context, []byte, int64) (int, error)) (int, error) {
	done := make([]int, (len(p)+mostPerFrame-1)/mostPerFrame)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * len(r.s.slots))
	for i := range done {
		at := i * mostPerFrame
		piece := p[at:min(at+mostPerFrame, len(p))]
		g.Go(func() (err error) {
			done[i], err = one(r, ctx, piece, off+int64(at))
			return err
		})
	}
	err := g.Wait()
	n := 0
	for _, k := range done {
		if n += k; k < mostPerFrame {
			break
		}
	}
	return n, err
}

// ReadVec fills the pieces of v, in one round trip per mebibyte.
func (r *Region) ReadVec(ctx context.Context, v []region.Vec) error {
	if err := r.usable(); err != nil {
		return err
	}
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), r.info.Size) {
			return region.ErrOutOfRange
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * len(r.s.slots))
	for len(v) > 0 {
		total, k := 0, 0
		for k < len(v) && k < maxVecs && (k == 0 || total+len(v[k].P) <= mostPerFrame) {
			total += len(v[k].P)
			k++
		}
		batch := v[:k]
		v = v[k:]
		if total > mostPerFrame { // one long piece
			g.Go(func() error {
				_, err := r.split(ctx, batch[0].P, batch[0].Off, (*Region).read)
				return err
			})
			continue
		}
		g.Go(func() error { return r.readVec(ctx, batch) })
	}
	return g.Wait()
}

func (r *Region) readVec(ctx context.Context, v []region.Vec) error {
	c := r.newCall(header{op: opReadVec})
	defer c.free()
	for _, x := range v {
		c.head.n += int64(len(x.P))
		c.out = binary.LittleEndian.AppendUint64(c.out, uint64(x.Off))
		c.out = binary.LittleEndian.AppendUint64(c.out, uint64(len(x.P)))
		c.in = append(c.in, x.P)
	}
	return r.s.do(ctx, c)
}

// Sync implements [transport.Region]. If the server has restarted since it took a
// write that no Sync has covered, Sync returns [region.ErrLost], once.
func (r *Region) Sync(ctx context.Context) error {
	if err := r.usable(); err != nil {
		return err
	}
	err := r.open.Sync(ctx, r.s.instances.Load, func() error {
		c := r.newCall(header{op: opSync})
		defer c.free()
		return r.s.do(ctx, c)
	})
	if err == region.ErrLost {
		return fmt.Errorf("sync %q: the server restarted: %w", r.open.name, err)
	}
	return err
}

// Zero makes [off, off+n) read as zeros.
func (r *Region) Zero(ctx context.Context, off, n int64) error { return r.clear(ctx, opZero, off, n) }

// Discard frees [off, off+n), which reads as zeros afterwards.
func (r *Region) Discard(ctx context.Context, off, n int64) error {
	return r.clear(ctx, opDiscard, off, n)
}

func (r *Region) clear(ctx context.Context, what op, off, n int64) error {
	if err := r.usable(); err != nil {
		return err
	}
	if !region.Check(off, n, r.info.Size) {
		return region.ErrOutOfRange
	}
	if r.info.ReadOnly {
		return region.ErrReadOnly
	}
	c := r.newCall(header{op: what, off: off, n: n})
	defer c.free()
	defer r.open.Wrote(r.s.instances.Load())
	return r.s.do(ctx, c)
}

// NextData is the first range at or behind off that may hold data; io.EOF if
// only zeros follow.
func (r *Region) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := r.usable(); err != nil {
		return region.Range{}, err
	}
	if off < 0 || off > r.info.Size {
		return region.Range{}, region.ErrOutOfRange
	}
	c := r.newCall(header{op: opNextData, off: off})
	defer c.free()
	if err := r.s.do(ctx, c); err != nil {
		return region.Range{}, err
	}
	d := region.Range{Off: c.reply.off, Len: c.reply.n}
	// What a peer says is checked, not believed.
	if d.Off < off || d.Len <= 0 || !region.Check(d.Off, d.Len, r.info.Size) {
		return region.Range{}, fmt.Errorf("%w: the server says that data behind %d are at %v", ErrProtocol, off, d)
	}
	return d, nil
}
