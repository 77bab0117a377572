package file

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func open(t *testing.T, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func temp(t *testing.T) string { return filepath.Join(t.TempDir(), "region") }

func TestConformance(t *testing.T) {
	backendtest.Suite{
		Open: func(t *testing.T, size int64) backend.Backend { return open(t, temp(t), Options{Size: size}) },
		Persistent: func(t *testing.T, size int64) func() backend.Backend {
			path := temp(t)
			return func() backend.Backend { return open(t, path, Options{Size: size}) }
		},
		ReadOnly: func(t *testing.T, content []byte) backend.Backend {
			path := temp(t)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			return open(t, path, Options{ReadOnly: true})
		},
	}.Run(t)
}

// TestConformanceWithoutHoles makes the file system say no to every shortcut.
func TestConformanceWithoutHoles(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend {
		s := open(t, temp(t), Options{Size: size})
		s.cannot[punchHole].Store(true)
		s.cannot[zeroRange].Store(true)
		return s
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, n := range map[string]int{"empty": 0, "hundred": 100} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path string
		o    Options
		want string
		is   error
	}{
		{"missing", Options{}, "give a size to create it", backend.ErrNotFound},
		{"missing", Options{Size: 5, ReadOnly: true}, "no such file", fs.ErrNotExist},
		{"missing/below", Options{Size: 5}, "no such file", backend.ErrNotFound},
		{"empty", Options{}, "it is empty", nil},
		{"empty", Options{Size: 5, ReadOnly: true}, "it is empty", nil},
		{"hundred", Options{Size: 99}, "it has 100 bytes, not 99", nil},
		{"hundred", Options{Size: -1}, "must not be negative", nil},
		{".", Options{}, "is a directory: use a dir backend", syscall.EISDIR},
		{"/dev/null", Options{}, "neither a regular file nor a block device", nil},
	} {
		path := c.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		s, err := Open(path, c.o)
		if err == nil {
			s.Close()
			t.Errorf("Open(%s, %+v) = nil; want an error with %q", c.path, c.o, c.want)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("Open(%s, %+v) = %v; want %q, %v", c.path, c.o, err, c.want, c.is)
		}
		if n := strings.Count(err.Error(), path); n != 1 {
			t.Errorf("Open(%s, %+v) = %v; want the path once", c.path, c.o, err)
		}
	}
}

func TestCreates(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{Size: 1 << 40})
	fi, err := os.Stat(path)
	if err != nil || fi.Size() != 1<<40 || fi.Mode() != 0o600 {
		t.Errorf("Stat = %v bytes, mode %v, %v; want 1 TiB, -rw-------", fi.Size(), fi.Mode(), err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("Sync = %v", err)
	}
	if s.unnamed.Load() {
		t.Error("Sync did not make the new file's name durable")
	}
}

func TestShrunkFileIsAnErrorNotZeros(t *testing.T) {
	path := temp(t)
	s := open(t, path, Options{Size: 10_000})
	if err := os.Truncate(path, 6000); err != nil {
		t.Fatal(err)
	}
	n, err := s.ReadAt(t.Context(), make([]byte, 3000), 5000)
	if n != 1000 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt(off=5000, len=3000) = %d, %v; want 1000, %v", n, err, io.ErrUnexpectedEOF)
	}
	if n, err := s.ReadAt(t.Context(), make([]byte, 1), 9999); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadAt(off=9999, len=1) = %d, %v; want 0, %v", n, err, io.ErrUnexpectedEOF)
	}
	if r, err := s.NextData(t.Context(), 0); runtime.GOOS == "linux" && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("NextData(0) = %v, %v; want %v", r, err, io.ErrUnexpectedEOF)
	}
}

func TestHolesAreFoundAndMade(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells where holes are")
	}
	ctx := t.Context()
	s := open(t, temp(t), Options{Size: 64 << 20})
	if _, err := s.WriteAt(ctx, bytes.Repeat([]byte{1}, 8<<20), 32<<20); err != nil {
		t.Fatal(err)
	}
	r, err := s.NextData(ctx, 0)
	if err != nil || r.Off != 32<<20 {
		t.Fatalf("NextData(0) = %v, %v; want a range from 32 MiB on", r, err)
	}
	if err := s.Discard(ctx, 32<<20, 8<<20); err != nil {
		t.Fatal(err)
	}
	if r, err := s.NextData(ctx, 0); err != io.EOF {
		t.Errorf("NextData(0) = %v, %v after Discard; want EOF", r, err)
	}
}

func TestFullDeviceIsErrNoSpace(t *testing.T) {
	// /dev/full is no region, but has the error.
	f, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	testkit.Need(t, "/dev/full", err)
	s := &Store{path: "full", f: f, size: 100}
	defer s.Close()
	_, err = s.WriteAt(t.Context(), []byte{1}, 3)
	if !errors.Is(err, backend.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("WriteAt = %v; want %v and %v", err, backend.ErrNoSpace, syscall.ENOSPC)
	}
	var op *backend.OpError
	if !errors.As(err, &op) || op.Op != "write" || op.Name != "full" || op.Off != 3 || op.Len != 1 {
		t.Errorf("WriteAt = %#v; want an OpError that names the range", op)
	}
}

func TestFailedSyncStaysFailed(t *testing.T) {
	r, w, err := os.Pipe() // cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := &Store{path: "pipe", f: w, size: 100}
	defer s.Close()
	first := s.Sync(t.Context())
	if first == nil {
		t.Fatal("Sync of a pipe = nil")
	}
	good, err := os.Create(temp(t))
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	s.f = good
	defer func() { s.f = w }()
	if err := s.Sync(t.Context()); err == nil || err.Error() != first.Error() {
		t.Errorf("the next Sync = %v; want %v again", err, first)
	}
}

// TestBlockDevice uses a loop device, for which it needs root.
func TestBlockDevice(t *testing.T) {
	path := temp(t)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", path).Output()
	testkit.Need(t, "loop", err)
	dev := strings.TrimSpace(string(out))
	defer func() {
		if err := exec.Command("losetup", "--detach", dev).Run(); err != nil {
			t.Errorf("losetup --detach %s: %v", dev, err)
		}
	}()
	s := open(t, dev, Options{})
	defer s.Close()
	if s.Size() != 1<<20 {
		t.Fatalf("Size() = %d; want %d", s.Size(), 1<<20)
	}
	ctx := t.Context()
	want := bytes.Repeat([]byte{5}, 1<<20)
	if _, err := s.WriteAt(ctx, want, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{4096, 8192}, {100_001, 777}} {
		clear(want[r[0] : r[0]+r[1]])
		if err := s.Zero(ctx, r[0], r[1]); err != nil {
			t.Errorf("Zero(%d, %d) = %v", r[0], r[1], err)
		}
	}
	clear(want[200_000:300_000])
	if err := s.Discard(ctx, 200_000, 100_000); err != nil {
		t.Errorf("Discard = %v", err)
	}
	if err := s.Sync(ctx); err != nil {
		t.Errorf("Sync = %v", err)
	}
	got := make([]byte, 1<<20)
	if err := backend.ReadFull(ctx, s, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the device holds other bytes than were written (%v)", err)
	}
	if r, err := s.NextData(ctx, 0); err != nil || r.Off != 0 {
		t.Errorf("NextData(0) = %v, %v", r, err)
	}
}

func TestNoAllocation(t *testing.T) {
	s := open(t, temp(t), Options{Size: 1 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() { s.WriteAt(ctx, p, 4096); s.ReadAt(ctx, p, 4096) }); n != 0 {
		t.Errorf("%v allocations per write and read; want 0", n)
	}
}

func BenchmarkReadAt(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "region"), Options{Size: 64 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	s.WriteAt(b.Context(), bytes.Repeat([]byte{1}, 64<<20), 0)
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	var off int64
	for b.Loop() {
		s.ReadAt(b.Context(), p, off)
		off = (off + int64(len(p))) % s.Size()
	}
}
