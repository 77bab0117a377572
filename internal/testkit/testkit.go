// Package testkit holds what tests of several packages share: the leak check,
// skips that cannot hide, and bytes that tell where they belong.
package testkit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests and fails the package when they leave goroutines,
// descriptors or mounts behind. Use it as TestMain's only statement.
func Main(m *testing.M) {
	// The poller's descriptors are opened once per process, on first use.
	if r, w, err := os.Pipe(); err == nil {
		r.SetReadDeadline(time.Now())
		r.Close()
		w.Close()
	}
	// Temporary files of our own make our mounts known from those of others.
	tmp, err := os.MkdirTemp("", "telemap-test-")
	if err == nil { // tests that drop their privileges use it too
		err = errors.Join(os.Chmod(tmp, 0o755), os.Setenv("TMPDIR", tmp))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		os.Exit(1)
	}
	fds := descriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "testkit: leaked goroutines:", err)
			code = 1
		}
	}
	if code == 0 {
		if left := settle(fds, descriptors); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "testkit: leaked descriptors:\n  %s\n", strings.Join(left, "\n  "))
			code = 1
		}
		if left := settle(nil, func() map[string]int { return mountsBelow(tmp) }); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "testkit: leaked mounts:\n  %s\n", strings.Join(left, "\n  "))
			code = 1
		}
	}
	if len(mountsBelow(tmp)) == 0 {
		if err := os.RemoveAll(tmp); err != nil {
			fmt.Fprintln(os.Stderr, "testkit: clean up:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// settle returns what now has and before had not, once that has stopped
// shrinking: closing is asynchronous in the kernel and in package net.
func settle(before map[string]int, now func() map[string]int) []string {
	var left []string
	for range 50 {
		left = left[:0]
		for what, n := range now() {
			if n > before[what] {
				left = append(left, fmt.Sprintf("%s (%d more)", what, n-before[what]))
			}
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(left)
	return left
}

// descriptors counts this process' open descriptors by what they refer to.
func descriptors() map[string]int {
	open := map[string]int{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return open // not Linux
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || strings.HasPrefix(target, "/proc/") {
			continue // the descriptor of this very listing
		}
		// Inode numbers would hide that two sockets are both leaked sockets.
		if kind, _, ok := strings.Cut(target, ":["); ok {
			target = kind
		}
		open[target]++
	}
	return open
}

// mountsBelow counts the mounts below dir.
func mountsBelow(dir string) map[string]int {
	mounts := map[string]int{}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return mounts // not Linux
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			mounts[f[1]]++
		}
	}
	return mounts
}

// Need skips the test with the reason when err is not nil. With feature listed
// in TELEMAP_REQUIRE (comma-separated; "all" lists every one) it fails the test
// instead, so that CI cannot pass by skipping.
func Need(t testing.TB, feature string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	required := strings.Split(os.Getenv("TELEMAP_REQUIRE"), ",")
	if slices.Contains(required, feature) || slices.Contains(required, "all") {
		t.Fatalf("%s is required here but cannot be had: %v", feature, err)
	}
	t.Skipf("needs %s: %v", feature, err)
}

// NeedFUSE skips the test where FUSE cannot be mounted.
func NeedFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		if os.Geteuid() != 0 {
			if _, err = exec.LookPath("fusermount3"); err != nil {
				_, err = exec.LookPath("fusermount")
			}
		}
	}
	Need(t, "fuse", err)
}

// NeedProgram skips the test where the program cannot be had. As root on a
// Debian-like system it installs the package that holds it first.
func NeedProgram(t testing.TB, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Geteuid() == 0 {
		if apt, aptErr := exec.LookPath("apt-get"); aptErr == nil {
			out, instErr := install(apt, debianPackage)
			if instErr != nil {
				t.Logf("apt-get install %s: %v\n%s", debianPackage, instErr, out)
			}
			path, err = exec.LookPath(program)
		}
	}
	Need(t, program, err)
	return path
}

func install(apt, pkg string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	run := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, apt, append([]string{"-o", "DPkg::Lock::Timeout=120"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		return cmd.CombinedOutput()
	}
	out, err := run("install", "-y", "--no-install-recommends", pkg)
	if err != nil { // perhaps the package lists were never fetched
		if out, err = run("update"); err == nil {
			out, err = run("install", "-y", "--no-install-recommends", pkg)
		}
	}
	return out, err
}

// Pattern fills p with the bytes that belong at offset off of a region made
// from seed: every 8-byte word differs from its neighbours and from the same
// word of another seed, so bytes in the wrong place are noticed.
func Pattern(p []byte, off int64, seed uint64) {
	var word [8]byte
	for i := range p {
		at := off + int64(i)
		if i == 0 || at%8 == 0 {
			x := (uint64(at/8)+1)*0x9E3779B97F4A7C15 ^ seed*0xD6E8FEB86659FD93
			x ^= x >> 29
			binary.LittleEndian.PutUint64(word[:], x|1)
		}
		p[i] = word[at%8]
	}
}

// Rand is a source of random numbers whose seed is logged when the test fails.
// Set TELEMAP_SEED to repeat a run.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TELEMAP_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatalf("TELEMAP_SEED=%s: %v", s, err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d (set TELEMAP_SEED to repeat)", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// Logger writes to the test's output.
func Logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
