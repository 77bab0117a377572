package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
)

const block = 64 << 10

// A reading is a pread(2) on its way.
type reading struct {
	tid  int
	done chan error
	got  []byte
}

// read starts to read n bytes of f at off.
func read(f *os.File, off int64, n int) *reading {
	r := &reading{done: make(chan error, 1), got: make([]byte, n)}
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		_, err := f.ReadAt(r.got, off)
		r.done <- err
	}()
	r.tid = <-tid
	return r
}

// wait returns when the read has.
func (r *reading) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		t.Fatalf("a read has not returned within %v", patience)
	}
	panic("unreachable")
}

// blocked returns when the read waits in the kernel.
func (r *reading) blocked(t *testing.T) {
	t.Helper()
	call := fmt.Sprintf("/proc/self/task/%d/syscall", r.tid)
	await(t, "read that waits", func() bool {
		if len(r.done) > 0 {
			t.Fatalf("the read returned %v, nobody could have answered it", <-r.done)
		}
		b, _ := os.ReadFile(call) // "running", or the number of the call
		return bytes.HasPrefix(b, fmt.Appendf(nil, "%d ", unix.SYS_PREAD64))
	})
}

func (r *reading) want(t *testing.T, want []byte) {
	t.Helper()
	if err := r.wait(t); err != nil {
		t.Fatal(err)
	}
	if d := differ(r.got, want); d != "" {
		t.Fatal(d)
	}
}

func wantErrno(t *testing.T, what string, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if errors.Is(err, w) {
			return
		}
	}
	t.Fatalf("%s: %v, want %v", what, err, want)
}

// Readers and writers wait for a server that was killed, and go on when it is
// back.
func TestServerIsKilledAndComesBack(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	for _, mode := range [][]string{{"--no-pull"}, {"--direct"}} {
		t.Run(mode[0], func(t *testing.T) {
			t.Parallel()
			const size = 8*block + 100
			want := pattern(size)
			s := serve(t, patternFile(t, size))
			m := mount(t, s.url, mountPath(t), mode...)
			f := openFile(t, m.path, os.O_RDWR|unix.O_DIRECT)
			read(f, 0, 4096).want(t, want[:4096])
			for i := range int64(3) {
				s.kill()
				off := (2*i + 2) * block
				r := read(f, off, 4096)
				r.blocked(t)
				s = s.again()
				r.want(t, want[off:off+4096])
				copy(want[off:], aligned(4096))
				if _, err := f.WriteAt(aligned(4096), off); err != nil {
					t.Fatal(err)
				}
			}
			err := f.Sync()
			if mode[0] == "--direct" && errors.Is(err, unix.EIO) {
				// A server was killed between a write and this sync. Nothing here has
				// kept what it took, so the program is told, once.
				err = f.Sync()
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			m.unmount()
			wantBytes(t, s.backend, want)
		})
	}
}

// With a retry budget, whoever waits gets EIO when it is used up. Nothing stays
// broken: all works again when the server does.
func TestServerIsAwayForTooLong(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	for _, mode := range [][]string{{"--no-pull"}, {"--direct"}} {
		t.Run(mode[0], func(t *testing.T) {
			t.Parallel()
			const size = 8 * block
			want := pattern(size)
			s := serve(t, patternFile(t, size))
			m := mount(t, s.url, mountPath(t), append(mode, "--retry", "1s")...)
			f := openFile(t, m.path, os.O_RDWR)
			s.kill()
			began := time.Now()
			wantErrno(t, "read", read(f, 0, 4096).wait(t), unix.EIO)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("a read failed after %v, with a budget of one second", took)
			}
			// What is not here must be fetched to be changed in part.
			_, err := f.WriteAt([]byte{1}, block)
			wantErrno(t, "write", err, unix.EIO)
			copy(want[2*block:], bytes.Repeat([]byte{7}, block))
			_, err = f.WriteAt(want[2*block:3*block], 2*block)
			if mode[0] == "--direct" {
				wantErrno(t, "write", err, unix.EIO)
			} else if err != nil {
				t.Errorf("write to the local copy: %v", err)
			} else {
				wantErrno(t, "fsync", f.Sync(), unix.EIO)
			}

			s = s.again()
			// A client tries to connect every second or two, which is longer than the
			// budget here: one operation more may fail meanwhile.
			await(t, "read that works", func() bool {
				r := read(f, 0, 4096)
				return r.wait(t) == nil && differ(r.got, want[:4096]) == ""
			})
			await(t, "write that works", func() bool {
				_, err := f.WriteAt(want[2*block:3*block], 2*block)
				return err == nil && f.Sync() == nil
			})
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			wantBytes(t, m.path, want)
			m.unmount()
			wantBytes(t, s.backend, want)
		})
	}
}

// A server that hangs keeps readers waiting, and only them.
func TestServerHangs(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	const size = 8 * block
	want := pattern(size)
	s := serve(t, patternFile(t, size))
	m := mount(t, s.url, mountPath(t), "--no-pull")
	f := openFile(t, m.path, os.O_RDWR|unix.O_DIRECT)
	read(f, 0, block).want(t, want[:block])
	s.hang()
	r := read(f, 4*block, 4096)
	r.blocked(t)
	read(f, 4096, 4096).want(t, want[4096:8192]) // of a chunk that is here
	s.signal(unix.SIGCONT)
	r.want(t, want[4*block:4*block+4096])
	f.Close()
	m.unmount()
}

// A server that hangs for longer than the retry budget is as good as gone.
func TestServerHangsForTooLong(t *testing.T) {
	testkit.NeedFUSE(t)
	slow(t)
	t.Parallel()
	const size = 8 * block
	want := pattern(size)
	s := serve(t, patternFile(t, size))
	m := mount(t, s.url, mountPath(t), "--no-pull", "--retry", "1s")
	f := openFile(t, m.path, os.O_RDWR|unix.O_DIRECT)
	s.hang()
	wantErrno(t, "read", read(f, 0, 4096).wait(t), unix.EIO, unix.ETIMEDOUT)
	s.signal(unix.SIGCONT)
	await(t, "answer", func() bool {
		r := read(f, 0, 4096)
		return r.wait(t) == nil && differ(r.got, want[:4096]) == ""
	})
	f.Close()
	m.unmount()
}

// A cache on a full disk fails what needs space, and keeps every write that it
// has acknowledged. When there is space again, all works.
func TestCacheDiskIsFull(t *testing.T) {
	testkit.NeedFUSE(t)
	needRoot(t)
	t.Parallel()
	const size = 12 << 20
	disk := t.TempDir()
	if err := unix.Mount("telemap-test", disk, "tmpfs", 0, "size=4m"); err != nil {
		testkit.Need(t, "tmpfs", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })

	want := pattern(size)
	s := serve(t, patternFile(t, size))
	m := mount(t, s.url, mountPath(t), "--no-pull", "--push-interval", "1h", "--cache", filepath.Join(disk, "cache"))
	f := openFile(t, m.path, os.O_RDWR|unix.O_DIRECT)
	buf := aligned(96 << 10) // one chunk and a half
	failed := 0
	// What failed may have changed bytes or not, but no others.
	var unsure [][2]int64
	for off := int64(0); off+int64(len(buf)) <= size/2; off += int64(len(buf)) {
		testkit.Pattern(buf, off, 99)
		n, err := f.WriteAt(buf, off)
		copy(want[off:], buf[:n])
		if err != nil {
			wantErrno(t, "write", err, unix.ENOSPC, unix.EIO)
			failed++
			unsure = append(unsure, [2]int64{off + int64(n), off + int64(len(buf))})
		}
	}
	if failed == 0 {
		t.Fatal("the disk was not full")
	}
	if _, err := f.ReadAt(aligned(4096), size-4096); err != nil {
		wantErrno(t, "read", err, unix.ENOSPC, unix.EIO)
	}
	if n, err := f.ReadAt(buf, 0); err != nil || !bytes.Equal(buf, want[:len(buf)]) {
		t.Errorf("read of what was written: %d bytes or wrong ones, %v", n, err)
	}
	t.Logf("%d writes failed", failed)

	if err := unix.Mount("telemap-test", disk, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	for _, r := range unsure {
		b := aligned(r[1] - r[0])
		testkit.Pattern(b, r[0], 100)
		copy(want[r[0]:], b)
		if _, err := f.WriteAt(b, r[0]); err != nil {
			t.Errorf("write with space: %v", err)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wantBytes(t, m.path, want)
	m.unmount()
	wantBytes(t, s.backend, want)
}

// A clean unmount gets everything out of a cache whose disk is still full.
func TestCacheDiskStaysFull(t *testing.T) {
	testkit.NeedFUSE(t)
	needRoot(t)
	t.Parallel()
	const size = 8 << 20
	disk := t.TempDir()
	if err := unix.Mount("telemap-test", disk, "tmpfs", 0, "size=2m"); err != nil {
		testkit.Need(t, "tmpfs", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })

	want := pattern(size)
	s := serve(t, patternFile(t, size))
	m := mount(t, s.url, mountPath(t), "--cache", filepath.Join(disk, "cache")) // pulls, in vain
	f := openFile(t, m.path, os.O_RDWR|unix.O_DIRECT)
	buf := bytes.Repeat([]byte{0xAB}, block)
	acknowledged := map[int64]bool{}
	for off := int64(0); off < size; off += block {
		if _, err := f.WriteAt(buf, off); err == nil {
			acknowledged[off] = true
		} else {
			wantErrno(t, "write", err, unix.ENOSPC, unix.EIO)
		}
	}
	f.Close()
	m.unmount()
	got, err := os.ReadFile(s.backend)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += block {
		switch at := got[off : off+block]; {
		case bytes.Equal(at, buf):
		case acknowledged[off]:
			t.Errorf("the write at %d was acknowledged and is not there", off)
		case !bytes.Equal(at, want[off:off+block]):
			t.Errorf("bytes at %d are neither old nor new", off)
		}
	}
	if n := len(acknowledged); n == 0 || n == size/block {
		t.Errorf("%d of %d writes were acknowledged on a disk that is full", n, size/block)
	}
}

// fails runs a command that should fail at once, and returns its complaint.
func fails(t *testing.T, code int, args ...string) string {
	t.Helper()
	p := start(t, args...)
	p.wantExit(code)
	return p.stderr.String()
}

func wantText(t *testing.T, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("it says %q, without %q", got, w)
		}
	}
}

func TestPathIsBusy(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	s := serve(t, patternFile(t, block))
	m := mount(t, s.url, mountPath(t))
	wantText(t, fails(t, 1, "mount", s.url, m.path), m.path, "in use", "shown there already")
	wantBytes(t, m.path, pattern(block))
	m.unmount()
}

func TestMountOverWhatAKilledProcessLeft(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	s := serve(t, patternFile(t, block))
	path := mountPath(t)
	for range 3 {
		m := mount(t, s.url, path)
		wantBytes(t, path, pattern(block))
		m.kill()
		_, err := os.Open(path)
		wantErrno(t, "open", err, unix.ENOTCONN)
	}
	m := mount(t, s.url, path)
	wantText(t, m.stderr.String(), "process that has died")
	wantBytes(t, path, pattern(block))
	m.unmount()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after unmounting there is something at the path: %v", err)
	}
}

// Whenever a mount with a cache is killed, the next one with that cache has every
// write that returned, and brings it to the server.
func TestKilledMountLosesNothingWithCache(t *testing.T) {
	testkit.NeedFUSE(t)
	kills := 20
	switch {
	case soak():
		kills = 300
	case testing.Short():
		kills = 3
	}
	t.Parallel()
	const size = 4<<20 + 777
	rnd := testkit.Rand(t)
	want := pattern(size)
	s := serve(t, patternFile(t, size))
	path, cache := mountPath(t), filepath.Join(t.TempDir(), "cache")
	for i := range kills {
		m := mount(t, s.url, path, "--cache", cache, "--push-interval", "10ms")
		wantBytes(t, path, want)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := rnd.IntN(200)
		killed := make(chan struct{})
		dead := func() bool {
			select {
			case <-killed:
				return true
			default:
				return false
			}
		}
		for n := 0; ; n++ {
			if n == at {
				// While writes go on, so that it meets one in the middle.
				go func() {
					defer close(killed)
					m.kill()
				}()
			}
			off, b := randomWrite(rnd, size)
			k, err := f.WriteAt(b, off)
			copy(want[off:], b[:k])
			if err == nil && rnd.IntN(20) == 0 {
				err = f.Sync()
			}
			if err != nil {
				wantErrno(t, "write", err, unix.ENOTCONN, unix.ECONNABORTED, unix.EIO)
				// The last write may have happened or not: each byte is old or new.
				settle(t, i, s, path, cache, want, off+int64(k), b[k:])
				break
			}
			if n > at+100_000 {
				t.Fatalf("the mount does not die: %t", dead())
			}
		}
		<-killed
		f.Close()
		if rnd.IntN(4) == 0 {
			s.kill()
			s = s.again()
		}
	}
	m := mount(t, s.url, path, "--cache", cache)
	wantBytes(t, path, want)
	m.unmount()
	wantBytes(t, s.backend, want)
}

func randomWrite(rnd *rand.Rand, size int64) (off int64, b []byte) {
	off = rnd.Int64N(size)
	b = make([]byte, min(1+rnd.Int64N([]int64{100, 5000, 200_000}[rnd.IntN(3)]), size-off))
	testkit.Pattern(b, off, rnd.Uint64())
	return off, b
}

// settle mounts the cache again and takes what it has at [off, off+len(b)) for
// true if that is old bytes or new ones.
func settle(t *testing.T, round int, s *server, path, cache string, want []byte, off int64, b []byte) {
	t.Helper()
	m := mount(t, s.url, path, "--cache", cache, "--push-interval", "10ms")
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		at := off + int64(i)
		if got[at] != want[at] && got[at] != b[i] {
			t.Fatalf("kill %d: byte %d is %#x, neither %#x as before the last write nor %#x", round, at, got[at], want[at], b[i])
		}
		want[at] = got[at]
	}
	if d := differ(got, want); d != "" {
		t.Fatalf("kill %d: an acknowledged write was lost: %s", round, d)
	}
	m.kill()
}

func TestCacheOfAnotherRegion(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	a, b := serve(t, patternFile(t, 2*block)), serve(t, patternFile(t, 2*block))
	path, cache := mountPath(t), filepath.Join(t.TempDir(), "cache")
	m := mount(t, a.url, path, "--cache", cache)
	wantText(t, fails(t, 1, "mount", a.url, mountPath(t), "--cache", cache), cache, "in use by another mount")
	m.unmount()
	wantText(t, fails(t, 1, "mount", b.url, path, "--cache", cache), cache, "does not belong to this region", a.url, b.url)
	wantText(t, fails(t, 1, "mount", a.url, path, "--cache", cache, "--chunk", "16KiB"), cache, "chunks")
	mount(t, a.url, path, "--cache", cache).unmount()
}

func TestSIGTERMFlushesAndUnmounts(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	want := pattern(3 * block)
	s := serve(t, patternFile(t, 3*block))
	m := mount(t, s.url, mountPath(t), "--push-interval", "1h")
	f := openFile(t, m.path, os.O_RDWR)
	copy(want[100:], "written")
	if _, err := f.WriteAt([]byte("written"), 100); err != nil {
		t.Fatal(err)
	}
	f.Close()
	wantBytes(t, s.backend, pattern(3*block)) // not yet
	if e := m.unmount(); e.Pager == nil {
		t.Errorf("the last line has no statistics: %+v", e)
	}
	wantBytes(t, s.backend, want)
	if _, err := os.Lstat(m.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after unmounting there is something at the path: %v", err)
	}
}

// busyMount is a mount with dirty data whose file the test has open, after
// SIGTERM.
func busyMount(t *testing.T, grace string) (*server, *mounted, *os.File, []byte) {
	t.Helper()
	testkit.NeedFUSE(t)
	t.Parallel()
	want := pattern(3 * block)
	s := serve(t, patternFile(t, 3*block))
	m := mount(t, s.url, mountPath(t), "--push-interval", "1h", "--grace", grace)
	f := openFile(t, m.path, os.O_RDWR)
	copy(want[100:], "written")
	if _, err := f.WriteAt([]byte("written"), 100); err != nil {
		t.Fatal(err)
	}
	m.signal(unix.SIGTERM)
	wantText(t, m.next("busy").Busy, m.path, fmt.Sprint(os.Getpid()))
	return s, m, f, want
}

func TestSIGTERMWaitsForPrograms(t *testing.T) {
	s, m, f, want := busyMount(t, "50s")
	// Out of the tree, but whoever has it open can go on.
	await(t, "end of the mount", func() bool {
		_, err := os.Lstat(m.path)
		return errors.Is(err, fs.ErrNotExist) || err == nil && !isMounted(m.path)
	})
	copy(want[block:], "late")
	if _, err := f.WriteAt([]byte("late"), block); err != nil {
		t.Errorf("write while it waits: %v", err)
	}
	f.Close()
	m.next("unmounted")
	m.wantExit(0)
	wantBytes(t, s.backend, want)
}

func isMounted(path string) bool {
	b, err := os.ReadFile("/proc/self/mounts")
	return err == nil && bytes.Contains(b, []byte(" "+path+" "))
}

func TestSIGTERMDetachesAfterGrace(t *testing.T) {
	s, m, f, want := busyMount(t, "300ms")
	m.wantExit(1)
	wantText(t, m.stderr.String(), "cut while in use")
	wantBytes(t, s.backend, want)
	_, err := f.ReadAt(make([]byte, 1), 2*block)
	wantErrno(t, "read after the cut", err, unix.ENOTCONN, unix.ECONNABORTED, unix.EIO)
	if isMounted(m.path) {
		t.Error("it is still mounted")
	}
}

func TestSecondSIGTERMStopsAtOnce(t *testing.T) {
	_, m, _, _ := busyMount(t, "10m")
	await(t, "exit", func() bool {
		m.signal(unix.SIGTERM) // those within 200 ms are taken for the first's echo
		select {
		case <-m.exited:
			return true
		default:
			return false
		}
	})
	m.wantExit(130)
}

func TestUnmountFromOutside(t *testing.T) {
	testkit.NeedFUSE(t)
	needRoot(t)
	testkit.NeedProgram(t, "umount", "mount")
	t.Parallel()
	want := pattern(3 * block)
	s := serve(t, patternFile(t, 3*block))
	m := mount(t, s.url, mountPath(t), "--push-interval", "1h")
	f := openFile(t, m.path, os.O_RDWR)
	b, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	copy(want[100:], "stored")
	copy(b[100:], "stored")
	copy(want[2*block:], "written")
	if _, err := f.WriteAt([]byte("written"), 2*block); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Munmap(b), f.Close()); err != nil {
		t.Fatal(err)
	}
	run(t, "umount", m.path)
	m.next("unmounted")
	m.wantExit(0)
	wantBytes(t, s.backend, want)
}
