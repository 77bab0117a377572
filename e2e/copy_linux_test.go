package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
)

// Between any two kinds of backend a copy has the same bytes, and holes stay
// holes.
func TestCopyBetweenBackends(t *testing.T) {
	t.Parallel()
	const (
		size   = 24<<20 + 777
		island = 200_000
	)
	want := make([]byte, size)
	for _, off := range []int64{0, 5<<20 + 123, 16 << 20, size - island} {
		testkit.Pattern(want[off:off+island], off, 7)
	}
	kinds := []struct {
		name string
		// make returns a URL, and where the bytes are on this host.
		make func(t *testing.T) (url, path string)
	}{
		{"file", func(t *testing.T) (string, string) {
			path := filepath.Join(t.TempDir(), "copy.img")
			return path, path
		}},
		{"dir", func(t *testing.T) (string, string) {
			path := filepath.Join(t.TempDir(), "chunks")
			return "dir://" + path + "?chunk=64KiB", path
		}},
		{"tcp", func(t *testing.T) (string, string) {
			path := emptyFile(t, size)
			return serve(t, path).url, path
		}},
		{"grpc", func(t *testing.T) (string, string) {
			path := emptyFile(t, size)
			return serveAt(t, path, "grpc://127.0.0.1:0").url, path
		}},
	}
	for _, src := range kinds {
		t.Run("from="+src.name, func(t *testing.T) {
			t.Parallel()
			if src.name == "dir" || src.name == "grpc" {
				slow(t)
			}
			original := sparseFile(t, want)
			from, at := src.make(t)
			copied(t, original, from)
			wantSparse(t, at)
			for _, dst := range kinds {
				t.Run("to="+dst.name, func(t *testing.T) {
					to, at := dst.make(t)
					s := copied(t, from, to)
					if s.Size != size || s.Done+s.Holes+s.Zeros != size || s.Done > size/2 {
						t.Errorf("it says %+v, want most of %d bytes to be holes or zeros", s, size)
					}
					wantSparse(t, at)
					// The bytes, by whatever way back to a file.
					back := filepath.Join(t.TempDir(), "back.img")
					copied(t, to, back)
					wantBytes(t, back, want)
					wantSparse(t, back)
				})
			}
		})
	}
}

// sparseFile is a file of b with holes where that has zeros.
func sparseFile(t *testing.T, b []byte) string {
	t.Helper()
	path := emptyFile(t, int64(len(b)))
	f := openFile(t, path, os.O_RDWR)
	const page = 4096
	for off := 0; off < len(b); off += page {
		p := b[off:min(off+page, len(b))]
		if strings.Trim(string(p), "\x00") == "" {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

type copyStats struct {
	Size  int64 `json:"size_bytes"`
	Done  int64 `json:"copied_bytes"`
	Holes int64 `json:"hole_bytes"`
	Zeros int64 `json:"zero_bytes"`
}

// copied runs cp.
func copied(t *testing.T, src, dst string) (s copyStats) {
	t.Helper()
	cmd := command("cp", "--json", src, dst)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if strings.Contains(stderr.String(), `unknown scheme "dir"`) {
		t.Skip("this telemap does not know dir:")
	}
	if err != nil {
		t.Fatalf("cp %s %s: %v: %s", src, dst, err, &stderr)
	}
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("cp --json: %v: %s", err, out)
	}
	return s
}

// wantSparse checks that a file, or the files in a directory, take little more
// space than their data.
func wantSparse(t *testing.T, path string) {
	t.Helper()
	var taken int64
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			taken += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if taken > 4<<20 {
		t.Errorf("%s takes %d bytes, its data less than a million", path, taken)
	}
}

// A hole that a program makes in the mounted file is one in the served file too.
func TestHolesFreeSpaceAtTheServer(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Parallel()
	for _, flags := range [][]string{nil, {"--direct"}} {
		t.Run(strings.Join(append([]string{"mount"}, flags...), " "), func(t *testing.T) {
			const size = 8 << 20
			s := serve(t, patternFile(t, size))
			m := mount(t, s.url, mountPath(t), flags...)
			f := openFile(t, m.path, os.O_RDWR)
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 6<<20); err != nil {
				t.Fatal(err)
			}
			f.Close()
			m.unmount()
			wantSparse(t, s.backend)
			want := pattern(size)
			clear(want[1<<20 : 7<<20])
			wantBytes(t, s.backend, want)
		})
	}
}
