package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
)

// modes are the ways to mount that a file system must be safe in.
var modes = []struct {
	name  string
	flags func(t *testing.T) []string
	loop  []string // of losetup
}{
	{"managed", func(*testing.T) []string { return nil }, nil},
	{"direct", func(*testing.T) []string { return []string{"--direct"} }, nil},
	{"cache", func(t *testing.T) []string {
		return []string{"--cache", filepath.Join(t.TempDir(), "cache"), "--push-interval", "100ms"}
	}, nil},
	{"managed,loop-dio", func(*testing.T) []string { return []string{"--chunk", "16KiB"} }, []string{"--direct-io=on"}},
}

// A loop is a file as a block device, with a file system mounted from it.
type loop struct {
	t        testing.TB
	dev, dir string
}

// attach puts a loop device on file and mounts it.
func attach(t testing.TB, file string, losetup ...string) *loop {
	t.Helper()
	l := &loop{t: t, dir: t.TempDir()}
	said := strings.Fields(run(t, "losetup", append(losetup, "--find", "--show", file)...))
	l.dev = said[len(said)-1] // warnings come first
	t.Cleanup(l.clean)
	run(t, "mount", "-t", "ext4", l.dev, l.dir)
	return l
}

// detach returns when the file is no longer used.
func (l *loop) detach() {
	l.t.Helper()
	run(l.t, "umount", l.dir)
	run(l.t, "losetup", "--detach", l.dev)
	dev := l.dev
	l.dev = ""
	// Who glances at a new device, as udev does, delays its end.
	await(l.t, "end of "+dev, func() bool {
		_, err := os.Stat("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
		return errors.Is(err, fs.ErrNotExist)
	})
}

func (l *loop) clean() {
	if l.dev == "" {
		return
	}
	_ = unix.Unmount(l.dir, unix.MNT_DETACH)
	if f, err := os.Open(l.dev); err == nil {
		_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		f.Close()
	}
}

func needExt4(t *testing.T) {
	t.Helper()
	testkit.NeedFUSE(t)
	needRoot(t)
	testkit.NeedProgram(t, "mkfs.ext4", "e2fsprogs")
	testkit.NeedProgram(t, "fsck.ext4", "e2fsprogs")
	testkit.NeedProgram(t, "losetup", "mount")
	testkit.NeedProgram(t, "mount", "mount")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		testkit.Need(t, "loop", err)
	}
}

// A file system lives in a region as it does on a disk: made, filled, checked and
// read back, and what the server has in the end is the same.
func TestExt4(t *testing.T) {
	needExt4(t)
	tree := sourceTree(t)
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			if mode.name != "managed" {
				slow(t)
			}
			t.Parallel()
			// No multiple of a chunk, a page or a sector.
			served := emptyFile(t, 64<<20+24<<10+777)
			s := serve(t, served)
			m := mount(t, s.url, mountPath(t), mode.flags(t)...)
			run(t, "mkfs.ext4", "-q", "-F", m.path)

			l := attach(t, m.path, mode.loop...)
			if err := os.CopyFS(filepath.Join(l.dir, "tree"), os.DirFS(tree)); err != nil {
				t.Fatal(err)
			}
			l.detach()
			run(t, "fsck.ext4", "-f", "-n", m.path)

			l = attach(t, m.path, mode.loop...)
			sameTree(t, filepath.Join(l.dir, "tree"), tree)
			// Deleting punches holes, and what is written then goes there again.
			if err := os.RemoveAll(filepath.Join(l.dir, "tree")); err != nil {
				t.Fatal(err)
			}
			run(t, "fstrim", l.dir)
			if err := os.CopyFS(filepath.Join(l.dir, "again"), os.DirFS(tree)); err != nil {
				t.Fatal(err)
			}
			l.detach()
			run(t, "fsck.ext4", "-f", "-n", m.path)
			held := digest(t, m.path)
			m.unmount()

			if got := digest(t, served); got != held {
				t.Errorf("the served file is not what was mounted: %s, want %s", got, held)
			}
			run(t, "fsck.ext4", "-f", "-n", served)
			m = mount(t, s.url, mountPath(t))
			if got := digest(t, m.path); got != held {
				t.Errorf("mounted anew the region is another: %s, want %s", got, held)
			}
			l = attach(t, m.path, mode.loop...)
			sameTree(t, filepath.Join(l.dir, "again"), tree)
			l.detach()
			m.unmount()
			s.stop()
		})
	}
}

// sourceTree is a directory of several hundred files of all sizes.
func sourceTree(t *testing.T) string {
	t.Helper()
	root := strings.TrimSpace(run(t, "go", "env", "GOROOT"))
	return filepath.Join(root, "src", "net")
}

func sameTree(t *testing.T, got, want string) {
	t.Helper()
	list := func(root string) (names []string) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			names = append(names, rel)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	names := list(want)
	if there := list(got); !slices.Equal(there, names) {
		t.Fatalf("the tree has %d files and directories, want %d", len(there), len(names))
	}
	for _, name := range names {
		st, err := os.Stat(filepath.Join(want, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(want, name))
		if err != nil {
			t.Fatal(err)
		}
		wantBytes(t, filepath.Join(got, name), b)
	}
}
