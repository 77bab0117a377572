package pager

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
)

// maxPushRun bounds one push in bytes.
const maxPushRun = 1 << 20

// A push is a copy of the chunks [first, end) on its way to the backend.
type push struct {
	first, end region.ChunkIndex
	done       chan struct{}
	err        error // set before done is closed
}

// pushLoop pushes what is dirty every interval, less often while that fails.
func (p *Pager) pushLoop(ctx context.Context) {
	delay := p.opts.Push.Interval
	for {
		if sleep(ctx, delay) != nil {
			return
		}
		err := p.pushAll(ctx, p.dirty)
		switch {
		case err == nil:
			delay = p.opts.Push.Interval
		case ctx.Err() != nil:
			return
		default:
			delay = min(2*delay, max(maxBackoff, p.opts.Push.Interval))
			p.log.Warn("background push failed, will try again", "region", p.opts.Name, "in", delay, "error", err)
		}
	}
}

// Sync returns nil once every write that returned before the call is durable in
// the backend. It runs the BeforeSync hook, pushes every chunk written since the
// last Sync that succeeded, and syncs the backend. It returns the first error of
// each step; what failed stays dirty, and a later Sync tries it again.
func (p *Pager) Sync(ctx context.Context) error {
	if p.opts.ReadOnly {
		if err := p.enter(); err != nil {
			return err
		}
		p.gate.RUnlock()
		return nil
	}
	if err := p.beforeSync(ctx); err != nil {
		return err
	}
	if err := p.enter(); err != nil {
		return err
	}
	defer p.gate.RUnlock()
	return p.sync(ctx)
}

// beforeSync runs the hook, which may write: not inside the gate, where a Close
// that waits would keep it out.
func (p *Pager) beforeSync(ctx context.Context) error {
	if h := p.opts.Hooks.BeforeSync; h != nil {
		if err := h(ctx); err != nil {
			return fmt.Errorf("before sync: %w", err)
		}
	}
	return nil
}

func (p *Pager) sync(ctx context.Context) (err error) {
	p.syncMu.Lock()
	defer p.syncMu.Unlock()

	p.markMu.Lock()
	p.fresh, p.covered = p.covered, p.fresh
	p.markMu.Unlock()
	if p.covered.NextSet(0) == p.covered.Len() {
		return nil
	}
	defer func() { p.settle(err == nil) }()

	for try := 1; ; try++ {
		if err := p.pushAll(ctx, p.covered); err != nil {
			return err
		}
		err := p.b.Sync(ctx)
		if err == nil {
			return nil
		}
		// What was pushed may be gone: after a failed fsync(2) the kernel drops the
		// pages, and a restarted server has forgotten them.
		p.remark()
		if !errors.Is(err, region.ErrLost) || try == maxLost {
			return err
		}
		p.log.Warn("the backend restarted before it had synced, pushing again", "region", p.opts.Name)
	}
}

// maxLost is how often in one Sync the backend may restart.
const maxLost = 5

// remark makes what the running Sync covers dirty again.
func (p *Pager) remark() {
	for first, end := range p.covered.Runs() {
		for i := first; i < end; i++ {
			if p.dirty.Set(i) {
				p.stats.dirty.Add(1)
			}
		}
	}
}

// settle ends a Sync: what it covered and nobody has written since is durable,
// or if it failed, is written since the last Sync as before.
func (p *Pager) settle(durable bool) {
	p.markMu.Lock()
	defer p.markMu.Unlock()
	for first, end := range p.covered.Runs() {
		for i := first; i < end; i++ {
			switch {
			case !durable:
				p.fresh.Set(i)
			case p.unsynced != nil && !p.fresh.Test(i):
				p.unsynced.dirty.Clear(i)
			}
			p.covered.Clear(i)
		}
	}
}

// pushAll pushes the chunks in set that are dirty now, and waits for pushes of
// chunks in set that others began. It goes on after an error, so that one bad
// range does not keep the rest from safety, and returns the first.
func (p *Pager) pushAll(ctx context.Context, set *region.Bitmap) error {
	most := region.ChunkIndex(max(1, maxPushRun/p.geo.ChunkSize()))
	var g errgroup.Group
	g.SetLimit(p.opts.Push.Workers)
	for i := set.NextSet(0); i < set.Len() && ctx.Err() == nil; {
		first, end := i, min(set.NextClear(i), i+most)
		g.Go(func() error { return p.pushRun(ctx, first, end) })
		i = set.NextSet(end)
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// pushRun pushes the dirty chunks of [i, end).
func (p *Pager) pushRun(ctx context.Context, i, end region.ChunkIndex) error {
	var first error
	for i < end && ctx.Err() == nil {
		p.mu.Lock()
		if other := p.pushing[i]; other != nil {
			p.mu.Unlock()
			select {
			case <-other.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue // and push it ourselves if it is dirty, or dirty again
		}
		if !p.dirty.Test(i) {
			p.mu.Unlock()
			i++
			continue
		}
		u := &push{first: i, end: i, done: make(chan struct{})}
		for u.end < end && p.pushing[u.end] == nil && p.dirty.Test(u.end) {
			p.pushing[u.end] = u
			// Cleared before the bytes are copied: a write from here on marks
			// the chunk again.
			p.dirty.Clear(u.end)
			u.end++
		}
		p.mu.Unlock()
		p.stats.dirty.Add(-int64(u.end - u.first))
		p.pushes.Go(func() { p.finish(u) })
		select {
		case <-u.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if first == nil {
			first = u.err
		}
		i = u.end
	}
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// finish carries out u. No caller's context reaches the backend here: a write
// given up half-way could arrive after a newer one of the same chunk.
func (p *Pager) finish(u *push) {
	u.err = p.carry(p.pushCtx, p.geo.Span(u.first, u.end))
	if u.err != nil {
		for k := u.first; k < u.end; k++ {
			if p.dirty.Set(k) {
				p.stats.dirty.Add(1)
			}
		}
		p.stats.fail(&p.stats.pushErrors, u.err)
	}
	p.mu.Lock()
	for k := u.first; k < u.end; k++ {
		delete(p.pushing, k)
	}
	p.mu.Unlock()
	close(u.done)
}

// carry copies r from the store to the backend.
func (p *Pager) carry(ctx context.Context, r region.Range) error {
	buf := getBuffer(r.Len)
	defer putBuffer(buf)
	if err := p.store.readAt(*buf, r.Off); err != nil {
		return fmt.Errorf("read from the local copy: %w", err)
	}
	if region.AllZero(*buf) {
		// Not Zero, which may keep the space reserved.
		if err := backend.Discard(ctx, p.b, r.Off, r.Len); err != nil {
			return err
		}
	} else if n, err := p.b.WriteAt(ctx, *buf, r.Off); err != nil {
		return err
	} else if n < len(*buf) {
		return fmt.Errorf("the backend took %d of %d bytes at %d", n, len(*buf), r.Off)
	}
	p.stats.pushed.Add(r.Len)
	return nil
}
