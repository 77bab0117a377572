package grpc

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkRead reports the median time of one read over loopback TCP.
func BenchmarkRead(b *testing.B) {
	r := open(b, dial(b, serve(b, only(memory(b, 64<<20)), ServerOptions{}).addr, Options{}), "")
	for off := int64(0); off < r.Size(); off += 1 << 20 {
		if _, err := r.WriteAt(b.Context(), make([]byte, 1<<20), off); err != nil {
			b.Fatal(err)
		}
	}
	for _, size := range []int64{4 << 10, 64 << 10, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("size=%dK", size>>10), func(b *testing.B) {
			p := make([]byte, size)
			b.SetBytes(size)
			b.ReportAllocs()
			var took []time.Duration
			var off int64
			for b.Loop() {
				began := time.Now()
				if _, err := r.ReadAt(b.Context(), p, off); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				off = (off + size) % r.Size()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
		})
	}
}
