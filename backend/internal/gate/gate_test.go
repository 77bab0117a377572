package gate

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestShutWaitsForThoseInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		for range 2 {
			if !g.Enter() {
				t.Fatal("Enter() = false on an open gate")
			}
		}
		var firsts, shut atomic.Int64
		for range 3 {
			go func() {
				if g.Shut() {
					firsts.Add(1)
				}
				shut.Add(1)
			}()
		}
		synctest.Wait()
		if g.Enter() {
			t.Error("Enter() = true on a gate being shut")
		}
		g.Leave()
		synctest.Wait()
		if n := shut.Load(); n != 0 {
			t.Errorf("%d calls of Shut returned with an operation inside", n)
		}
		g.Leave()
		synctest.Wait()
		if n := shut.Load(); n != 3 || firsts.Load() != 1 {
			t.Errorf("%d of 3 calls of Shut returned, %d said to be the first; want 3 and 1", n, firsts.Load())
		}
		if g.Enter() {
			t.Error("Enter() = true on a shut gate")
		}
		if g.Shut() {
			t.Error("a later Shut() = true")
		}
	})
}

func TestNobodyInsideAfterShut(t *testing.T) {
	for range 200 {
		var g Gate
		var inside atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for g.Enter() {
					inside.Add(1)
					inside.Add(-1)
					g.Leave()
				}
			})
		}
		g.Shut()
		if n := inside.Load(); n != 0 {
			t.Fatalf("%d inside after Shut", n)
		}
		wg.Wait()
	}
}

func TestNoAllocation(t *testing.T) {
	var g Gate
	if n := testing.AllocsPerRun(100, func() { g.Enter(); g.Leave() }); n != 0 {
		t.Errorf("%v allocations per operation; want 0", n)
	}
}
