package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
)

// patience bounds every wait for a process, a program or the kernel.
const patience = 60 * time.Second

// binary is the command under test. Its file has no name any more, so that
// nothing is left behind however the tests end.
var binary *os.File

func TestMain(m *testing.M) {
	if os.Getenv("TELEMAP_E2E") == "" {
		fmt.Println("e2e: skipped: set TELEMAP_E2E=1 (make e2e) to run real programs on mounted regions")
		os.Exit(0)
	}
	var err error
	if binary, err = build(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	testkit.Main(m)
}

func build() (_ *os.File, err error) {
	dir, err := os.MkdirTemp("", "telemap-e2e-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "telemap")
	args := []string{"build", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", append(args, "github.com/telemap/telemap/cmd/telemap")...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build telemap: %w\n%s", err, out)
	}
	return os.Open(path)
}

// A process is one telemap command. It is killed when the test ends.
type process struct {
	t      testing.TB
	cmd    *exec.Cmd
	events chan event
	exited chan struct{}
	stderr buffer
}

// An event is one line of --json.
type event struct {
	Event string `json:"event"`
	URL   string `json:"url"`
	Path  string `json:"path"`
	Busy  string `json:"busy"`
	Pager *struct {
		PushedBytes  int64 `json:"pushed_bytes"`
		FetchedBytes int64 `json:"fetched_bytes"`
	} `json:"pager"`
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func command(args ...string) *exec.Cmd {
	cmd := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), binary.Fd()), args...)
	cmd.Args[0] = "telemap"
	// SIGTERM, so that not even tests that are killed leave a mount behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	return cmd
}

func start(t testing.TB, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: command(args...), events: make(chan event, 64), exited: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatalf("start telemap %s: %v", strings.Join(args, " "), err)
	}
	go func() {
		defer close(p.exited)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e.Event = "not JSON: " + lines.Text()
			}
			p.events <- e
		}
		close(p.events)
		_ = p.cmd.Wait() // ProcessState tells
	}()
	t.Cleanup(func() {
		p.kill()
		if log := p.stderr.String(); t.Failed() && log != "" {
			t.Logf("telemap %s: %v:\n%s", strings.Join(args, " "), p.cmd.ProcessState, log)
		}
	})
	return p
}

func (p *process) signal(s unix.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("send %v to telemap %s: %v", s, p.cmd.Args[1], err)
	}
}

// hang stops the process until SIGCONT, and returns when every thread has.
func (p *process) hang() {
	p.t.Helper()
	p.signal(unix.SIGSTOP)
	await(p.t, "stop", func() bool {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		for _, path := range stats {
			// The name in parentheses could have any byte in it, but is telemap's.
			if b, err := os.ReadFile(path); err == nil && !bytes.Contains(b, []byte(") T ")) {
				return false
			}
		}
		return len(stats) > 0
	})
}

// kill returns when the process is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	for range p.events { // so that the reader gets to its end
	}
	<-p.exited
}

// next is the next event, which must be called what.
func (p *process) next(what string) event {
	p.t.Helper()
	return p.nextOf(what)
}

// nextOf is the next event, which must have one of the names.
func (p *process) nextOf(what ...string) event {
	p.t.Helper()
	select {
	case e, ok := <-p.events:
		if !ok {
			<-p.exited
			p.t.Fatalf("telemap %s: %v instead of event %v: %s", p.cmd.Args[1], p.cmd.ProcessState, what, &p.stderr)
		}
		if !slices.Contains(what, e.Event) {
			p.t.Fatalf("telemap %s: event %+v, want %v; it says: %s", p.cmd.Args[1], e, what, &p.stderr)
		}
		return e
	case <-time.After(patience):
		p.t.Fatalf("telemap %s: no event %v within %v; it says: %s", p.cmd.Args[1], what, patience, &p.stderr)
	}
	panic("unreachable")
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("telemap %s did not end within %v; it says: %s", p.cmd.Args[1], patience, &p.stderr)
	}
	panic("unreachable")
}

func (p *process) wantExit(code int) {
	p.t.Helper()
	if got := p.wait(); got != code {
		p.t.Fatalf("telemap %s: exit code %d, want %d; it says: %s", p.cmd.Args[1], got, code, &p.stderr)
	}
}

// A server is a process that serves a backend as "region".
type server struct {
	*process
	url, listen, backend string
}

func serve(t testing.TB, backend string) *server {
	t.Helper()
	return serveAt(t, backend, "tcp://127.0.0.1:0")
}

func serveAt(t testing.TB, backend, listen string) *server {
	t.Helper()
	p := start(t, "serve", "region="+backend, "--listen", listen, "--json")
	e := p.next("serving")
	u, err := url.Parse(e.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &server{p, e.URL, u.Scheme + "://" + u.Host, backend}
}

// again starts a server that was killed, at the same address.
func (s *server) again() *server {
	s.t.Helper()
	return serveAt(s.t, s.backend, s.listen)
}

func (s *server) stop() {
	s.t.Helper()
	s.signal(unix.SIGTERM)
	s.wantExit(0)
}

// A mounted is a process that shows a region at path.
type mounted struct {
	*process
	path string
}

func mount(t testing.TB, url, path string, flags ...string) *mounted {
	t.Helper()
	t.Cleanup(func() {
		// After the process was killed: what it left is in nobody's way.
		for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
	p := start(t, append([]string{"mount", url, path, "--json"}, flags...)...)
	p.next("mounted")
	return &mounted{p, path}
}

// unmount ends the mount in order and returns what it says at the end.
func (m *mounted) unmount() event {
	m.t.Helper()
	m.signal(unix.SIGTERM)
	// A process that a parallel test has just forked has our files open until it
	// becomes the program that it is for. Then it goes on within the grace.
	e := m.nextOf("unmounted", "busy")
	if e.Event == "busy" {
		e = m.next("unmounted")
	}
	m.wantExit(0)
	return e
}

// await waits for what no test can be told of, such as the state of another
// process, until it is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// run runs a program to its end and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(t testing.TB, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// patternFile makes a file of testkit's pattern.
func patternFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "served.img")
	if err := os.WriteFile(path, pattern(size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// emptyFile makes a file that is one hole.
func emptyFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "served.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	return path
}

func pattern(size int64) []byte {
	b := make([]byte, size)
	testkit.Pattern(b, 0, 1)
	return b
}

// mountPath is where a test mounts: a path that does not exist.
func mountPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "mounted.img")
}

func digest(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// wantBytes compares a file with what it should hold.
func wantBytes(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := differ(got, want); d != "" {
		t.Fatalf("%s: %s", path, d)
	}
}

// differ says where got is not want, or nothing.
func differ(got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return ""
	}
	first, count := -1, 0
	for i := range got {
		if got[i] != want[i] {
			count++
			if first < 0 {
				first = i
			}
		}
	}
	return fmt.Sprintf("%d bytes differ, the first at %d (%#x): %#x, want %#x", count, first, first, got[first], want[first])
}

// openFile opens a file until the test ends.
func openFile(t testing.TB, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func needRoot(t testing.TB) {
	t.Helper()
	var err error
	if os.Geteuid() != 0 {
		err = errors.New("this process is not root's")
	}
	testkit.Need(t, "root", err)
}

// slow leaves a test out of -short.
func slow(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes longer than -short allows")
	}
}

func soak() bool { return os.Getenv("TELEMAP_SOAK") != "" }
