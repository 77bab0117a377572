package region_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/telemap/telemap/region"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		off, n, size int64
		want         bool
	}{
		{0, 0, 1, true}, {0, 1, 1, true}, {1, 0, 1, true}, {1, 1, 1, false}, {2, 0, 1, false},
		{-1, 1, 10, false}, {0, -1, 10, false}, {math.MaxInt64, 1, 10, false}, {1, math.MaxInt64, 10, false},
		{math.MaxInt64, math.MaxInt64, math.MaxInt64, false}, {math.MinInt64, 0, 10, false}, {0, math.MaxInt64, math.MaxInt64, true},
	} {
		if got := region.Check(c.off, c.n, c.size); got != c.want {
			t.Errorf("Check(%d, %d, %d) = %v; want %v", c.off, c.n, c.size, got, c.want)
		}
	}
}

func TestRange(t *testing.T) {
	r := region.Range{Off: 10, Len: 5}
	if r.End() != 15 || r.Empty() || r.String() != "[10,15)" || !(region.Range{Off: 3}).Empty() {
		t.Errorf("%v: End %d, Empty %v", r, r.End(), r.Empty())
	}
	for _, c := range []struct {
		s    region.Range
		in   bool
		meet region.Range
	}{
		{region.Range{Off: 10, Len: 5}, true, region.Range{Off: 10, Len: 5}},
		{region.Range{Off: 12, Len: 1}, true, region.Range{Off: 12, Len: 1}},
		{region.Range{Off: 9, Len: 2}, false, region.Range{Off: 10, Len: 1}},
		{region.Range{Off: 14, Len: 2}, false, region.Range{Off: 14, Len: 1}},
		{region.Range{Off: 15, Len: 2}, false, region.Range{}},
		{region.Range{Off: 15}, true, region.Range{}},
		{region.Range{Off: 0, Len: 10}, false, region.Range{}},
		{region.Range{Off: 0, Len: 100}, false, region.Range{Off: 10, Len: 5}},
	} {
		if got := r.Contains(c.s); got != c.in {
			t.Errorf("%v.Contains(%v) = %v; want %v", r, c.s, got, c.in)
		}
		if got := r.Intersect(c.s); got != c.meet {
			t.Errorf("%v.Intersect(%v) = %v; want %v", r, c.s, got, c.meet)
		}
	}
}

func TestGeometryOfEverySize(t *testing.T) {
	for _, size := range []int64{1, 4095, 4096, 4097, 8191, 8192, 3*4096 + 1, 1<<40 + 5} {
		g, err := region.NewGeometry(size, 4096)
		if err != nil {
			t.Fatal(err)
		}
		last := g.Range(g.Chunks() - 1)
		if last.End() != size || last.Empty() {
			t.Errorf("size %d: the last chunk is %v", size, last)
		}
		if g.Span(0, g.Chunks()) != (region.Range{Len: size}) {
			t.Errorf("size %d: all chunks span %v", size, g.Span(0, g.Chunks()))
		}
		for range 100 {
			off := rand.Int64N(size)
			r := region.Range{Off: off, Len: 1 + rand.Int64N(size-off)}
			first, end := g.Cover(r)
			if s := g.Span(first, end); !s.Contains(r) || g.Range(first).End() <= r.Off || g.Range(end-1).Off >= r.End() {
				t.Errorf("size %d: %v is covered by [%d,%d), which spans %v", size, r, first, end, s)
			}
			if i := g.Index(off); !g.Range(i).Contains(region.Range{Off: off, Len: 1}) {
				t.Errorf("size %d: byte %d is not in chunk %d", size, off, i)
			}
		}
	}
	if g, _ := region.NewGeometry(100, 0); g.ChunkSize() != region.DefaultChunkSize {
		t.Errorf("the default chunk has %d bytes", g.ChunkSize())
	}
	if first, end := must(region.NewGeometry(10000, 4096)).Cover(region.Range{Off: 5000}); first != end {
		t.Errorf("an empty range is covered by [%d,%d)", first, end)
	}
	for _, bad := range [][2]int64{{0, 4096}, {-1, 4096}, {10, 1}, {10, 4095}, {10, 5000}, {10, 8 << 20}, {10, -4096}} {
		if _, err := region.NewGeometry(bad[0], bad[1]); err == nil {
			t.Errorf("NewGeometry(%d, %d) succeeded", bad[0], bad[1])
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestBitmapAgainstAModel(t *testing.T) {
	for _, n := range []region.ChunkIndex{1, 63, 64, 65, 200, 1000} {
		b, model := region.NewBitmap(n), make([]bool, n)
		for step := range 3000 {
			i := rand.N(n)
			switch rand.IntN(3) {
			case 0:
				if got := b.Set(i); got == model[i] {
					t.Fatalf("step %d: Set(%d) = %v with the bit %v", step, i, got, model[i])
				}
				model[i] = true
			case 1:
				if got := b.Clear(i); got != model[i] {
					t.Fatalf("step %d: Clear(%d) = %v with the bit %v", step, i, got, model[i])
				}
				model[i] = false
			default:
				if b.Test(i) != model[i] {
					t.Fatalf("step %d: Test(%d) = %v", step, i, b.Test(i))
				}
				for _, want := range []bool{true, false} {
					next := n
					if k := slices.Index(model[i:], want); k >= 0 {
						next = i + region.ChunkIndex(k)
					}
					got := b.NextSet(i)
					if !want {
						got = b.NextClear(i)
					}
					if got != next {
						t.Fatalf("step %d: next %v bit from %d is %d; want %d", step, want, i, got, next)
					}
				}
			}
		}
		count, again := region.ChunkIndex(0), make([]bool, n)
		for first, end := range b.Runs() {
			if first >= end || end < n && model[end] {
				t.Fatalf("Runs gave [%d,%d), which is not a maximal run", first, end)
			}
			for ; first < end; first++ {
				again[first] = true
				count++
			}
		}
		if !slices.Equal(again, model) || b.Count() != count || b.Len() != n {
			t.Errorf("n=%d: Runs or Count (%d) differ from the model", n, b.Count())
		}
		if b.NextSet(n) != n || b.NextClear(n+5) != n {
			t.Errorf("n=%d: a search from behind the end found something", n)
		}
	}
}

func TestBitmapKeepsWordsAndDropsWhatIsBehindTheEnd(t *testing.T) {
	words := []uint64{^uint64(0), ^uint64(0)}
	b := region.BitmapOn(70, words)
	if b.Count() != 70 || !b.Test(69) || words[1] != 1<<6-1 {
		t.Errorf("%d bits set, last word %x", b.Count(), words[1])
	}
}

func TestBitmapConcurrently(t *testing.T) {
	b := region.NewBitmap(64)
	var wg sync.WaitGroup
	for i := range region.ChunkIndex(64) {
		wg.Go(func() {
			for range 1000 {
				if !b.Set(i) || !b.Clear(i) {
					t.Errorf("bit %d was changed by somebody else", i)
					return
				}
			}
			b.Set(i)
		})
	}
	wg.Wait()
	if b.Count() != 64 {
		t.Errorf("%d bits set; want 64", b.Count())
	}
}

func TestAllZero(t *testing.T) {
	p := make([]byte, 100_000)
	if !region.AllZero(p) || !region.AllZero(nil) {
		t.Error("zeros are not all zero")
	}
	for _, i := range []int{0, 1, 4095, 99_999} {
		p[i] = 1
		if region.AllZero(p) || region.AllZero(p[i:i+1]) {
			t.Errorf("a one at %d went unseen", i)
		}
		p[i] = 0
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	all := []error{region.ErrClosed, region.ErrOutOfRange, region.ErrReadOnly, region.ErrNotFound, region.ErrFenced, region.ErrNoSpace, region.ErrUnavailable, region.ErrLost, region.ErrBadRequest}
	for i, a := range all {
		for k, b := range all {
			if errors.Is(fmt.Errorf("x: %w", a), b) != (i == k) {
				t.Errorf("%v is %v: %v", a, b, i != k)
			}
		}
	}
}

func BenchmarkBitmapTest(b *testing.B) {
	m := region.NewBitmap(1 << 20)
	var i region.ChunkIndex
	for b.Loop() {
		m.Test(i & (1<<20 - 1))
		i += 4099
	}
}

func ExampleGeometry() {
	g, err := region.NewGeometry(150_000, 64<<10)
	if err != nil {
		panic(err)
	}
	fmt.Println(g.Chunks(), "chunks, the last is", g.Range(g.Chunks()-1))
	first, end := g.Cover(region.Range{Off: 60_000, Len: 10_000})
	fmt.Println("bytes 60000 to 70000 are in chunks", first, "to", end-1)
	// Output:
	// 3 chunks, the last is [131072,150000)
	// bytes 60000 to 70000 are in chunks 0 to 1
}
