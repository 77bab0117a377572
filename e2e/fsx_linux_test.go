package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
)

// Whatever programs do to a mounted file, by whichever way, it holds what a plain
// array would, and so does the served file whenever it was synced.
func TestRandomOperations(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	for _, mode := range []struct {
		name  string
		size  int64
		flags []string
	}{
		{"managed", 3<<20 + 1234, []string{"--push-interval", "20ms"}},
		{"direct", 2<<20 + 512, []string{"--direct"}},
		{"cache", 3<<20 + 4096, []string{"--push-interval", "20ms", "--chunk", "16KiB", "--cache"}},
		{"no-pull", 1<<20 + 1, []string{"--no-pull", "--chunk", "4KiB"}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			ops := 6000
			switch {
			case soak():
				ops = 150_000
			case testing.Short():
				ops = 500
			}
			flags := slices.Clone(mode.flags)
			if flags[len(flags)-1] == "--cache" {
				flags = append(flags, filepath.Join(t.TempDir(), "cache"))
			}
			served := patternFile(t, mode.size)
			x := &exerciser{
				t: t, rnd: testkit.Rand(t), size: mode.size, want: pattern(mode.size),
				served: served, url: serve(t, served).url, path: mountPath(t), flags: flags,
			}
			x.mount()
			t.Cleanup(x.close)
			for range ops {
				x.step()
			}
			x.remount()
			x.close()
			x.m.unmount()
			wantBytes(t, served, x.want)
		})
	}
}

// An exerciser does random things to a mounted file and to a model of it.
type exerciser struct {
	t    testing.TB
	rnd  *rand.Rand
	size int64
	want []byte // what the file should hold
	done []string

	served, url, path string
	flags             []string

	m      *mounted
	f, dio *os.File
	shared []byte // the file, mapped
}

func (x *exerciser) mount() {
	x.m = mount(x.t, x.url, x.path, x.flags...)
	x.open()
}

func (x *exerciser) open() {
	var err error
	if x.f, err = os.OpenFile(x.path, os.O_RDWR, 0); err != nil {
		x.t.Fatal(err)
	}
	if x.dio, err = os.OpenFile(x.path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		x.t.Fatal(err)
	}
	if x.shared, err = unix.Mmap(int(x.f.Fd()), 0, int(x.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		x.t.Fatal(err)
	}
}

func (x *exerciser) close() {
	if x.shared != nil {
		_ = unix.Munmap(x.shared)
		x.shared = nil
	}
	for _, f := range []*os.File{x.f, x.dio} {
		_ = f.Close()
	}
}

func (x *exerciser) remount() {
	x.close()
	x.m.unmount()
	wantBytes(x.t, x.served, x.want)

	x.mount()
}

// span is a random range, mostly short, often at a boundary.
func (x *exerciser) span(align int64) (off, n int64) {
	most := []int64{64, 4096, 20_000, 300_000}[x.rnd.IntN(4)]
	off, n = x.rnd.Int64N(x.size), 1+x.rnd.Int64N(most)
	switch x.rnd.IntN(4) {
	case 0:
		off = off &^ 4095
	case 1:
		off = min(off&^0xffff+0x10000-n/2, x.size-1) // across a chunk's end
	case 2:
		if x.rnd.IntN(4) == 0 {
			off = max(0, x.size-n)
		}
	}
	off = max(0, off)
	n = min(n, x.size-off)
	if align > 1 {
		off &^= align - 1
		n = min((n+align-1)&^(align-1), (x.size-off)&^(align-1))
	}
	return off, n
}

func (x *exerciser) bytes(n int64) []byte {
	b := make([]byte, n)
	if x.rnd.IntN(8) == 0 {
		return b // zeros may be stored as holes
	}
	testkit.Pattern(b, x.rnd.Int64N(1<<40), x.rnd.Uint64())
	return b
}

func (x *exerciser) step() {
	x.t.Helper()
	var (
		what string
		err  error
	)
	switch n := x.rnd.IntN(1000); {
	case n < 150:
		what, err = x.read("read", x.f, 1)
	case n < 200:
		what, err = x.read("read O_DIRECT", x.dio, 512)
	case n < 350:
		what, err = x.readMapped()
	case n < 530:
		what, err = x.write("write", x.f, 1)
	case n < 610:
		what, err = x.write("write O_DIRECT", x.dio, 512)
	case n < 790:
		what, err = x.writeMapped()
	case n < 830:
		what, err = x.zero("punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
	case n < 870:
		what, err = x.zero("zero range", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	case n < 890:
		what, err = x.beyond()
	case n < 930:
		what, err = x.sync("fsync", func() error { return x.f.Sync() })
	case n < 960:
		what, err = x.sync("msync", func() error { return unix.Msync(x.shared, unix.MS_SYNC) })
	case n < 970:
		what, err = "seek", x.seek()
	case n < 995:
		what = "reopen"
		x.close()
		x.open()
	case n < 998:
		what = "remount"
		x.remount()
	default:
		what = "compare"
		if d := differ(x.shared, x.want); d != "" {
			err = errors.New(d)
		}
	}
	x.done = append(x.done, what)
	if err != nil {
		x.t.Fatalf("operation %d, %s: %v\nbefore that:\n  %s", len(x.done), what, err,
			strings.Join(x.done[max(0, len(x.done)-20):], "\n  "))
	}
}

func (x *exerciser) read(how string, f *os.File, align int64) (string, error) {
	off, n := x.span(align)
	what := fmt.Sprintf("%s [%d,%d)", how, off, off+n)
	got := aligned(n)
	if k, err := f.ReadAt(got, off); err != nil {
		return what, fmt.Errorf("%d bytes, %w", k, err)
	}
	return what, same(got, x.want[off:off+n], off)
}

func (x *exerciser) readMapped() (string, error) {
	off, n := x.span(1)
	return fmt.Sprintf("read mapped [%d,%d)", off, off+n), same(x.shared[off:off+n], x.want[off:off+n], off)
}

func (x *exerciser) write(how string, f *os.File, align int64) (string, error) {
	off, n := x.span(align)
	b := aligned(n)
	copy(b, x.bytes(n))

	k, err := f.WriteAt(b, off)
	copy(x.want[off:], b[:k])
	return fmt.Sprintf("%s [%d,%d)", how, off, off+n), err
}

func (x *exerciser) writeMapped() (string, error) {
	off, n := x.span(1)
	b := x.bytes(n)

	copy(x.shared[off:], b)
	copy(x.want[off:], b)
	return fmt.Sprintf("write mapped [%d,%d)", off, off+n), nil
}

func (x *exerciser) zero(how string, mode uint32) (string, error) {
	off, n := x.span(1)
	if x.rnd.IntN(8) == 0 {
		n += x.rnd.Int64N(10_000) // perhaps past the end, which stays where it is
	}

	clear(x.want[off:min(off+n, x.size)])
	return fmt.Sprintf("%s [%d,%d)", how, off, off+n), unix.Fallocate(int(x.f.Fd()), mode, off, n)
}

// beyond tries to make the file longer or shorter.
func (x *exerciser) beyond() (string, error) {
	n := 1 + x.rnd.Int64N(5000)
	// When a write is short or fails, Linux forgets the pages it was for, and what
	// was stored there by a mapping and not yet written (fuse_send_write_pages).
	x.close()
	x.open()
	defer func() {
		x.close()
		x.open()
	}()
	switch x.rnd.IntN(4) {
	case 0:
		if _, err := x.f.WriteAt(make([]byte, n), x.size+x.rnd.Int64N(10_000)); !errors.Is(err, unix.ENOSPC) {
			return "write behind the end", fmt.Errorf("%w, want ENOSPC", err)
		}
	case 1:
		what := fmt.Sprintf("write %d bytes to and over the end", n)
		b := x.bytes(2 * n)

		k, err := unix.Pwrite(int(x.f.Fd()), b, x.size-n)
		copy(x.want[x.size-n:], b)
		if err != nil || int64(k) != n {
			return what, fmt.Errorf("%d, %w, want %d", k, err, n)
		}
		return what, nil
	case 2:
		if err := x.f.Truncate(x.size + n - 2500); !errors.Is(err, unix.EPERM) && n != 2500 {
			return "truncate", fmt.Errorf("%w, want EPERM", err)
		}
	case 3:
		b := make([]byte, n+10)
		if k, err := x.f.ReadAt(b, x.size-n); int64(k) != n || !errors.Is(err, io.EOF) {
			return "read over the end", fmt.Errorf("%d, %w, want %d and EOF", k, err, n)
		}
		return "read over the end", same(b[:n], x.want[x.size-n:], x.size-n)
	}
	return "go beyond the end", nil
}

// sync makes what was written durable and looks where that should be.
func (x *exerciser) sync(how string, do func() error) (string, error) {
	if err := do(); err != nil {
		return how, err
	}
	if x.rnd.IntN(4) == 0 {
		wantBytes(x.t, x.served, x.want)
	}

	return how, nil
}

// seek checks that what is called a hole is zeros, through a descriptor that
// cannot write.
func (x *exerciser) seek() error {
	off := x.rnd.Int64N(x.size)
	hole, err := unix.Seek(int(x.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil || hole < off || hole > x.size {
		return fmt.Errorf("SEEK_HOLE from %d: %d, %w", off, hole, err)
	}
	data, err := unix.Seek(int(x.f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		data, err = x.size, nil
	}
	if err != nil || data < off {
		return fmt.Errorf("SEEK_DATA from %d: %d, %w", off, data, err)
	}
	return same(x.want[off:data], make([]byte, data-off), off)
}

func same(got, want []byte, off int64) error {
	if d := differ(got, want); d != "" {
		return fmt.Errorf("from %d: %s", off, d)
	}
	return nil
}

// aligned is memory that O_DIRECT takes.
func aligned(n int64) []byte {
	b := make([]byte, n+4096)
	skip := int64(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[skip : skip+n : skip+n]
}
