package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func must(t *testing.T, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	backendtest.Suite{
		Open: func(t *testing.T, size int64) backend.Backend {
			return must(t, t.TempDir(), Options{Size: size, ChunkSize: 16 << 10})
		},
		Persistent: func(t *testing.T, size int64) func() backend.Backend {
			path := filepath.Join(t.TempDir(), "a", "b")
			return func() backend.Backend { return must(t, path, Options{Size: size, ChunkSize: 4096}) }
		},
		ReadOnly: func(t *testing.T, content []byte) backend.Backend {
			path := t.TempDir()
			s := must(t, path, Options{Size: int64(len(content))})
			if _, err := s.WriteAt(t.Context(), content, 0); err != nil {
				t.Fatal(err)
			}
			return must(t, path, Options{ReadOnly: true})
		},
		Ops: 150,
	}.Run(t)
}

// TestConformanceWithFewFiles closes a file for nearly every one it opens.
func TestConformanceWithFewFiles(t *testing.T) {
	backendtest.Suite{
		Open: func(t *testing.T, size int64) backend.Backend {
			return must(t, t.TempDir(), Options{Size: size, ChunkSize: 32 << 10, MaxOpenFiles: 2})
		},
		Ops: 40,
	}.Run(t)
}

func chunkFiles(t *testing.T, path string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(filepath.Join(path, chunksName), func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestReadsCreateNoFiles(t *testing.T) {
	path := t.TempDir()
	s := must(t, path, Options{Size: 1 << 40})
	p := make([]byte, 3<<20)
	for off := int64(0); off < 1<<40; off += 1 << 36 {
		if err := backend.ReadFull(t.Context(), s, p, off); err != nil {
			t.Fatal(err)
		}
	}
	if names := chunkFiles(t, path); len(names) != 0 {
		t.Errorf("reads made %v", names)
	}
}

func TestFilesAreThoseOfChunksWithData(t *testing.T) {
	path := t.TempDir()
	ctx := t.Context()
	s := must(t, path, Options{Size: 10000 * 4096, ChunkSize: 4096})
	for _, i := range []int64{0, 1, 4095, 4096, 9999} {
		if _, err := s.WriteAt(ctx, []byte{1}, i*4096+7); err != nil {
			t.Fatal(err)
		}
	}
	want := "[00000000 00000001 00000fff 00001000 0000270f]"
	if got := fmt.Sprint(chunkFiles(t, path)); got != want {
		t.Errorf("files %s; want %s", got, want)
	}
	if err := s.Zero(ctx, 4096, 4096*4096); err != nil {
		t.Fatal(err)
	}
	want = "[00000000 0000270f]"
	if got := fmt.Sprint(chunkFiles(t, path)); got != want {
		t.Errorf("files %s after Zero; want %s", got, want)
	}
	if err := s.Sync(ctx); err != nil {
		t.Errorf("Sync = %v", err)
	}
	for name, want := range map[string]fs.FileMode{
		manifestName: 0o600, chunksName: fs.ModeDir | 0o700, "chunks/00000": fs.ModeDir | 0o700, "chunks/00000/00000000": 0o600,
	} {
		fi, err := os.Stat(filepath.Join(path, name))
		if err != nil || fi.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", name, fi.Mode(), err, want)
		}
	}
}

func TestOpenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "region")
	must(t, path, Options{Size: 100_000, ChunkSize: 8192}).Close()
	s := must(t, path, Options{})
	if s.Size() != 100_000 || s.Geometry().ChunkSize() != 8192 {
		t.Errorf("Size() = %d, chunk size %d; want what the manifest says", s.Size(), s.Geometry().ChunkSize())
	}
}

func TestOpenRefuses(t *testing.T) {
	write := func(path, name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(path, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	region := t.TempDir()
	must(t, region, Options{Size: 100_000, ChunkSize: 8192}).Close()
	full, bad, old, huge := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	write(full, "photo.jpg", "x")
	write(bad, manifestName, "{")
	write(old, manifestName, `{"format":"telemap directory","version":2,"size":1,"chunk_size":4096}`)
	write(huge, manifestName, `{"format":"telemap directory","version":1,"size":9223372036854775807,"chunk_size":4096}`)
	for _, c := range []struct {
		path string
		o    Options
		want string
		is   error
	}{
		{region, Options{Size: 99}, "has 100000 bytes, not 99", nil},
		{region, Options{ChunkSize: 4096}, "have 8192 bytes, not 4096", nil},
		{region, Options{Size: -1}, "negative", nil},
		{t.TempDir(), Options{}, "give a size to create one", backend.ErrNotFound},
		{t.TempDir(), Options{Size: 5, ReadOnly: true}, "give a size", backend.ErrNotFound},
		{t.TempDir(), Options{Size: 5, ChunkSize: 5000}, "power of two", nil},
		{t.TempDir(), Options{Size: 1 << 60}, "choose larger chunks", nil},
		{full, Options{Size: 5}, `holds "photo.jpg"`, nil},
		{bad, Options{}, "manifest.json: unexpected end", nil},
		{old, Options{}, "version is 2", nil},
		{huge, Options{}, "choose larger chunks", nil},
		{filepath.Join(full, "photo.jpg"), Options{Size: 5}, "not a directory", nil},
	} {
		s, err := Open(c.path, c.o)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("Open(%+v) = %v; want %q, %v", c.o, err, c.want, c.is)
		}
	}
}

func TestCreateAfterACrashedCreate(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, tempPrefix+"123"), []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(path, chunksName), 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, path, Options{Size: 5})
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) != 2 {
		t.Errorf("the directory holds %v, %v; want chunks and the manifest", entries, err)
	}
}

func TestStrangeFilesAreIgnored(t *testing.T) {
	path := t.TempDir()
	s := must(t, path, Options{Size: 100_000, ChunkSize: 4096})
	if _, err := s.WriteAt(t.Context(), []byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, name := range []string{"0000000A", "00001000", "00ffffff", "1", "x", "+0000001", "000000001"} {
		if err := os.WriteFile(filepath.Join(path, chunksName, "00000", name), []byte{9}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(path, chunksName, "00001"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = must(t, path, Options{})
	r, err := s.NextData(t.Context(), 0)
	if err != nil || r != (region.Range{Off: 0, Len: 4096}) {
		t.Errorf("NextData(0) = %v, %v; want [0,4096)", r, err)
	}
	if r, err := s.NextData(t.Context(), 4096); err == nil {
		t.Errorf("NextData(4096) = %v; want EOF", r)
	}
}

func TestMissingFileIsAnErrorNotZeros(t *testing.T) {
	path := t.TempDir()
	s := must(t, path, Options{Size: 4096, ChunkSize: 4096})
	if _, err := s.WriteAt(t.Context(), []byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = must(t, path, Options{})
	if err := os.Remove(filepath.Join(path, chunksName, "00000", "00000000")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.ReadAt(t.Context(), make([]byte, 1), 0); n != 0 || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadAt = %d, %v; want 0, %v", n, err, fs.ErrNotExist)
	}
}

// TestOpenFilesAreBounded checks that a file in use is never closed and that
// there are never more than allowed, with more users than files.
func TestOpenFilesAreBounded(t *testing.T) {
	const most, users, chunks = 3, 12, 40
	path := t.TempDir()
	var open, peak atomic.Int64
	fs := newFiles(most,
		func(i region.ChunkIndex, create bool) (*os.File, error) {
			n := open.Add(1)
			for m := peak.Load(); n > m && !peak.CompareAndSwap(m, n); m = peak.Load() {
			}
			return os.OpenFile(filepath.Join(path, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
		},
		func(f *os.File, _ bool) {
			f.Close()
			open.Add(-1)
		})
	var wg sync.WaitGroup
	for u := range uint64(users) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(u, 1))
			for range 300 {
				i := region.ChunkIndex(r.IntN(chunks))
				h, err := fs.use(t.Context(), i, true)
				if err != nil {
					t.Errorf("use(%d) = %v", i, err)
					return
				}
				want := bytes.Repeat([]byte{byte(i)}, 10)
				if _, err := h.f.WriteAt(want, 0); err != nil {
					t.Errorf("write to the file of chunk %d in use: %v", i, err)
				}
				got := make([]byte, 10)
				if _, err := h.f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read of the file of chunk %d in use = %v, %v; want %v", i, got, err, want)
				}
				if err := fs.done(h); err != nil {
					t.Errorf("done(%d) = %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if peak.Load() > most || peak.Load() < 2 {
		t.Errorf("%d files were open at a time; want at most %d", peak.Load(), most)
	}
	if err := fs.closeAll(); err != nil || fs.n != 0 || fs.idle.Len() != 0 || len(fs.open) != 0 {
		t.Errorf("closeAll = %v, leaving %d files, %d idle, %d named; want none", err, fs.n, fs.idle.Len(), len(fs.open))
	}
}

func TestLongestUnusedIsClosedFirst(t *testing.T) {
	path := t.TempDir()
	var evicted []string
	fs := newFiles(2,
		func(i region.ChunkIndex, create bool) (*os.File, error) {
			return os.OpenFile(filepath.Join(path, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
		},
		func(f *os.File, unsynced bool) {
			evicted = append(evicted, fmt.Sprintf("%s %v", filepath.Base(f.Name()), unsynced))
			f.Close()
		})
	for _, i := range []region.ChunkIndex{1, 2, 1, 3, 1, 4} {
		h, err := fs.use(t.Context(), i, true)
		if err != nil {
			t.Fatal(err)
		}
		fs.setUnsynced(h, i == 3)
		fs.done(h)
	}
	if got, want := fmt.Sprint(evicted), "[2 false 3 true]"; got != want {
		t.Errorf("closed %s; want %s", got, want)
	}
	fs.closeAll()
}

func TestWaitingForAFileEndsWithTheContext(t *testing.T) {
	path := t.TempDir()
	fs := newFiles(1,
		func(i region.ChunkIndex, create bool) (*os.File, error) {
			return os.OpenFile(filepath.Join(path, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
		},
		func(f *os.File, _ bool) { f.Close() })
	h, err := fs.use(t.Context(), 1, true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fs.use(ctx, 2, true); !errors.Is(err, context.Canceled) {
		t.Errorf("use = %v; want %v", err, context.Canceled)
	}
	never := func() error { t.Error("removed without being admitted"); return nil }
	if err := fs.remove(ctx, 1, never); !errors.Is(err, context.Canceled) {
		t.Errorf("remove = %v; want %v", err, context.Canceled)
	}
	if err := errors.Join(fs.done(h), fs.closeAll()); err != nil || fs.n != 0 {
		t.Errorf("closing = %v, leaving %d files; want nil, 0", err, fs.n)
	}
}

func TestRemovedFileStaysOpenWhileInUse(t *testing.T) {
	path := t.TempDir()
	fs := newFiles(2,
		func(i region.ChunkIndex, create bool) (*os.File, error) {
			return os.OpenFile(filepath.Join(path, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
		},
		func(f *os.File, _ bool) { f.Close() })
	h, err := fs.use(t.Context(), 1, true)
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if err := fs.remove(t.Context(), 1, func() error { return boom }); err != boom || len(fs.open) != 1 {
		t.Errorf("remove = %v, leaving %d files; want %v, 1", err, len(fs.open), boom)
	}
	if err := fs.remove(t.Context(), 1, func() error { return os.Remove(h.f.Name()) }); err != nil || len(fs.open) != 0 {
		t.Errorf("remove = %v, leaving %d files; want nil, 0", err, len(fs.open))
	}
	if _, err := h.f.WriteAt([]byte{1}, 0); err != nil {
		t.Errorf("write to a removed file in use: %v", err)
	}
	again, err := fs.use(t.Context(), 1, true)
	if err != nil || again == h {
		t.Errorf("use of a removed file = the same, %v; want a new one", err)
	}
	if err := errors.Join(fs.done(h), fs.done(again), fs.closeAll()); err != nil || fs.n != 0 {
		t.Errorf("closing = %v, leaving %d files; want nil, 0", err, fs.n)
	}
}

// TestReadersWritersAndErasers makes files come and go under many users of few
// handles. Each owns some chunks and knows what they hold.
func TestReadersWritersAndErasers(t *testing.T) {
	const owners, each, chunk = 6, 5, 4096
	s := must(t, t.TempDir(), Options{Size: owners * each * chunk, ChunkSize: chunk, MaxOpenFiles: 3})
	var wg sync.WaitGroup
	for o := range int64(owners) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(o), 2))
			var model [each]byte
			for k := range 200 {
				c := r.Int64N(each)
				off := (c*owners + o) * chunk
				switch r.IntN(4) {
				case 0:
					if err := s.Zero(t.Context(), off, chunk); err != nil {
						t.Errorf("Zero = %v", err)
					}
					model[c] = 0
				case 1:
					model[c] = byte(1 + k)
					if _, err := s.WriteAt(t.Context(), []byte{model[c]}, off+100); err != nil {
						t.Errorf("WriteAt = %v", err)
					}
				case 2:
					if k%20 == 0 {
						if err := s.Sync(t.Context()); err != nil {
							t.Errorf("Sync = %v", err)
						}
					}
				}
				p := make([]byte, 200)
				if err := backend.ReadFull(t.Context(), s, p, off); err != nil || p[100] != model[c] || p[99] != 0 {
					t.Errorf("ReadAt(%d) = %d, %v; want %d", off+100, p[100], err, model[c])
				}
				// Others' chunks are read too, so that handles are shared.
				if err := backend.ReadFull(t.Context(), s, p, r.Int64N(s.Size()-200)); err != nil {
					t.Errorf("ReadAt = %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestFailedSyncStaysFailed(t *testing.T) {
	boom := errors.New("boom")
	c := &chunks{syncing: make(chan struct{}, 1), dirty: region.NewBitmap(1), dirs: region.NewBitmap(1)}
	c.failed.Store(&boom) // as evict does
	for range 2 {
		if err := c.Sync(t.Context()); !errors.Is(err, boom) {
			t.Errorf("Sync = %v; want %v", err, boom)
		}
	}
}

func TestEvictedErrorReachesSync(t *testing.T) {
	r, w, err := os.Pipe() // cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := &chunks{syncing: make(chan struct{}, 1), dirty: region.NewBitmap(1), dirs: region.NewBitmap(1)}
	c.evict(w, true)
	if err := c.Sync(t.Context()); err == nil {
		t.Error("Sync = nil after a file could not be synced before it was closed")
	}
}

func TestCancelledSyncLeavesTheRestForLater(t *testing.T) {
	g, err := region.NewGeometry(100*4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newChunks(t.TempDir(), g, Options{MaxOpenFiles: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range g.Chunks() {
		if err := c.WriteChunk(t.Context(), i, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Sync(ctx); !errors.Is(err, context.Canceled) || c.dirty.Count() != 100 {
		t.Errorf("Sync = %v, leaving %d files dirty; want %v, 100", err, c.dirty.Count(), context.Canceled)
	}
	if err := c.Sync(t.Context()); err != nil || c.dirty.Count() != 0 || c.dirs.Count() != 0 {
		t.Errorf("Sync = %v, leaving %d files and %d directories dirty; want none", err, c.dirty.Count(), c.dirs.Count())
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"format":"telemap directory","version":1,"size":100,"chunk_size":4096}`))
	f.Add([]byte(`{"format":"telemap directory","version":1,"size":-1,"chunk_size":0}`))
	f.Add([]byte(`{"size":1e400}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, g, err := decode(b)
		if err != nil {
			return
		}
		if g.Size() != m.Size || g.ChunkSize() != m.ChunkSize || g.Size() < 1 || g.Chunks() > maxChunks {
			t.Fatalf("decode(%q) = %+v, %d chunks of %d", b, m, g.Chunks(), g.ChunkSize())
		}
		again, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if m2, _, err := decode(again); err != nil || m2 != m {
			t.Fatalf("decode(encode(%+v)) = %+v, %v", m, m2, err)
		}
	})
}
