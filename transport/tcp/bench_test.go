package tcp

import (
	"fmt"
	"sync/atomic"
	"testing"
)

var sizes = []int{4 << 10, 64 << 10, 256 << 10}

func BenchmarkRead(b *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		r := open(b, dial(b, serve(b, network, NewServer(only(newHooked(16<<20)), ServerOptions{})), Options{}), "r")
		for _, n := range sizes {
			b.Run(fmt.Sprintf("net=%s/size=%dK", network, n>>10), func(b *testing.B) {
				p, ctx := make([]byte, n), b.Context()
				b.SetBytes(int64(n))
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					if _, err := r.ReadAt(ctx, p, off); err != nil {
						b.Fatal(err)
					}
					off = (off + int64(n)) % (16 << 20)
				}
			})
		}
	}
}

// BenchmarkSequential reads in pieces of 1 MiB, four at a time.
func BenchmarkSequential(b *testing.B) {
	r := open(b, dial(b, serve(b, "tcp", NewServer(only(newHooked(64<<20)), ServerOptions{})), Options{}), "r")
	var next atomic.Int64
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	b.SetParallelism(2) // of two cores each
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 1<<20)
		for pb.Next() {
			if _, err := r.ReadAt(b.Context(), p, next.Add(1<<20)%(64<<20)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	r := open(b, dial(b, serve(b, "tcp", NewServer(only(newHooked(16<<20)), ServerOptions{})), Options{}), "r")
	for _, n := range sizes {
		b.Run(fmt.Sprintf("size=%dK", n>>10), func(b *testing.B) {
			p, ctx := make([]byte, n), b.Context()
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.WriteAt(ctx, p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAllocationsPerRead(t *testing.T) {
	r := open(t, dial(t, serve(t, "tcp", NewServer(only(newHooked(1<<20)), ServerOptions{})), Options{}), "r")
	p, ctx := make([]byte, 4096), t.Context()
	// Both sides are in this process.
	const most = 8
	if n := testing.AllocsPerRun(2000, func() {
		if _, err := r.ReadAt(ctx, p, 8192); err != nil {
			t.Fatal(err)
		}
	}); n > most {
		t.Errorf("%v allocations per read of 4 KiB; want at most %d", n, most)
	}
}
