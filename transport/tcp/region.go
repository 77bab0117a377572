package tcp

import (
	"context"
	"encoding/binary"
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
	closed atomic.Bool
}

var _ transport.Region = (*Region)(nil)

// mostPerFrame is how many bytes one request reads or writes at most. What is
// longer becomes several, side by side on several connections.
const mostPerFrame = 1 << 20

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
	if err := r.split(ctx, p, off, r.read); err != nil {
		return 0, err
	}
	return len(p), end
}

func (r *Region) read(ctx context.Context, p []byte, off int64) error {
	c := newCall(header{op: opRead, handle: r.handle, off: off, n: int64(len(p))})
	defer c.free()
	c.one[0] = p
	c.in = c.one[:]
	return r.s.do(ctx, c)
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
	if err := r.split(ctx, p, off, r.write); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (r *Region) write(ctx context.Context, p []byte, off int64) error {
	c := newCall(header{op: opWrite, handle: r.handle, off: off, n: int64(len(p))})
	defer c.free()
	c.out = p
	return r.s.do(ctx, c)
}

// split does one for p, or if p is long for its pieces at the same time.
func (r *Region) split(ctx context.Context, p []byte, off int64, one func(context.Context, []byte, int64) error) error {
	if len(p) <= mostPerFrame {
		return one(ctx, p, off)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * len(r.s.slots))
	for len(p) > 0 {
		piece := p[:min(len(p), mostPerFrame)]
		at := off
		g.Go(func() error { return one(ctx, piece, at) })
		p, off = p[len(piece):], off+int64(len(piece))
	}
	return g.Wait()
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
			g.Go(func() error { return r.split(ctx, batch[0].P, batch[0].Off, r.read) })
			continue
		}
		g.Go(func() error { return r.readVec(ctx, batch) })
	}
	return g.Wait()
}

func (r *Region) readVec(ctx context.Context, v []region.Vec) error {
	c := newCall(header{op: opReadVec, handle: r.handle})
	defer c.free()
	for _, x := range v {
		c.head.n += int64(len(x.P))
		c.out = binary.LittleEndian.AppendUint64(c.out, uint64(x.Off))
		c.out = binary.LittleEndian.AppendUint64(c.out, uint64(len(x.P)))
		c.in = append(c.in, x.P)
	}
	return r.s.do(ctx, c)
}

// Sync implements [transport.Region].
func (r *Region) Sync(ctx context.Context) error {
	if err := r.usable(); err != nil {
		return err
	}
	c := newCall(header{op: opSync, handle: r.handle})
	defer c.free()
	return r.s.do(ctx, c)
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
	c := newCall(header{op: what, handle: r.handle, off: off, n: n})
	defer c.free()
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
	c := newCall(header{op: opNextData, handle: r.handle, off: off})
	defer c.free()
	if err := r.s.do(ctx, c); err != nil {
		return region.Range{}, err
	}
	d := region.Range{Off: c.reply.off, Len: c.reply.n}
	// What a peer says is checked, not believed.
	if d.Off < off || d.Len <= 0 || !region.Check(d.Off, d.Len, r.info.Size) {
		return region.Range{}, ErrProtocol
	}
	return d, nil
}
