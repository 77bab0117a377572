package limit

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/flaky"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestConformance(t *testing.T) {
	for name, o := range map[string]Options{
		"none":  {},
		"turns": {Concurrency: 2},
		"rates": {ReadRate: math.MaxInt64, WriteRate: 1 << 40, Concurrency: 100},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Suite{
				Open: func(t *testing.T, size int64) backend.Backend { return New(mem.New(size), o) },
				Ops:  100,
			}.Run(t)
		})
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(mem.New(1<<20), Options{ReadRate: 1000, WriteRate: 500, Burst: 200})
		defer b.Close()
		ctx := t.Context()
		took := func(what string, want time.Duration, do func() error) {
			t.Helper()
			start := time.Now()
			if err := do(); err != nil {
				t.Errorf("%s = %v", what, err)
			}
			if got := time.Since(start).Round(time.Millisecond); got != want {
				t.Errorf("%s took %v; want %v", what, got, want)
			}
		}
		read := func(n int) func() error {
			return func() error { return backend.ReadFull(ctx, b, make([]byte, n), 0) }
		}
		took("a read within the burst", 0, read(200))
		took("the next one", 300*time.Millisecond, read(300))
		time.Sleep(time.Hour)
		took("one above the burst", 800*time.Millisecond, read(1000))
		took("ReadVec", 100*time.Millisecond, func() error {
			return b.ReadVec(ctx, []backend.Vec{{P: make([]byte, 50)}, {P: make([]byte, 50), Off: 100}})
		})
		took("a write, which has a rate of its own", 600*time.Millisecond, func() error {
			_, err := b.WriteAt(ctx, make([]byte, 500), 0)
			return err
		})
		took("Zero, which moves no bytes", 0, func() error { return b.Zero(ctx, 0, 1<<20) })
		took("Discard, which moves none either", 0, func() error { return b.Discard(ctx, 0, 1<<20) })
		if s := b.Stats(); s.Waits != 4 || s.Waited.Round(time.Millisecond) != 1800*time.Millisecond {
			t.Errorf("Stats() = %+v; want 4 waits of 1.8s", s)
		}
	})
}

func TestManyReadersShareTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(mem.New(100), Options{ReadRate: 1000, Burst: 1})
		defer b.Close()
		start := time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 4 {
					if err := backend.ReadFull(t.Context(), b, make([]byte, 100), 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if took := time.Since(start).Round(100 * time.Millisecond); took != 20*time.Second {
			t.Errorf("20000 bytes at 1000 a second took %v; want 20s", took)
		}
	})
}

// bare has no ability, so that zeroes have to be written.
type bare struct{ backend.Backend }

func TestZerosThatAreWrittenCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(bare{mem.New(1000)}, Options{WriteRate: 100})
		defer b.Close()
		start := time.Now()
		if err := errors.Join(b.Zero(t.Context(), 0, 500), b.Discard(t.Context(), 0, 500)); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < 9*time.Second {
			t.Errorf("zeroing 1000 bytes at 100 a second took %v", took)
		}
	})
}

func TestWaitsEnd(t *testing.T) {
	for _, o := range []Options{{WriteRate: 1, Burst: 1}, {Concurrency: 1}} {
		for _, c := range []struct {
			name string
			end  func(b *Backend, cancel func())
			want error
		}{
			{"by the context", func(_ *Backend, cancel func()) { cancel() }, context.Canceled},
			{"by Close", func(b *Backend, _ func()) { b.Close() }, backend.ErrClosed},
		} {
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					stall := flaky.StallFrom(flaky.Sync, 1)
					b := New(flaky.Wrap(mem.New(100000), stall), o)
					ctx, cancel := context.WithCancel(t.Context())
					first := make(chan error, 1)
					go func() { first <- b.Sync(t.Context()) }() // takes the only turn
					<-stall.Held()
					second := make(chan error, 1)
					go func() { _, err := b.WriteAt(ctx, make([]byte, 100000), 0); second <- err }()
					synctest.Wait()
					start := time.Now()
					c.end(b, cancel)
					if err := <-second; !errors.Is(err, c.want) || time.Since(start) != 0 {
						t.Errorf("WriteAt = %v after %v; want %v at once", err, time.Since(start), c.want)
					}
					stall.Release()
					<-first
					cancel()
					b.Close()
				})
			})
		}
	}
}

func TestWhoGivesUpDoesNotPay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(mem.New(1000), Options{ReadRate: 100, Burst: 1})
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := b.ReadAt(ctx, make([]byte, 1000), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ReadAt = %v; want %v", err, context.DeadlineExceeded)
		}
		start := time.Now()
		if err := backend.ReadFull(t.Context(), b, make([]byte, 100), 0); err != nil || time.Since(start) > time.Second {
			t.Errorf("the next read = %v after %v; want nil after less than 1s", err, time.Since(start))
		}
	})
}

func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stall := flaky.StallFrom(flaky.Read, 1)
		inner := flaky.Wrap(mem.New(10), stall)
		b := New(inner, Options{Concurrency: 3})
		defer b.Close()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { b.ReadAt(t.Context(), make([]byte, 1), 0) })
		}
		synctest.Wait()
		if n := inner.Calls(flaky.Read); n != 3 {
			t.Errorf("%d operations at a time; want 3", n)
		}
		stall.Release()
		wg.Wait()
		if n := inner.Calls(flaky.Read); n != 10 {
			t.Errorf("%d operations in the end; want 10", n)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	b := New(mem.New(1<<20), Options{ReadRate: 1 << 50, Concurrency: 4})
	defer b.Close()
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { b.ReadAt(t.Context(), p, 0) }); n != 0 {
		t.Errorf("%v allocations per read; want 0", n)
	}
}
