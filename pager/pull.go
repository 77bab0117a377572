package pager

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// maxPullRun bounds one background fetch in bytes.
const maxPullRun = 256 << 10

// Delays between tries of background work that failed.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// pull makes every chunk local in the chosen order. With strict it stops at the
// first error; otherwise it logs errors, waits and tries again until ctx ends, but skips
// what the backend refuses for good.
func (p *Pager) pull(ctx context.Context, strict bool) error {
	q := &pullQueue{p: p, steps: p.pullSteps()}
	g, ctx := errgroup.WithContext(ctx)
	for range p.opts.Pull.Workers {
		g.Go(func() error {
			for {
				f, err := q.next(ctx)
				if f == nil || err != nil {
					return err
				}
				if err := p.pullRange(ctx, p.geo.Span(f.first, f.end), f, strict); err != nil {
					return err
				}
			}
		})
	}
	err := g.Wait()
	if err == nil {
		p.stats.pullDone.Store(true)
	}
	return err
}

// pullRange waits until r is local. f is a fetch of it that is claimed but not
// started yet.
func (p *Pager) pullRange(ctx context.Context, r region.Range, f *fetch, strict bool) error {
	p.run(f)
	err := f.err
	for delay := minBackoff; err != nil; delay = min(2*delay, maxBackoff) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if strict {
			return err
		}
		if !backend.Retryable(err) && !errors.Is(err, errAbandoned) {
			p.log.Error("background pull skips a range", "region", p.opts.Name, "range", r.String(), "error", err)
			return nil
		}
		p.log.Warn("background pull failed, will try again", "region", p.opts.Name, "range", r.String(), "in", delay, "error", err)
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		err = p.ensure(ctx, r)
	}
	return nil
}

// sleep waits for d, shortened at random by up to half so that several who
// failed together do not return together.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d - rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pullSteps is the order of pulling as runs of chunks [first, end), each taken
// in ascending order.
func (p *Pager) pullSteps() [][2]region.ChunkIndex {
	var steps [][2]region.ChunkIndex
	whole := region.Range{Len: p.geo.Size()}
	for _, r := range p.opts.Pull.Ranges {
		if r = r.Intersect(whole); !r.Empty() {
			first, end := p.geo.Cover(r)
			steps = append(steps, [2]region.ChunkIndex{first, end})
		}
	}
	before := p.opts.Pull.Before
	if before == nil {
		return append(steps, [2]region.ChunkIndex{0, p.geo.Chunks()})
	}
	order := make([]region.ChunkIndex, p.geo.Chunks())
	for i := range order {
		order[i] = region.ChunkIndex(i)
	}
	slices.SortStableFunc(order, func(a, b region.ChunkIndex) int {
		switch {
		case before(a, b):
			return -1
		case before(b, a):
			return 1
		}
		return 0
	})
	for _, i := range order {
		if n := len(steps); n > 0 && steps[n-1][1] == i {
			steps[n-1][1]++
		} else {
			steps = append(steps, [2]region.ChunkIndex{i, i + 1})
		}
	}
	return steps
}

// A pullQueue hands out absent, unclaimed runs of chunks in pull order.
type pullQueue struct {
	p *Pager

	mu    sync.Mutex
	steps [][2]region.ChunkIndex
	from  int64        // where the backend was last asked for data
	data  region.Range // what it said: the first data at or behind from
}

// next claims the next run, or returns nil at the end. Runs that the backend
// knows to be holes become local on the way, at no cost but the question.
func (q *pullQueue) next(ctx context.Context) (*fetch, error) {
	p := q.p
	q.mu.Lock()
	defer q.mu.Unlock()
	most := region.ChunkIndex(max(1, maxPullRun/p.geo.ChunkSize()))
	for len(q.steps) > 0 && ctx.Err() == nil {
		s := &q.steps[0]
		i := p.local.NextClear(s[0])
		if i >= s[1] {
			q.steps = q.steps[1:]
			continue
		}
		hole, limit := q.look(ctx, i)
		if limit = min(limit, s[1]); !hole {
			limit = min(limit, i+most)
		}
		p.mu.Lock()
		f := p.newFetchLocked(i, limit)
		f.waiters = 1
		p.mu.Unlock()
		if f.end == i { // claimed by somebody else: theirs
			s[0] = i + 1
			continue
		}
		s[0] = f.end
		if hole {
			// The store is zero where nothing was brought yet.
			p.setLocal(f)
			p.release(f, nil)
			continue
		}
		return f, nil
	}
	return nil, ctx.Err()
}

// look says whether the backend knows the chunks [i, end) to hold zeros only.
func (q *pullQueue) look(ctx context.Context, i region.ChunkIndex) (hole bool, end region.ChunkIndex) {
	g := q.p.geo
	off := g.Offset(i)
	if off < q.from || off >= q.data.End() {
		q.from = off
		r, err := backend.NextData(ctx, q.p.b, off)
		switch {
		case errors.Is(err, io.EOF):
			q.data = region.Range{Off: g.Offset(g.Chunks()), Len: 1}
		case err != nil || r.Empty():
			// Then fetching will tell.
			q.data = region.Range{Off: off, Len: g.Size() - off}
		default:
			q.data = r
		}
	}
	if first, end := g.Cover(q.data); i >= first {
		return false, end
	}
	return true, g.Index(q.data.Off)
}
