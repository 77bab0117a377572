package probe

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/telemap/telemap/internal/testkit"
)

func TestAvailableMeansThatItWorks(t *testing.T) {
	r := Run(t.Context())
	for name, path := range map[string]string{"fuse": "/dev/fuse", "ublk": "/dev/ublk-control", "loop": "/dev/loop-control"} {
		if !r.Entry(name).Available {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Errorf("%s is available, but: %v", name, err)
			continue
		}
		f.Close()
	}
	for _, name := range []string{"fuse", "userfaultfd", "memfd", "pagemap-scan", "dirty-tracking"} {
		t.Run(name, func(t *testing.T) {
			if e := r.Entry(name); !e.Available {
				testkit.Need(t, name, errors.New(e.Detail))
			}
		})
	}
}

// Other tests may mount and attach meanwhile, so what counts is whether every
// run leaves something.
func TestRunLeavesNothingBehind(t *testing.T) {
	count := func() map[string]int {
		n := map[string]int{}
		for _, path := range []string{"/proc/self/mountinfo", "/proc/modules"} {
			b, _ := os.ReadFile(path)
			n[path] = bytes.Count(b, []byte("\n"))
		}
		for _, pattern := range []string{"/sys/block/*", "/sys/fs/fuse/connections/*", "/dev/*"} {
			names, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			n[pattern] = len(names)
		}
		return n
	}
	const runs = 40
	before := count()
	for range runs {
		Run(t.Context())
	}
	for what, n := range count() {
		if n-before[what] >= runs {
			t.Errorf("%s: %d before, %d after %d runs", what, before[what], n, runs)
		}
	}
}

// TestWithoutRights probes from a process that is nobody and has nothing.
func TestWithoutRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("already without rights; the other tests cover it")
	}
	// The test's own directories are closed to others.
	dir, err := os.MkdirTemp("", "telemap-probe")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "probe.test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, self, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path)
	c.Dir, c.Env = "/", append(os.Environ(), childVariable+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.Output()
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("child said %q: %v", out, err)
	}
	consistent(t, r)
	if r.UID != 65534 || len(r.Capabilities) != 0 {
		t.Errorf("the child was %d with %v; want 65534 with nothing", r.UID, r.Capabilities)
	}
	if own := Run(t.Context()); len(own.Entries) != len(r.Entries) {
		t.Errorf("nobody has %d entries, root has %d", len(r.Entries), len(own.Entries))
	}
	for _, name := range []string{"cap-sys-admin", "fuse/mount", "fuse/protocol"} {
		if r.Entry(name).Available {
			t.Errorf("%s is available to nobody", name)
		}
	}
	if testing.Verbose() {
		r.WriteText(t.Output())
	}
}
