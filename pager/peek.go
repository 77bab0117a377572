package pager

import (
	"context"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// maxPeek is how many bytes of an absent chunk are asked for on their own, ahead
// of the chunk, so that a small read need not wait for all of it. A quarter of
// the default chunk costs a quarter more traffic at most, and the usual 4 KiB a
// sixteenth.
const maxPeek = 16 << 10

// maxPeeked bounds the chunks that are on their way because of a peek. Beyond it
// peeks bring nothing else along.
const maxPeeked = 16

// peeks reports whether a read of r is better served by a peek: it is small, in
// one chunk, and nobody is bringing that chunk.
func (p *Pager) peeks(r region.Range) bool {
	if r.Len == 0 || r.Len > maxPeek || 2*r.Len > p.geo.ChunkSize() {
		return false
	}
	i := p.geo.Index(r.Off)
	if p.local.Test(i) || p.geo.Index(r.End()-1) != i || p.workCtx.Err() != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inflight[i] == nil && !p.local.Test(i)
}

// peek reads r from the backend into buf, past the store, and then starts to
// fetch its chunk; it reports false if the store is to be asked.
//
// A write to the chunk that ends meanwhile is concurrent with this read, so it
// may see either. It cannot end before: its chunk would be local.
func (p *Pager) peek(ctx context.Context, buf []byte, r region.Range) (bool, error) {
	if !p.peeks(r) {
		return false, nil
	}
	either, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.workCtx, cancel)()
	if err := backend.ReadFull(either, p.b, buf, r.Off); err != nil {
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case p.workCtx.Err() != nil:
			return false, region.ErrClosed
		}
		p.stats.fail(&p.stats.fetchErrors, err)
		return false, err
	}
	p.stats.misses.Add(1)
	p.stats.fetched.Add(r.Len)
	select {
	case p.peeked <- struct{}{}:
	default:
		return true, nil
	}
	i := p.geo.Index(r.Off)
	p.mu.Lock()
	f := p.newFetchLocked(i, i+1)
	f.waiters = 1
	p.mu.Unlock()
	if f.first == f.end { // somebody else was faster
		<-p.peeked
		return true, nil
	}
	p.work.Go(func() {
		defer func() { <-p.peeked }()
		p.run(f)
	})
	return true, nil
}
