// Command hooks draws what a pager does: a line per moment at which bytes of a
// slow backend become local, are synced, or the pager closes.
//
//	go run ./examples/hooks
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/pager"
	"github.com/telemap/telemap/region"
)

// slow answers reads after a while, as something far away does.
type slow struct{ backend.Backend }

func (s slow) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return s.Backend.ReadAt(ctx, p, off)
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	start := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%6s  %s\n", time.Since(start).Round(time.Millisecond), fmt.Sprintf(format, args...))
	}
	b := slow{mem.New(1 << 20)}
	defer func() { err = errors.Join(err, b.Close()) }()
	p, err := pager.Open(ctx, b, pager.Options{
		// The end first, then the rest in ascending order, two ranges at a time.
		Pull: pager.PullOptions{Workers: 2, Ranges: []region.Range{{Off: 960 << 10, Len: 64 << 10}}},
		Hooks: pager.Hooks{
			ChunkLocal:  func(r region.Range) { say("local        %v", r) },
			BeforeSync:  func(context.Context) error { say("before sync"); return nil },
			BeforeClose: func(context.Context) error { say("before close"); return nil },
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close(ctx)) }()
	if _, err := p.WriteAt(ctx, []byte("hello"), 100<<10); err != nil {
		return err
	}
	say("written")
	if err := p.Ensure(ctx, 0, p.Size()); err != nil {
		return err
	}
	say("all is here")
	if err := p.Sync(ctx); err != nil {
		return err
	}
	say("synced")
	return nil
}
