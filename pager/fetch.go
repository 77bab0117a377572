package pager

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// maxDemandRun bounds one demand fetch in bytes. A larger read is served by
// several fetches side by side, so that its first bytes do not wait for its last.
const maxDemandRun = 256 << 10

// errAbandoned ends a fetch that nobody waited for any more.
var errAbandoned = errors.New("fetch abandoned")

// A fetch is a claim on the absent chunks in [first, end): nobody else brings
// or overwrites them until it is released.
type fetch struct {
	first, end region.ChunkIndex
	done       chan struct{} // closed by release
	err        error         // set before done is closed

	// Guarded by Pager.mu.
	waiters int
	cancel  context.CancelFunc // nil for a claim by a writer, which cannot be abandoned
}

// claim registers f for those of its chunks that are absent. If somebody else
// has claimed one of them it registers nothing and returns that fetch, with the
// caller as one of its waiters.
func (p *Pager) claim(f *fetch) (busy *fetch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := f.first; i < f.end; i++ {
		if other := p.inflight[i]; other != nil {
			other.waiters++
			return other
		}
	}
	for i := f.first; i < f.end; i++ {
		if !p.local.Test(i) {
			p.inflight[i] = f
		}
	}
	return nil
}

// setLocal makes f's chunks readable. The bytes are in the store.
func (p *Pager) setLocal(f *fetch) {
	for i := f.first; i < f.end; i++ {
		if p.local.Set(i) {
			p.stats.local.Add(1)
		}
	}
}

// release ends f's claim, wakes its waiters and tells the hook.
func (p *Pager) release(f *fetch, err error) {
	p.mu.Lock()
	for i := f.first; i < f.end; i++ {
		if p.inflight[i] == f {
			delete(p.inflight, i)
		}
	}
	f.err = err
	p.mu.Unlock()
	close(f.done)
	if h := p.opts.Hooks.ChunkLocal; h != nil && err == nil {
		h(p.geo.Span(f.first, f.end))
	}
}

// wait waits for f as one of its counted waiters. The last one to give up
// abandons the fetch.
func (p *Pager) wait(ctx context.Context, f *fetch) error {
	select {
	case <-f.done:
		return f.err
	default:
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
	case <-p.workCtx.Done():
	}
	p.leave(f)
	if err := ctx.Err(); err != nil {
		return err
	}
	return region.ErrClosed
}

func (p *Pager) leave(f *fetch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.waiters--
	if f.waiters == 0 && f.cancel != nil {
		f.cancel()
	}
}

// ensure returns once the chunks of r are local.
func (p *Pager) ensure(ctx context.Context, r region.Range) error {
	first, end := p.geo.Cover(r)
	if p.local.NextClear(first) >= end {
		p.stats.hits.Add(1)
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p.stats.misses.Add(1)
	for {
		absent := p.local.NextClear(first)
		if absent >= end {
			return nil
		}
		if p.workCtx.Err() != nil {
			return region.ErrClosed
		}
		waits := p.demand(absent, end)
		var failed error
		for k, f := range waits {
			err := p.wait(ctx, f)
			if err == nil || errors.Is(err, errAbandoned) {
				// Abandoned by others just before we joined: the next round
				// claims it anew.
				continue
			}
			for _, rest := range waits[k+1:] {
				p.leave(rest)
			}
			failed = err
			break
		}
		if failed != nil {
			return failed
		}
	}
}

// demand starts fetches for the absent and unclaimed chunks of [i, end) and
// returns these and the ones that others run, with the caller as a waiter of
// each.
func (p *Pager) demand(i, end region.ChunkIndex) []*fetch {
	var all, mine []*fetch
	most := region.ChunkIndex(max(1, maxDemandRun/p.geo.ChunkSize()))
	p.mu.Lock()
	for i = p.local.NextClear(i); i < end; i = p.local.NextClear(i) {
		if f := p.inflight[i]; f != nil {
			f.waiters++
			all = append(all, f)
			i = f.end
			continue
		}
		f := p.newFetchLocked(i, min(end, i+most))
		f.waiters = 1
		all, mine = append(all, f), append(mine, f)
		i = f.end
	}
	p.mu.Unlock()
	for _, f := range mine {
		p.work.Go(func() { p.run(f) })
	}
	return all
}

// newFetchLocked claims the run of absent, unclaimed chunks that starts at i and
// ends before limit.
func (p *Pager) newFetchLocked(i, limit region.ChunkIndex) *fetch {
	f := &fetch{first: i, end: i, done: make(chan struct{})}
	for f.end < limit && p.inflight[f.end] == nil && !p.local.Test(f.end) {
		p.inflight[f.end] = f
		f.end++
	}
	return f
}

// run brings the chunks of f from the backend and releases it.
func (p *Pager) run(f *fetch) {
	ctx, cancel := context.WithCancel(p.workCtx)
	defer cancel()
	p.mu.Lock()
	f.cancel = cancel
	abandoned := f.waiters == 0
	p.mu.Unlock()

	err := errAbandoned
	if !abandoned {
		err = p.bring(ctx, p.geo.Span(f.first, f.end))
	}
	switch {
	case err == nil:
		p.setLocal(f)
	case p.workCtx.Err() != nil:
		err = region.ErrClosed
	case ctx.Err() != nil:
		err = errAbandoned
	default:
		p.stats.fail(&p.stats.fetchErrors, err)
	}
	p.release(f, err)
}

// bring copies r from the backend into the store. After a failure r reads as
// zeros there again, for holes are made local without writing.
func (p *Pager) bring(ctx context.Context, r region.Range) error {
	buf := getBuffer(r.Len)
	defer putBuffer(buf)
	if err := backend.ReadFull(ctx, p.b, *buf, r.Off); err != nil {
		return err
	}
	p.stats.fetched.Add(r.Len)
	if err := p.store.fill(*buf, r.Off); err != nil {
		return errors.Join(fmt.Errorf("keep a chunk in the cache: %w", err), p.store.zero(r))
	}
	return nil
}

// buffers are what chunks pass through on their way between store and backend.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func getBuffer(n int64) *[]byte {
	b := buffers.Get().(*[]byte)
	if int64(cap(*b)) < n {
		*b = make([]byte, max(n, maxDemandRun))
	}
	*b = (*b)[:n]
	return b
}

func putBuffer(b *[]byte) { buffers.Put(b) }
