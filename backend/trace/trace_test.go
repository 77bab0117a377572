package trace

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/flaky"
	"github.com/telemap/telemap/backend/mem"
)

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend { return New(mem.New(size), Options{}) })
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := flaky.Fail(flaky.Write, 2)
		b := New(flaky.Wrap(mem.New(1000), flaky.Delay(flaky.Read, 3*time.Millisecond), fail), Options{})
		defer b.Close()
		ctx := t.Context()
		p := make([]byte, 100)
		b.ReadAt(ctx, p, 950) // 50 bytes and EOF, which is no failure
		b.ReadVec(ctx, []backend.Vec{{P: p}, {P: p, Off: 200}})
		b.WriteAt(ctx, p, 0)
		b.WriteAt(ctx, p, 0)
		b.Zero(ctx, 0, 300)
		b.Zero(ctx, 0, 3000)
		b.Discard(ctx, 0, 400)
		b.NextData(ctx, 0)
		b.Sync(ctx)

		s := b.Stats()
		for _, c := range []struct {
			name                         string
			got                          OpStats
			count, errors, bytes, millis int64
		}{
			{"read", s.Read, 2, 0, 250, 6},
			{"write", s.Write, 2, 1, 100, 0},
			{"zero", s.Zero, 2, 1, 300, 0},
			{"discard", s.Discard, 1, 0, 400, 0},
			{"next data", s.NextData, 1, 0, 0, 0},
			{"sync", s.Sync, 1, 0, 0, 0},
		} {
			g := c.got
			if g.Count != c.count || g.Errors != c.errors || g.Bytes != c.bytes || g.Time.Milliseconds() != c.millis || g.Active != 0 {
				t.Errorf("%s: %+v; want %d operations, %d errors, %d bytes, %d ms", c.name, g, c.count, c.errors, c.bytes, c.millis)
			}
		}
		if fail.Fired() != 1 {
			t.Error("the failure did not fire")
		}
		if got := s.Read.Mean(); got != 3*time.Millisecond {
			t.Errorf("Mean() = %v; want 3ms", got)
		}
		if got := s.Read.Quantile(0.99); got != 4096*time.Microsecond {
			t.Errorf("Quantile(0.99) = %v; want 4.096ms", got)
		}
		if (OpStats{}).Mean() != 0 || (OpStats{}).Quantile(0.5) != 0 {
			t.Error("Mean and Quantile of nothing are not 0")
		}
	})
}

func TestActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stall := flaky.Stall(flaky.Sync, 1)
		b := New(flaky.Wrap(mem.New(1), stall), Options{})
		defer b.Close()
		done := make(chan error)
		go func() { done <- b.Sync(t.Context()) }()
		<-stall.Held()
		if s := b.Stats().Sync; s.Active != 1 || s.Count != 0 {
			t.Errorf("during Sync: %d active, %d done; want 1, 0", s.Active, s.Count)
		}
		stall.Release()
		<-done
	})
}

func TestBuckets(t *testing.T) {
	for i := range NumBuckets {
		if got := bucket(Bound(i)); got != i {
			t.Errorf("%v is in bucket %d; want %d", Bound(i), got, i)
		}
		if i < NumBuckets-1 {
			if got := bucket(Bound(i) + 1); got != i+1 {
				t.Errorf("%v is in bucket %d; want %d", Bound(i)+1, got, i+1)
			}
		}
	}
	if got := bucket(0); got != 0 {
		t.Errorf("0 is in bucket %d; want 0", got)
	}
}

func TestLogs(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b := New(flaky.Wrap(mem.New(100), flaky.Fail(flaky.Write, 1)), Options{Logger: log, Name: "disk"})
	defer b.Close()
	b.WriteAt(t.Context(), make([]byte, 7), 3)
	b.ReadAt(t.Context(), make([]byte, 200), 0)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{"op=write region=disk off=3 len=7 done=0 took=", "op=read region=disk off=0 len=200 done=100 took="} {
		if i >= len(lines) || !strings.Contains(lines[i], want) || strings.Contains(lines[i], "err=") != (i == 0) {
			t.Errorf("log:\n%s\nwant %q in line %d, err= in the first only", &out, want, i+1)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	b := New(mem.New(1<<20), Options{})
	defer b.Close()
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { b.ReadAt(t.Context(), p, 0) }); n != 0 {
		t.Errorf("%v allocations per read; want 0", n)
	}
}
