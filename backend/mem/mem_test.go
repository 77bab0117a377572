package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend { return New(size) })
}

func TestTerabyteTakesWhatIsWritten(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the Go heap holds the region")
	}
	ctx := t.Context()
	before := resident(t)
	b := New(1 << 40)
	defer b.Close()
	p := bytes.Repeat([]byte{7}, 4096)
	for off := int64(0); off < 1<<40; off += 1 << 36 {
		if _, err := b.WriteAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
	}
	q := make([]byte, 64<<20) // read across holes: takes no memory behind them
	if err := backend.ReadFull(ctx, b, q, 1<<36-4096); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(q[4096:8192], p) || q[4095] != 0 || q[8192] != 0 {
		t.Error("the bytes at 1<<36 are not those written")
	}
	if grown := resident(t) - before; grown > 100<<20 {
		t.Errorf("resident memory grew by %d MiB after writing 64 KiB and reading 64 MiB", grown>>20)
	}
	var found int64
	for off := int64(0); ; {
		r, err := b.NextData(ctx, off)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found += r.Len
		off = r.End()
	}
	if found != 16<<minGranuleShift {
		t.Errorf("NextData found %d bytes; want %d", found, 16<<minGranuleShift)
	}
}

func TestZeroGivesMemoryBack(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the Go heap holds the region")
	}
	ctx := t.Context()
	b := New(128<<20 + 5)
	defer b.Close()
	p := bytes.Repeat([]byte{7}, 1<<20)
	for off := int64(0); off < 128<<20; off += 1 << 20 {
		if _, err := b.WriteAt(ctx, p, off); err != nil {
			t.Fatal(err)
		}
	}
	full := resident(t)
	if err := b.Discard(ctx, 100, b.Size()-100); err != nil {
		t.Fatal(err)
	}
	if freed := full - resident(t); freed < 100<<20 {
		t.Errorf("Discard of 128 MiB gave %d MiB back", freed>>20)
	}
	q := make([]byte, 200)
	if err := backend.ReadFull(ctx, b, q, 0); err != nil || q[99] != 7 || q[100] != 0 {
		t.Errorf("ReadAt = ..., %v with bytes 99 and 100 = %d, %d; want 7, 0", err, q[99], q[100])
	}
	if _, err := b.NextData(ctx, 1<<minGranuleShift); err != io.EOF {
		t.Errorf("NextData after Discard = %v; want EOF", err)
	}
}

func TestTooLargeIsAnErrorOfWrites(t *testing.T) {
	b := New(math.MaxInt64)
	defer b.Close()
	if _, err := b.WriteAt(t.Context(), []byte{1}, 0); !errors.Is(err, region.ErrNoSpace) {
		t.Errorf("WriteAt = %v; want %v", err, region.ErrNoSpace)
	}
	p := []byte{9}
	if _, err := b.ReadAt(t.Context(), p, math.MaxInt64-1); err != nil || p[0] != 0 {
		t.Errorf("ReadAt = %v, byte %d; want nil, 0", err, p[0])
	}
}

func TestNewPanicsWithoutSize(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New(0) did not panic")
		}
	}()
	New(0)
}

func TestNoAllocation(t *testing.T) {
	b := New(1 << 20)
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		b.WriteAt(ctx, p, 4096)
		b.ReadAt(ctx, p, 4096)
		b.ReadAt(ctx, p, 512<<10)
	}); n != 0 {
		t.Errorf("%v allocations per write and two reads; want 0", n)
	}
}

func resident(t *testing.T) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("no VmRSS in /proc/self/status")
	return 0
}

func BenchmarkReadAt(b *testing.B) {
	const size = 256 << 20
	s := New(size)
	defer s.Close()
	for off := int64(0); off < size; off += 1 << 20 {
		s.WriteAt(b.Context(), bytes.Repeat([]byte{1}, 1<<20), off)
	}
	for _, n := range []int64{4 << 10, 64 << 10, 1 << 20} {
		p := make([]byte, n)
		b.Run(fmt.Sprintf("len=%dK/mem", n>>10), func(b *testing.B) {
			b.SetBytes(n)
			b.ReportAllocs()
			var off int64
			for b.Loop() {
				s.ReadAt(b.Context(), p, off)
				off = (off + n) % size
			}
		})
		b.Run(fmt.Sprintf("len=%dK/memcpy", n>>10), func(b *testing.B) {
			b.SetBytes(n)
			var off int64
			for b.Loop() {
				copy(p, s.data[off:])
				off = (off + n) % size
			}
		})
	}
}
