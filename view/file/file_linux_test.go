package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/linux"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/view"
)

func TestMain(m *testing.M) {
	if os.Getenv("TELEMAP_TEST_CHILD") != "" {
		child()
	}
	testkit.Main(m)
}

// limit bounds what must not take long, so that a hang is a failure.
func limit(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// show opens src at a new path and closes it when the test ends.
func show(t testing.TB, src view.Source, o Options) (*View, string) {
	t.Helper()
	testkit.NeedFUSE(t)
	if o.Logger == nil {
		o.Logger = testkit.Logger(t)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	v, err := Open(context.Background(), src, path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(limit(t)); err != nil {
			t.Errorf("Close: %v", err)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = v.Detach(ctx)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Close something is at %s: %v", path, err)
		}
	})
	return v, path
}

func openFile(t testing.TB, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestDataOfEverySize(t *testing.T) {
	for _, size := range []int64{1, 511, 4095, 4096, 4097, 65536, 1<<20 + 1, 3<<20 - 7} {
		for _, name := range []string{"copied", "viewed"} {
			for _, direct := range []bool{false, true} {
				t.Run(fmt.Sprintf("size=%d/%s/direct=%t", size, name, direct), func(t *testing.T) {
					s := newStore(size)
					src := view.Source(s)
					if name == "viewed" {
						v := newViewed(t, size)
						s, src = v.store, v
					}
					testkit.Pattern(s.b, 0, 1)
					_, path := show(t, src, Options{Direct: direct})
					got, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, s.bytes(0, size)) {
						t.Fatalf("read %d bytes that differ from the source's %d", len(got), size)
					}
					st, err := os.Stat(path)
					if err != nil {
						t.Fatal(err)
					}
					sys := st.Sys().(*syscall.Stat_t)
					if st.Size() != size || !st.Mode().IsRegular() || sys.Nlink != 1 || sys.Blocks != (size+511)/512 {
						t.Fatalf("stat: size %d, mode %v, %d links, %d blocks", st.Size(), st.Mode(), sys.Nlink, sys.Blocks)
					}
					want := make([]byte, size)
					testkit.Pattern(want, 0, 2)
					f := openFile(t, path, os.O_RDWR)
					if n, err := f.WriteAt(want, 0); err != nil {
						t.Fatalf("WriteAt = %d, %v", n, err)
					}
					if !bytes.Equal(s.bytes(0, size), want) {
						t.Fatal("a write that returned has not reached the source")
					}
					if _, err := f.WriteAt([]byte{1}, size); !errors.Is(err, syscall.ENOSPC) {
						t.Fatalf("write behind the end: %v; want ENOSPC", err)
					}
					if n, err := unix.Pwrite(int(f.Fd()), []byte{7, 8}, size-1); n != 1 || err != nil {
						t.Fatalf("write across the end = %d, %v; want 1", n, err)
					}
					if n, err := f.ReadAt(make([]byte, 10), size); n != 0 || err != io.EOF {
						t.Fatalf("read at the end = %d, %v; want 0, EOF", n, err)
					}
					f.Close()
				})
			}
		}
	}
}

// Random reads and writes through the file agree with a slice.
func TestModel(t *testing.T) {
	rnd := testkit.Rand(t)
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%t", direct), func(t *testing.T) {
			const size = 1<<20 + 777
			s := &sparse{store: newStore(size)}
			_, path := show(t, s, Options{Direct: direct})
			f := openFile(t, path, os.O_RDWR)
			model := make([]byte, size)
			buf := make([]byte, 300<<10)
			for step := range 600 {
				off := rnd.Int64N(size)
				n := 1 + rnd.Int64N(int64(len(buf)))
				if rnd.IntN(2) == 0 {
					n = 1 + rnd.Int64N(9000)
				}
				n = min(n, size-off)
				p := buf[:n]
				switch rnd.IntN(5) {
				case 0, 1:
					testkit.Pattern(p, off, rnd.Uint64())
					copy(model[off:], p)
					if _, err := f.WriteAt(p, off); err != nil {
						t.Fatalf("step %d: %v", step, err)
					}
				case 2:
					mode := []uint32{
						unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
						unix.FALLOC_FL_ZERO_RANGE,
						unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
					}[rnd.IntN(3)]
					clear(model[off : off+n])
					if err := unix.Fallocate(int(f.Fd()), mode, off, n); err != nil {
						t.Fatalf("step %d: fallocate(%#x): %v", step, mode, err)
					}
				default:
					if _, err := f.ReadAt(p, off); err != nil {
						t.Fatalf("step %d: %v", step, err)
					}
					if !bytes.Equal(p, model[off:off+n]) {
						t.Fatalf("step %d: bytes [%d,%d) are wrong", step, off, off+n)
					}
				}
			}
			if !bytes.Equal(s.bytes(0, size), model) {
				t.Fatal("the source differs from the model")
			}
			if s.zeroed.Load() == 0 || s.discarded.Load() == 0 {
				t.Fatal("Zero or Discard was never asked")
			}
			f.Close()
		})
	}
}

func TestODirect(t *testing.T) {
	const size = 4 << 20
	s := newStore(size)
	testkit.Pattern(s.b, 0, 1)
	_, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR|unix.O_DIRECT)
	mem, err := unix.Mmap(-1, 0, 2<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	if _, err := f.ReadAt(mem, 1<<20); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mem, s.bytes(1<<20, 2<<20)) {
		t.Fatal("direct read differs from the source")
	}
	testkit.Pattern(mem, 1<<20, 9)
	if _, err := f.WriteAt(mem, 1<<20); err != nil {
		t.Fatal(err)
	}
	// A cached reader sees what the direct one wrote.
	got := make([]byte, len(mem))
	if _, err := openFile(t, path, os.O_RDONLY).ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, mem) {
		t.Fatalf("cached read after a direct write: %v, equal %t", err, bytes.Equal(got, mem))
	}
	f.Close()
}

func TestMmap(t *testing.T) {
	for _, direct := range []bool{false, true} {
		for _, size := range []int64{4096, 5000, 1<<20 + 3} {
			t.Run(fmt.Sprintf("size=%d/direct=%t", size, direct), func(t *testing.T) {
				s := newStore(size)
				testkit.Pattern(s.b, 0, 1)
				v, path := show(t, s, Options{Direct: direct})

				// The child checks the pattern, changes it privately, then shared.
				want := make([]byte, size)
				testkit.Pattern(want, 0, 2)
				runChild(t, "mmap", path)
				if !bytes.Equal(s.bytes(0, size), want) {
					t.Fatal("what was written to a shared mapping is not in the source after msync")
				}
				if s.syncs.Load() != 1 {
					t.Fatalf("msync synced the source %d times; want 1", s.syncs.Load())
				}
				got, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("read after the mapping: %v, equal %t", err, bytes.Equal(got, want))
				}

				// Without msync, unmapping alone takes the pages to the source.
				testkit.Pattern(want, 0, 3)
				runChild(t, "mmap-nosync", path)
				if err := v.Close(limit(t)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(s.bytes(0, size), want) {
					t.Fatal("what was written to a shared mapping is not in the source after munmap and Close")
				}
			})
		}
	}
}

func TestReadOnly(t *testing.T) {
	s := newStore(10000)
	testkit.Pattern(s.b, 0, 1)
	_, path := show(t, s, Options{ReadOnly: true})
	for _, flag := range []int{os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC} {
		if f, err := os.OpenFile(path, flag, 0); !errors.Is(err, syscall.EROFS) {
			f.Close()
			t.Errorf("open with flags %#x: %v; want EROFS", flag, err)
		}
	}
	if err := os.Truncate(path, 1); !errors.Is(err, syscall.EROFS) {
		t.Errorf("truncate: %v; want EROFS", err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o444 {
		t.Errorf("mode %v, %v; want 0444", st.Mode(), err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, s.b) {
		t.Errorf("read: %v, equal %t", err, bytes.Equal(got, s.b))
	}
}

func TestSizeIsFixed(t *testing.T) {
	s := newStore(10000)
	_, path := show(t, s, Options{})
	if err := os.Truncate(path, 10000); err != nil {
		t.Errorf("truncate to the same size: %v", err)
	}
	for _, size := range []int64{0, 9999, 10001} {
		if err := os.Truncate(path, size); !errors.Is(err, syscall.EPERM) {
			t.Errorf("truncate to %d: %v; want EPERM", size, err)
		}
	}
	if f, err := os.OpenFile(path, os.O_RDWR|os.O_TRUNC, 0); !errors.Is(err, syscall.EPERM) {
		f.Close()
		t.Errorf("open with O_TRUNC: %v; want EPERM", err)
	}
	f := openFile(t, path, os.O_RDWR)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 10000); err != nil {
		t.Errorf("fallocate within the size: %v", err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 5000, 5001); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fallocate beyond the size: %v; want ENOSPC", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 9999, 1<<20); err != nil {
		t.Errorf("punch a hole across the end: %v", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("collapse a range: %v; want EOPNOTSUPP", err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 10000 {
		t.Errorf("size afterwards: %d, %v", st.Size(), err)
	}
	f.Close()
}

func TestAttributesCanBeChanged(t *testing.T) {
	_, path := show(t, newStore(10), Options{Mode: 0o600})
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1e9, 0)
	if err := os.Chtimes(path, when, when); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o640 || !st.ModTime().Equal(when) {
		t.Fatalf("mode %v, mtime %v, %v", st.Mode(), st.ModTime(), err)
	}
	f := openFile(t, path, os.O_RDWR)
	if _, err := f.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.ModTime().Equal(when) {
		t.Fatalf("a write left mtime at %v, %v", st.ModTime(), err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil || fs.Blocks != 1 {
		t.Fatalf("statfs: %d blocks, %v", fs.Blocks, err)
	}
	f.Close()
}

func TestCannotBeMovedAway(t *testing.T) {
	_, path := show(t, newStore(10), Options{})
	if err := os.Remove(path); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("unlink: %v; want EBUSY", err)
	}
	if err := os.Rename(path, path+"2"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("rename: %v; want EBUSY", err)
	}
	if err := os.Link(path, path+"2"); !errors.Is(err, syscall.EXDEV) && !errors.Is(err, syscall.EPERM) {
		t.Errorf("link: %v; want EXDEV or EPERM", err)
	}
}

func TestSeekFindsHoles(t *testing.T) {
	s := &sparse{store: newStore(1 << 20)}
	s.b[100<<10] = 1
	s.b[104<<10] = 1
	s.b[500<<10] = 1
	_, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDONLY)
	seek := func(f *os.File, whence int, off, want int64) {
		t.Helper()
		got, err := unix.Seek(int(f.Fd()), off, whence)
		if want < 0 {
			if !errors.Is(err, syscall.ENXIO) {
				t.Errorf("seek(%d, %d) = %d, %v; want ENXIO", off, whence, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("seek(%d, %d) = %d, %v; want %d", off, whence, got, err, want)
		}
	}
	seek(f, unix.SEEK_DATA, 0, 100<<10)
	seek(f, unix.SEEK_HOLE, 0, 0)
	seek(f, unix.SEEK_HOLE, 100<<10, 108<<10)
	seek(f, unix.SEEK_DATA, 108<<10, 500<<10)
	seek(f, unix.SEEK_DATA, 504<<10, -1)
	seek(f, unix.SEEK_HOLE, 500<<10, 504<<10)
	seek(f, unix.SEEK_DATA, 1<<20, -1)

	// A writer may have dirty pages where the source still has a hole.
	w := openFile(t, path, os.O_RDWR)
	seek(f, unix.SEEK_DATA, 0, 0)
	seek(f, unix.SEEK_HOLE, 0, 1<<20)
	w.Close()
	f.Close()
}

func TestErrorsReachTheProgramAndPass(t *testing.T) {
	s := newStore(1 << 20)
	v, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR)
	for _, c := range []struct {
		op   string
		err  error
		want syscall.Errno
		do   func() error
	}{
		{"read", errBroken, syscall.EIO, func() error { _, err := f.ReadAt(make([]byte, 10), 0); return err }},
		{"write", errBroken, syscall.EIO, func() error { _, err := f.WriteAt(make([]byte, 10), 0); return err }},
		{"write", region.ErrNoSpace, syscall.ENOSPC, func() error { _, err := f.WriteAt(make([]byte, 10), 0); return err }},
		{"sync", errBroken, syscall.EIO, f.Sync},
		{"sync", region.ErrNoSpace, syscall.ENOSPC, f.Sync},
		{"sync", context.Canceled, syscall.EIO, f.Sync}, // the source's own affair
	} {
		s.hook(func(_ context.Context, op string, _ int64) error {
			if op == c.op {
				return c.err
			}
			return nil
		})
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s fails with %v: program sees %v; want %v", c.op, c.err, err, c.want)
		}
		s.hook(nil)
		if err := c.do(); err != nil {
			t.Errorf("%s after the failure has passed: %v", c.op, err)
		}
	}
	st := v.Stats()
	if st.ReadErrors == 0 || st.WriteErrors != 2 || st.SyncErrors != 3 {
		t.Errorf("stats: %+v", st)
	}
	f.Close()
}

func TestPanicOfTheSourceIsEIO(t *testing.T) {
	s := newStore(1 << 20)
	v, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR)
	s.hook(func(context.Context, string, int64) error { panic("broken invariant") })
	if _, err := f.WriteAt(make([]byte, 10), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v; want EIO", err)
	}
	s.hook(nil)
	if _, err := f.WriteAt(make([]byte, 10), 0); err != nil {
		t.Errorf("write after the panic: %v", err)
	}
	if v.Stats().Panics != 1 {
		t.Errorf("%d panics counted; want 1", v.Stats().Panics)
	}
	f.Close()
}

func TestFailedWriteBackIsReportedByMsync(t *testing.T) {
	s := newStore(1 << 20)
	testkit.Pattern(s.b, 0, 1)
	_, path := show(t, s, Options{})
	s.hook(func(_ context.Context, op string, _ int64) error {
		if op == "write" {
			return region.ErrNoSpace
		}
		return nil
	})
	out, err := childCmd(t, "mmap", path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "msync: ") {
		t.Fatalf("child: %v\n%s\nwant msync to fail", err, out)
	}
	s.hook(nil)
}

func TestFailedWriteBackIsReportedByClose(t *testing.T) {
	s := newStore(1 << 20)
	testkit.Pattern(s.b, 0, 1)
	v, path := show(t, s, Options{})
	c := startChild(t, "mmap-hold", path)
	defer c.kill()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	result := make(chan error, 1)
	// The detached file has one user, who has dirty pages and dies.
	failed := make(chan struct{})
	s.hook(func(_ context.Context, op string, _ int64) error {
		if op != "write" {
			return nil
		}
		select {
		case <-failed:
		default:
			close(failed)
		}
		return errBroken
	})
	go func() { result <- v.Detach(ctx) }()
	<-failed
	c.kill()
	if err := <-result; err == nil {
		t.Fatal("Detach = nil; want the error of the write")
	}
}

func TestSeveralOpeners(t *testing.T) {
	const size, openers = 1 << 20, 8
	s := newStore(size)
	_, path := show(t, s, Options{})
	var files []*os.File
	for range openers {
		files = append(files, openFile(t, path, os.O_RDWR))
	}
	done := make(chan error, openers)
	for i, f := range files {
		go func() {
			part := int64(size / openers)
			p := make([]byte, part)
			off := int64(i) * part
			testkit.Pattern(p, off, 5)
			_, err := f.WriteAt(p, off)
			done <- errors.Join(err, f.Close())
		}()
	}
	for range openers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	want := make([]byte, size)
	testkit.Pattern(want, 0, 5)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read: %v, equal %t", err, bytes.Equal(got, want))
	}
}

// stall makes reads wait until the returned function is called or their context
// ends. The first of them closes began.
func stall(s *store, what string) (began, ended chan struct{}, release func()) {
	began, ended = make(chan struct{}), make(chan struct{})
	free := make(chan struct{})
	var n, m atomic.Int64
	s.hook(func(ctx context.Context, op string, _ int64) error {
		if op != what {
			return nil
		}
		if n.Add(1) == 1 {
			close(began)
		}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			if m.Add(1) == 1 {
				close(ended)
			}
			return ctx.Err()
		}
	})
	return began, ended, func() { s.hook(nil); close(free) }
}

// A process that waits for a page or a read can be killed at once.
func TestKilledReaderEndsTheRead(t *testing.T) {
	for _, what := range []string{"read-direct", "read", "mmap-random", "write", "sync"} {
		t.Run(what, func(t *testing.T) {
			s := newStore(1 << 20)
			v, path := show(t, s, Options{})
			op := what
			if strings.HasPrefix(what, "read") || what == "mmap-random" {
				op = "read"
			}
			began, _, release := stall(s, op)
			defer release()
			c := startChild(t, what, path)
			<-began
			c.kill() // waits for the process to be gone
			_ = v
		})
	}
}

// A handled signal ends a direct read, and nothing else.
func TestHandledSignal(t *testing.T) {
	t.Run("direct read", func(t *testing.T) {
		s := newStore(1 << 20)
		v, path := show(t, s, Options{})
		began, ended, release := stall(s, "read")
		defer release()
		c := startChild(t, "read-direct", path)
		<-began
		c.signal(t)
		select {
		case <-ended:
		case <-limit(t).Done():
			t.Fatal("the read's context goes on")
		}
		c.expect(t, "interrupted system call")
		if v.Stats().Interrupts != 1 {
			t.Errorf("%d interrupts counted; want 1", v.Stats().Interrupts)
		}
	})
	for _, what := range []string{"mmap-random", "write", "sync"} {
		t.Run(what, func(t *testing.T) {
			s := newStore(1 << 20)
			_, path := show(t, s, Options{})
			op := what
			if what == "mmap-random" {
				op = "read"
			}
			began, ended, release := stall(s, op)
			c := startChild(t, what, path)
			<-began
			c.signal(t)
			select {
			case <-ended:
			case <-limit(t).Done():
				t.Fatal("the operation's context goes on")
			}
			release()
			c.expect(t, "ok")
		})
	}
}

func TestWhereTheFileAppears(t *testing.T) {
	testkit.NeedFUSE(t)
	ctx := limit(t)
	s := newStore(1000)
	testkit.Pattern(s.b, 0, 1)
	dir := t.TempDir()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	existing := filepath.Join(dir, "existing")
	if err := os.WriteFile(existing, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("existing", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, `a dir\with`), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, name, want string }{
		{"new", "", "new"},
		{"existing", "", "existing"},
		{"link", "", "existing"},
		{`a dir\with`, "", `a dir\with/region`},
		{`a dir\with`, "disk 1", `a dir\with/disk 1`},
		{"./a dir\\with/../new2", "", "new2"},
	} {
		v, err := Open(ctx, s, filepath.Join(dir, c.path), Options{Name: c.name})
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		if want := filepath.Join(dir, c.want); v.Path() != want {
			t.Errorf("%s appears at %s; want %s", c.path, v.Path(), want)
		}
		if got, err := os.ReadFile(v.Path()); err != nil || !bytes.Equal(got, s.b) {
			t.Errorf("%s: read %d bytes, %v", c.path, len(got), err)
		}
		for range 2 {
			if err := v.Close(ctx); err != nil {
				t.Errorf("%s: Close: %v", c.path, err)
			}
		}
		if v.Err() != nil {
			t.Errorf("Err after Close: %v", v.Err())
		}
	}
	if b, err := os.ReadFile(existing); err != nil || string(b) != "hello" {
		t.Errorf("the file under the mount is now %q, %v", b, err)
	}
	for path, name := range map[string]string{"missing/new": "", "/dev/null": "", dir: "a/b"} {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if v, err := Open(ctx, s, path, Options{Name: name}); err == nil {
			t.Errorf("Open(%s, Name %q) = nil; want an error", path, name)
			v.Close(ctx)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "new*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBusyPath(t *testing.T) {
	v, path := show(t, newStore(10), Options{})
	_, err := Open(limit(t), newStore(10), path, Options{})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "umount") {
		t.Fatalf("Open where a region is shown: %v; want ErrBusy and what to do", err)
	}
	if _, err := os.ReadFile(v.Path()); err != nil {
		t.Fatalf("the other view suffered: %v", err)
	}
}

// A mount that another kind of file system has on the path stays.
func TestOtherMountsAreLeftAlone(t *testing.T) {
	testkit.NeedFUSE(t)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/dev/null", path, "", unix.MS_BIND, ""); err != nil {
		testkit.Need(t, "root", err)
	}
	defer unix.Unmount(path, 0)
	if _, err := Open(limit(t), newStore(10), path, Options{}); err == nil {
		t.Fatal("Open on a bind mount = nil; want an error")
	}
	if _, ok, err := linux.MountAt(path); !ok || err != nil {
		t.Fatalf("the other mount is gone: %v", err)
	}
}

func TestCloseWhileInUse(t *testing.T) {
	s := newStore(1 << 20)
	v, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR)
	err := v.Close(limit(t))
	var busy *BusyError
	if !errors.As(err, &busy) || !errors.Is(err, ErrBusy) {
		t.Fatalf("Close of a file in use: %v; want a BusyError", err)
	}
	if len(busy.PIDs) != 1 || busy.PIDs[0] != os.Getpid() {
		t.Errorf("used by %v; want %d", busy.PIDs, os.Getpid())
	}
	select {
	case <-v.Done():
		t.Fatal("the view is gone though Close has failed")
	default:
	}
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Fatalf("write after a Close that failed: %v", err)
	}
	f.Close()
}

func TestDetachWaitsForUsers(t *testing.T) {
	s := newStore(1 << 20)
	v, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR)
	result := make(chan error, 1)
	go func() { result <- v.Detach(limit(t)) }()
	for { // until the file is out of the tree
		if ours, err := v.mounted(); err != nil {
			t.Fatal(err)
		} else if !ours {
			break
		}
	}
	if _, err := f.WriteAt([]byte("x"), 7); err != nil {
		t.Fatalf("write after Detach began: %v", err)
	}
	select {
	case err := <-result:
		t.Fatalf("Detach = %v while the file is open", err)
	default:
	}
	f.Close()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if s.bytes(7, 1)[0] != 'x' {
		t.Fatal("the write is lost")
	}
}

// A process that waits for a page cannot be killed when the source ignores
// signals; Detach frees it.
func TestDetachCutsUsersOff(t *testing.T) {
	s := newStore(1 << 20)
	v, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR)
	began, ended, release := stall(s, "read")
	defer release()
	read := make(chan error, 1)
	go func() { _, err := f.ReadAt(make([]byte, 10), 0); read <- err }()
	<-began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := v.Detach(ctx); !errors.Is(err, ErrAborted) {
		t.Errorf("Detach of a file in use: %v; want ErrAborted", err)
	}
	<-ended
	if err := <-read; err == nil {
		t.Error("the read of who was cut off = nil; want an error")
	}
	if _, err := f.ReadAt(make([]byte, 10), 0); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, syscall.EIO) {
		t.Errorf("a read afterwards: %v", err)
	}
	f.Close()
	if v.Err() != nil {
		t.Errorf("Err: %v", v.Err())
	}
}

// An impatient caller need not wait for a patient one.
func TestSecondDetachCutsUsersOff(t *testing.T) {
	v, path := show(t, newStore(1<<20), Options{})
	f := openFile(t, path, os.O_RDWR)
	first := make(chan error, 1)
	go func() { first <- v.Detach(limit(t)) }()
	for { // until the first is at work
		if ours, err := v.mounted(); err != nil {
			t.Fatal(err)
		} else if !ours {
			break
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := errors.Join(v.Detach(ctx), <-first); !errors.Is(err, ErrAborted) {
		t.Errorf("both Detach: %v; want ErrAborted", err)
	}
	f.Close()
}

// A mount that covers the view is not taken for it.
func TestCoveredViewIsNotClosed(t *testing.T) {
	v, path := show(t, newStore(10), Options{})
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(other, path, "", unix.MS_BIND, ""); err != nil {
		testkit.Need(t, "root", err)
	}
	err := v.Close(limit(t))
	if uerr := unix.Unmount(path, 0); uerr != nil {
		t.Errorf("the mount above is gone: %v", uerr)
	}
	if !errors.Is(err, ErrBusy) {
		t.Errorf("Close under another mount: %v; want ErrBusy", err)
	}
}

// Detach ends with its context when the source takes no dirty pages.
func TestDetachEndsWhenTheSourceIsStalled(t *testing.T) {
	s := newStore(1 << 20)
	testkit.Pattern(s.b, 0, 1)
	v, path := show(t, s, Options{})
	began, _, release := stall(s, "write")
	defer release()
	c := startChild(t, "mmap-nosync", path) // its munmap waits for the source
	<-began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := v.Detach(ctx); !errors.Is(err, ErrAborted) {
		t.Errorf("Detach: %v; want ErrAborted", err)
	}
	c.kill()
}

func TestUnmountFromOutside(t *testing.T) {
	v, path := show(t, newStore(10), Options{})
	if err := linux.UnmountFUSE(path, false); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.Done():
	case <-limit(t).Done():
		t.Fatal("the owner does not learn of it")
	}
	if !errors.Is(v.Err(), ErrUnmounted) {
		t.Fatalf("Err = %v; want ErrUnmounted", v.Err())
	}
}

func TestAbortFromOutside(t *testing.T) {
	v, _ := show(t, newStore(10), Options{})
	if err := linux.AbortFUSE(v.mount.Minor); err != nil {
		testkit.Need(t, "root", err)
	}
	select {
	case <-v.Done():
	case <-limit(t).Done():
		t.Fatal("the owner does not learn of it")
	}
	if !errors.Is(v.Err(), ErrUnmounted) {
		t.Fatalf("Err = %v; want ErrUnmounted", v.Err())
	}
	if ours, err := v.mounted(); ours || err != nil {
		t.Fatalf("the dead mount is still there: %v", err)
	}
}

func TestStaleMountIsTakenAway(t *testing.T) {
	testkit.NeedFUSE(t)
	path := filepath.Join(t.TempDir(), "f")
	c := startChild(t, "serve", path)
	if b, err := os.ReadFile(path); err != nil || len(b) != 4096 {
		t.Fatalf("read from the child's file: %d bytes, %v", len(b), err)
	}
	c.kill()
	if _, err := os.ReadFile(path); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
		t.Fatalf("read after the server was killed: %v; want ENOTCONN", err)
	}
	s := newStore(1000)
	var log bytes.Buffer
	v, err := Open(limit(t), s, path, Options{Logger: logTo(&log)})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "has died") {
		t.Errorf("the log says nothing of the stale mount: %q", log.String())
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != 1000 {
		t.Errorf("read: %d bytes, %v", len(b), err)
	}
	if err := v.Close(limit(t)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead process' empty file stays: %v", err)
	}
}

func TestInvalidate(t *testing.T) {
	s := newStore(1 << 20)
	v, path := show(t, s, Options{})
	f := openFile(t, path, os.O_RDWR)
	b := make([]byte, 1)
	read := func(want byte) {
		t.Helper()
		if _, err := f.ReadAt(b, 5000); err != nil || b[0] != want {
			t.Fatalf("read %d, %v; want %d", b[0], err, want)
		}
	}
	read(0)
	if _, err := s.WriteAt(context.Background(), []byte{3}, 5000); err != nil {
		t.Fatal(err)
	}
	read(0)
	if err := v.Invalidate(5000, 1); err != nil {
		t.Fatal(err)
	}
	read(3)
	if err := v.Invalidate(1<<20, 1); !errors.Is(err, region.ErrOutOfRange) {
		t.Fatalf("Invalidate behind the end: %v", err)
	}
	f.Close()
}

func TestLoopDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		testkit.Need(t, "loop", errors.New("not root"))
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		testkit.Need(t, "loop", err)
	}
	losetup := testkit.NeedProgram(t, "losetup", "mount")
	for _, direct := range []string{"off", "on"} {
		t.Run("direct-io="+direct, func(t *testing.T) {
			const size = 1 << 20
			s := newStore(size)
			testkit.Pattern(s.b, 0, 1)
			v, path := show(t, s, Options{})
			out, err := exec.Command(losetup, "--find", "--show", "--direct-io="+direct, path).CombinedOutput()
			if err != nil {
				testkit.Need(t, "loop", fmt.Errorf("losetup: %w: %s", err, out))
			}
			dev := strings.TrimSpace(string(out))
			detach := func() {
				if out, err := exec.Command(losetup, "--detach", dev).CombinedOutput(); err != nil {
					t.Errorf("losetup --detach: %v: %s", err, out)
				}
			}
			f, err := os.OpenFile(dev, os.O_RDWR, 0)
			if err != nil {
				detach()
				t.Fatal(err)
			}
			got := make([]byte, size)
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, s.bytes(0, size)) {
				t.Errorf("read: %v, equal %t", err, bytes.Equal(got, s.bytes(0, size)))
			}
			testkit.Pattern(got, 0, 2)
			if _, err := f.WriteAt(got, 0); err != nil {
				t.Error(err)
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(s.bytes(0, size), got) || s.syncs.Load() == 0 {
				t.Errorf("after fsync of %s the source differs, or was not synced (%d)", dev, s.syncs.Load())
			}
			f.Close()
			var busy *BusyError
			if err := v.Close(limit(t)); !errors.As(err, &busy) {
				t.Errorf("Close under a loop device: %v; want a BusyError", err)
			}
			detach()
		})
	}
}

// A user without privileges mounts by fusermount3.
func TestWithoutRoot(t *testing.T) {
	testkit.NeedFUSE(t)
	testkit.NeedProgram(t, "fusermount3", "fuse3")
	if os.Geteuid() != 0 {
		_, path := show(t, newStore(10), Options{})
		if _, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755),
		os.Mkdir(home, 0o700), os.Chown(home, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	cmd := childCmd(t, "unprivileged", filepath.Join(home, "f"))
	// In mounts of its own it can have a /dev/fuse that is for everybody.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOpenRejects(t *testing.T) {
	testkit.NeedFUSE(t)
	path := filepath.Join(t.TempDir(), "f")
	for _, o := range []Options{{Name: ".."}, {Mode: fs.ModeDir}, {ReadAhead: -1}} {
		if _, err := Open(limit(t), newStore(10), path, o); err == nil {
			t.Errorf("Open with %+v = nil; want an error", o)
		}
	}
	if _, err := Open(limit(t), newStore(0), path, Options{}); err == nil {
		t.Error("Open of an empty region = nil; want an error")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a file is left behind")
	}
}

// The request path allocates nothing of its own.
func TestReadAllocatesNothing(t *testing.T) {
	for name, src := range map[string]view.Source{"copied": newStore(1 << 20), "viewed": newViewed(t, 1<<20)} {
		f := newFS(src, Options{Logger: testkit.Logger(t)})
		cancel := make(chan struct{})
		in, buf := readIn(4096, 65536)
		if n := testing.AllocsPerRun(100, func() {
			r, st := f.Read(cancel, in, buf)
			if st != 0 || r.Size() != len(buf) {
				t.Fatalf("Read = %d bytes, %v", r.Size(), st)
			}
			r.Done()
		}); n != 0 && !raceEnabled {
			t.Errorf("%s: %v allocations per read; want 0", name, n)
		}
	}
}

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{region.ErrOutOfRange, syscall.EINVAL},
		{region.ErrBadRequest, syscall.EINVAL},
		{region.ErrReadOnly, syscall.EROFS},
		{region.ErrFenced, syscall.EROFS},
		{region.ErrNoSpace, syscall.ENOSPC},
		{region.ErrClosed, syscall.EIO},
		{region.ErrUnavailable, syscall.EIO},
		{region.ErrNotFound, syscall.EIO},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{syscall.ENOSPC, syscall.ENOSPC},
		{syscall.EDQUOT, syscall.EDQUOT},
		{syscall.ECONNREFUSED, syscall.EIO},
		{syscall.ENOENT, syscall.EIO},
		{syscall.ENOSYS, syscall.EOPNOTSUPP},
		{io.EOF, syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
		{errBroken, syscall.EIO},
	} {
		if got := errno(c.err); got != c.want {
			t.Errorf("errno(%v) = %v; want %v", c.err, got, c.want)
		}
		if c.err != nil {
			if got := errno(fmt.Errorf("wrapped: %w", c.err)); got != c.want {
				t.Errorf("errno(wrapped %v) = %v; want %v", c.err, got, c.want)
			}
		}
	}
}

func TestBusyErrorText(t *testing.T) {
	for _, c := range []struct {
		pids []int
		want string
	}{
		{nil, "unmount /x: still in use, no process in sight; perhaps by a loop device: close the file there and try again, or detach it"},
		{[]int{1, 23}, "unmount /x: still in use, by process 1, 23: close the file there and try again, or detach it"},
	} {
		if got := (&BusyError{"/x", c.pids}).Error(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
