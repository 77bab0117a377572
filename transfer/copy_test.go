package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transfer"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// sparse is a backend that knows its holes and counts reads in them.
type sparse struct {
	*mem.Store
	data []region.Range
}

func (s *sparse) NextData(_ context.Context, off int64) (region.Range, error) {
	for _, r := range s.data {
		if r.End() > off {
			return r.Intersect(region.Range{Off: off, Len: s.Size()}), nil
		}
	}
	return region.Range{}, io.EOF
}

func (s *sparse) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	for _, r := range s.data {
		if r.Contains(region.Range{Off: off, Len: int64(len(p))}) {
			return s.Store.ReadAt(ctx, p, off)
		}
	}
	return 0, fmt.Errorf("a hole was read at [%d,%d)", off, off+int64(len(p)))
}

func content(t *testing.T, b backend.Backend) []byte {
	t.Helper()
	p := make([]byte, b.Size())
	if err := backend.ReadFull(t.Context(), b, p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func fill(t *testing.T, b backend.Backend, r region.Range, seed uint64) {
	t.Helper()
	p := make([]byte, r.Len)
	testkit.Pattern(p, r.Off, seed)
	if _, err := b.WriteAt(t.Context(), p, r.Off); err != nil {
		t.Fatal(err)
	}
}

func TestCopySkipsHolesAndZerosAndReplacesWhatWasThere(t *testing.T) {
	const size = 9<<20 + 77
	src := &sparse{mem.New(size), []region.Range{{Off: 100, Len: 3 << 20}, {Off: 8 << 20, Len: 1<<20 + 77}}}
	fill(t, src, src.data[0], 1)
	fill(t, src, region.Range{Off: size - 5, Len: 5}, 2) // the rest of the second range is zeros
	for _, block := range []int64{0, 4096, 1<<20 + 13} {
		dst := mem.New(size)
		fill(t, dst, region.Range{Len: size}, 3)
		var mu sync.Mutex
		var last transfer.Stats
		s, err := transfer.Copy(t.Context(), dst, src, transfer.Options{Block: block, Workers: 3, Progress: func(s transfer.Stats) {
			if !mu.TryLock() {
				t.Error("Progress was called twice at a time")
				return
			}
			defer mu.Unlock()
			last = s
		}})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, dst), content(t, src.Store)) {
			t.Errorf("block %d: the copy differs", block)
		}
		if s.Covered() != size || last.Covered() != size || s.Holes != size-src.data[0].Len-src.data[1].Len {
			t.Errorf("block %d: %+v, last progress %+v; want the whole size covered, the holes skipped", block, s, last)
		}
		if s.Zeros == 0 && block == 4096 {
			t.Errorf("block %d: no zeros were found", block)
		}
	}
}

func TestCopyReportsFailures(t *testing.T) {
	src, dst := mem.New(1<<20), mem.New(1<<20)
	fill(t, src, region.Range{Len: 1 << 20}, 1)
	if _, err := transfer.Copy(t.Context(), mem.New(5), src, transfer.Options{}); err == nil {
		t.Error("a copy between different sizes went through")
	}
	if _, err := transfer.Copy(t.Context(), dst, src, transfer.Options{Workers: -1}); err == nil {
		t.Error("negative workers were accepted")
	}
	cause := errors.New("torn")
	for name, c := range map[string]struct{ dst, src backend.Backend }{
		"read":  {dst, &broken{Store: src, read: cause}},
		"write": {&broken{Store: dst, write: cause}, src},
		"sync":  {&broken{Store: dst, sync: cause}, src},
	} {
		if _, err := transfer.Copy(t.Context(), c.dst, c.src, transfer.Options{Block: 4096}); !errors.Is(err, cause) {
			t.Errorf("%s: Copy = %v; want the cause", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := transfer.Copy(ctx, dst, src, transfer.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled copy returned %v", err)
	}
}

type broken struct {
	*mem.Store
	read, write, sync error
}

func (b *broken) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if b.read != nil {
		return 0, b.read
	}
	return b.Store.ReadAt(ctx, p, off)
}

func (b *broken) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if b.write != nil {
		return 0, b.write
	}
	return b.Store.WriteAt(ctx, p, off)
}

func (b *broken) Sync(ctx context.Context) error {
	if b.sync != nil {
		return b.sync
	}
	return b.Store.Sync(ctx)
}
