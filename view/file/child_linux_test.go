package file

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
)

// A process must not map a file that it serves, so tests map in a child: the test
// binary run again.

func childCmd(t testing.TB, what, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "TELEMAP_TEST_CHILD="+what, "TELEMAP_TEST_PATH="+path,
		"GORACE=atexit_sleep_ms=0")
	return cmd
}

func runChild(t testing.TB, what, path string) string {
	t.Helper()
	out, err := childCmd(t, what, path).CombinedOutput()
	if err != nil {
		t.Fatalf("child %s: %v\n%s", what, err, out)
	}
	return string(out)
}

type process struct {
	cmd  *exec.Cmd
	out  *bufio.Reader
	in   io.Closer
	tid  int // of the thread that does the work
	dead bool
}

// startChild returns once the child has said that it is ready.
func startChild(t testing.TB, what, path string) *process {
	t.Helper()
	cmd := childCmd(t, what, path)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, out: bufio.NewReader(stdout), in: stdin}
	t.Cleanup(p.kill)
	line, err := p.out.ReadString('\n')
	if _, scanErr := fmt.Sscanf(line, "ready %d", &p.tid); scanErr != nil {
		t.Fatalf("child says %q, %v; want that it is ready", line, err)
	}
	return p
}

func (p *process) expect(t testing.TB, want string) {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if !strings.Contains(line, want) {
		t.Fatalf("child says %q, %v; want %q", line, err, want)
	}
}

// signal sends SIGUSR1, which the child handles, to the thread that does the work.
func (p *process) signal(t testing.TB) {
	t.Helper()
	if err := unix.Tgkill(p.cmd.Process.Pid, p.tid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
}

// kill returns when the process is gone.
func (p *process) kill() {
	if p.dead {
		return
	}
	p.dead = true
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// orphaned waits for the test to be gone.
func orphaned() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func die(what string, err error) {
	fmt.Printf("%s: %v\n", what, err)
	os.Exit(1)
}

func child() {
	what, path := os.Getenv("TELEMAP_TEST_CHILD"), os.Getenv("TELEMAP_TEST_PATH")
	runtime.LockOSThread()
	ready := func() { fmt.Println("ready", unix.Gettid()) }
	if what == "serve" {
		if _, err := Open(context.Background(), newStore(4096), path, Options{}); err != nil {
			die("open", err)
		}
		ready()
		orphaned()
	}
	if what == "unprivileged" {
		dropPrivileges(filepath.Join(filepath.Dir(filepath.Dir(path)), "fuse"))
		unprivileged(path)
		os.Exit(0)
	}
	flag := unix.O_RDWR
	if what == "read-direct" {
		flag |= unix.O_DIRECT
	}
	fd, err := unix.Open(path, flag, 0)
	if err != nil {
		die("open", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		die("stat", err)
	}
	size := int(st.Size)
	// A handled signal, on the thread that waits.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	report := func(err error) {
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
		orphaned()
	}
	mapped := func(flags int) []byte {
		b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
		if err != nil {
			die("mmap", err)
		}
		return b
	}
	switch what {
	case "mmap":
		want := make([]byte, size)
		testkit.Pattern(want, 0, 1)
		private, shared := mapped(unix.MAP_PRIVATE), mapped(unix.MAP_SHARED)
		if !bytes.Equal(private, want) || !bytes.Equal(shared, want) {
			die("mmap", fmt.Errorf("bytes differ: private %t, shared %t", !bytes.Equal(private, want), !bytes.Equal(shared, want)))
		}
		clear(private)
		if !bytes.Equal(shared, want) {
			die("mmap", fmt.Errorf("a private write is shared"))
		}
		testkit.Pattern(shared, 0, 2)
		if err := unix.Msync(shared, unix.MS_SYNC); err != nil {
			die("msync", err)
		}
	case "mmap-nosync":
		b := mapped(unix.MAP_SHARED)
		ready()
		testkit.Pattern(b, 0, 3)
		if err := unix.Munmap(b); err != nil {
			die("munmap", err)
		}
		if err := unix.Close(fd); err != nil {
			die("close", err)
		}
	case "mmap-hold":
		b := mapped(unix.MAP_SHARED)
		testkit.Pattern(b, 0, 3)
		ready()
		orphaned()
	case "mmap-random":
		b := mapped(unix.MAP_SHARED)
		if err := unix.Madvise(b, unix.MADV_RANDOM); err != nil {
			die("madvise", err)
		}
		ready()
		sum := 1 + int(b[100]) // a load that is not optimised away
		if sum != 1 {
			die("mmap", fmt.Errorf("wrong byte"))
		}
		report(nil)
	case "read", "read-direct":
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			die("mmap", err)
		}
		ready()
		_, err = unix.Pread(fd, b, 0)
		report(err)
	case "write":
		ready()
		_, err := unix.Pwrite(fd, make([]byte, 4096), 0)
		report(err)
	case "touch": // copies the file out of a mapping, chunk by chunk
		b := mapped(unix.MAP_SHARED)
		chunk := make([]byte, 1<<20)
		start := time.Now()
		for off := 0; off < size; off += len(chunk) {
			copy(chunk, b[off:])
		}
		fmt.Println(time.Since(start).Nanoseconds())
	case "dirty": // writes the whole file through a mapping, and syncs it
		b := mapped(unix.MAP_SHARED)
		start := time.Now()
		for off := 0; off < size; off += 4096 {
			b[off]++
		}
		if err := unix.Msync(b, unix.MS_SYNC); err != nil {
			die("msync", err)
		}
		fmt.Println(time.Since(start).Nanoseconds())
	case "touch-random": // prints how long the median first touch takes
		b := mapped(unix.MAP_SHARED)
		var took []time.Duration
		sum := 0
		for range 90 { // after 100 misses the kernel reads around no more
			at := rand.IntN(size)
			start := time.Now()
			sum += int(b[at])
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		if sum < 0 {
			die("touch", fmt.Errorf("impossible"))
		}
		fmt.Println(took[len(took)/2].Nanoseconds())
	case "sync":
		ready()
		report(unix.Fsync(fd))
	}
	os.Exit(0)
}

const nobody = 65534

// dropPrivileges makes /dev/fuse what it is on most systems, accessible to all, and
// this process a plain user's.
func dropPrivileges(device string) {
	if err := unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 229))); err != nil {
		die("mknod", err)
	}
	if err := os.Chmod(device, 0o666); err != nil {
		die("chmod", err)
	}
	if err := unix.Mount(device, "/dev/fuse", "", unix.MS_BIND, ""); err != nil {
		die("mount", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		die("setuid", err)
	}
}

// unprivileged uses a view from opening to closing.
func unprivileged(path string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s := newStore(10000)
	testkit.Pattern(s.b, 0, 1)
	v, err := Open(ctx, s, path, Options{})
	if err != nil {
		die("open", err)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		die("open the file", err)
	}
	got := make([]byte, 10000)
	if n, err := unix.Pread(fd, got, 0); n != len(got) || err != nil || !bytes.Equal(got, s.b) {
		die("read", fmt.Errorf("%d bytes, %v", n, err))
	}
	if _, err := Open(ctx, s, path, Options{}); !errors.Is(err, ErrBusy) {
		die("open it twice", err)
	}
	if err := v.Close(ctx); !errors.Is(err, ErrBusy) {
		die("close it while in use", err)
	}
	unix.Close(fd)
	if err := v.Close(ctx); err != nil {
		die("close", err)
	}
	if v, err = Open(ctx, s, path, Options{ReadOnly: true}); err != nil {
		die("open it read-only", err)
	}
	if _, err := unix.Open(path, unix.O_RDWR, 0); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		die("open the read-only file for writing", err)
	}
	if err := v.Detach(ctx); err != nil {
		die("detach", err)
	}
}

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func readIn(off uint64, n int) (*fuse.ReadIn, []byte) {
	return &fuse.ReadIn{Offset: off, Size: uint32(n)}, make([]byte, n)
}
