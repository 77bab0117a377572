package retry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
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
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend { return New(mem.New(size), Options{}) })
}

func TestConformanceOfAFlakyBackend(t *testing.T) {
	var fired []*flaky.Failure
	backendtest.Suite{
		Open: func(t *testing.T, size int64) backend.Backend {
			f := []*flaky.Failure{
				flaky.Chance(flaky.Read, 0.1, 1), flaky.Chance(flaky.Write, 0.1, 2).After(), flaky.Chance(flaky.Sync, 0.3, 3),
				flaky.Chance(flaky.Zero, 0.2, 4), flaky.Chance(flaky.Discard, 0.2, 5), flaky.Short(flaky.Read, 2, 5), flaky.Short(flaky.Write, 3, 2),
			}
			fired = append(fired, f...)
			return New(flaky.Wrap(mem.New(size), f...), Options{MinDelay: 1, MaxDelay: 1, Attempt: time.Minute})
		},
		Ops: 100,
	}.Run(t)
	var n int64
	for _, f := range fired {
		n += f.Fired()
	}
	if n == 0 {
		t.Error("no failure fired")
	}
}

func TestRecoversAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := flaky.FailUntil(flaky.Read, 6)
		b := New(flaky.Wrap(mem.New(10), f), Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		defer b.Close()
		if n, err := b.ReadAt(t.Context(), make([]byte, 10), 0); n != 10 || err != nil {
			t.Errorf("ReadAt = %d, %v; want 10, nil", n, err)
		}
		if f.Fired() != 5 {
			t.Errorf("%d reads failed; want 5", f.Fired())
		}
		if got, want := b.Stats(), (Stats{Retries: 5, Recovered: 1}); got != want {
			t.Errorf("Stats() = %+v; want %+v", got, want)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 || !strings.Contains(log.String(), "tries=6") {
			t.Errorf("logged %d lines; want one for the failure and one for the success:\n%s", n, &log)
		}
	})
}

func TestGivesUpWhenTheBudgetIsSpent(t *testing.T) {
	for name, do := range map[string]func(b *Backend, ctx context.Context) error{
		"read":    func(b *Backend, ctx context.Context) error { _, err := b.ReadAt(ctx, []byte{0}, 0); return err },
		"write":   func(b *Backend, ctx context.Context) error { _, err := b.WriteAt(ctx, []byte{0}, 0); return err },
		"vec":     func(b *Backend, ctx context.Context) error { return b.ReadVec(ctx, []backend.Vec{{P: []byte{0}}}) },
		"sync":    func(b *Backend, ctx context.Context) error { return b.Sync(ctx) },
		"zero":    func(b *Backend, ctx context.Context) error { return b.Zero(ctx, 0, 1) },
		"discard": func(b *Backend, ctx context.Context) error { return b.Discard(ctx, 0, 1) },
		"seek":    func(b *Backend, ctx context.Context) error { _, err := b.NextData(ctx, 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner := flaky.Wrap(mem.New(10))
				for _, op := range []flaky.Op{flaky.Read, flaky.Write, flaky.Sync, flaky.Zero, flaky.Discard, flaky.NextData} {
					inner.Inject(flaky.FailFrom(op, 1))
				}
				b := New(inner, Options{Budget: time.Minute})
				defer b.Close()
				start := time.Now()
				err := do(b, t.Context())
				took := time.Since(start)
				if !errors.Is(err, flaky.ErrInjected) || !strings.Contains(err.Error(), "given up after") {
					t.Errorf("err = %v; want the last one, wrapped", err)
				}
				if took > time.Minute || took < 57*time.Second {
					t.Errorf("gave up after %v; want about a minute", took)
				}
				// With pauses of 1 s on average there are about 60 tries.
				if s := b.Stats(); s.GaveUp != 1 || s.Retries < 30 || s.Retries > 150 || s.Recovered != 0 {
					t.Errorf("Stats() = %+v", s)
				}
			})
		})
	}
}

func TestGoesOnWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, attempt := range []time.Duration{0, time.Second} {
			inner := flaky.Wrap(mem.New(10), flaky.Short(flaky.Write, 1, 4), flaky.Short(flaky.Write, 2, 3))
			b := New(inner, Options{Attempt: attempt})
			defer b.Close()
			if n, err := b.WriteAt(t.Context(), []byte("abcdefghij"), 0); n != 10 || err != nil {
				t.Errorf("WriteAt = %d, %v; want 10, nil", n, err)
			}
			p := make([]byte, 10)
			if err := backend.ReadFull(t.Context(), b, p, 0); err != nil || string(p) != "abcdefghij" {
				t.Errorf("ReadAt = %q, %v", p, err)
			}
			if n := inner.Calls(flaky.Write); n != 3 {
				t.Errorf("%d writes; want 3", n)
			}
		}
	})
}

func TestFinalErrorsAreNotRetried(t *testing.T) {
	for _, final := range []error{backend.ErrFenced, backend.ErrReadOnly, backend.ErrNotFound, context.DeadlineExceeded} {
		f := flaky.FailFrom(flaky.Sync, 1).With(final)
		b := New(flaky.Wrap(mem.New(1), f), Options{})
		defer b.Close()
		if err := b.Sync(t.Context()); err != final || f.Fired() != 1 {
			t.Errorf("Sync = %v after %d tries; want %v after 1", err, f.Fired(), final)
		}
	}
}

func TestPauseEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(b *Backend, cancel func())
		want error
	}{
		{"with the context", func(b *Backend, cancel func()) { cancel() }, context.Canceled},
		{"with Close", func(b *Backend, cancel func()) { b.Close() }, backend.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := New(flaky.Wrap(mem.New(1), flaky.FailFrom(flaky.Sync, 1)), Options{MinDelay: time.Hour, MaxDelay: time.Hour, Budget: 100 * time.Hour})
				defer b.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error)
				go func() { done <- b.Sync(ctx) }()
				synctest.Wait()
				start := time.Now()
				c.end(b, cancel)
				if err := <-done; !errors.Is(err, c.want) || time.Since(start) != 0 {
					t.Errorf("Sync = %v after %v; want %v at once", err, time.Since(start), c.want)
				}
			})
		})
	}
}

func TestAttemptIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := flaky.Stall(flaky.Read, 1)
		b := New(flaky.Wrap(mem.New(1), f), Options{Attempt: time.Second, MaxDelay: time.Second})
		defer b.Close()
		start := time.Now()
		if n, err := b.ReadAt(t.Context(), make([]byte, 1), 0); n != 1 || err != nil {
			t.Errorf("ReadAt = %d, %v; want 1, nil", n, err)
		}
		if took := time.Since(start); took < time.Second || took > 2*time.Second || f.Fired() != 1 {
			t.Errorf("took %v with %d stalls; want a second and a pause, with 1", took, f.Fired())
		}
		// The caller's own deadline is not a try that was cut off.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		b2 := New(flaky.Wrap(mem.New(1), flaky.StallFrom(flaky.Read, 1)), Options{Attempt: time.Second})
		defer b2.Close()
		if _, err := b2.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ReadAt = %v; want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	b := New(mem.New(1<<20), Options{})
	defer b.Close()
	p := make([]byte, 4096)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { b.ReadAt(ctx, p, 0) }); n != 0 {
		t.Errorf("%v allocations per read; want 0", n)
	}
}
