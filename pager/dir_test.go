//go:build linux

package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
)

func dirOptions(dir string) Options {
	o := quiet
	o.Dir, o.Name = dir, "test region"
	return o
}

func TestDirtyChunksSurviveAnAbort(t *testing.T) {
	b := newStub(20*4096 + 7)
	dir := t.TempDir()
	p, err := Open(t.Context(), b, dirOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ensure(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	write(t, p, 5000, []byte("kept"))
	write(t, p, b.Size()-3, []byte("end"))
	if err := p.abort(); err != nil { // as if the process had died
		t.Fatal(err)
	}
	// Meanwhile the backend changes where nothing was written here.
	b.mem[10*4096] = 0xAB
	p = open(t, b, dirOptions(dir))
	if s := p.Stats(); s.Dirty != 2 || s.Local != 2 {
		t.Errorf("after reopening %d chunks are dirty and %d local; want 2 and 2", s.Dirty, s.Local)
	}
	want := b.bytes()
	copy(want[5000:], "kept")
	copy(want[b.Size()-3:], "end")
	if !bytes.Equal(readBack(t, p), want) {
		t.Error("reopened bytes differ: writes must be kept, what was only read must be fetched anew")
	}
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.synced, want) {
		t.Error("the backend lacks what was written before the abort")
	}
	p = open(t, b, dirOptions(dir))
	if s := p.Stats(); s.Dirty != 0 {
		t.Errorf("after a clean close %d chunks are dirty", s.Dirty)
	}
}

// A chunk that was pushed but not synced is not durable: a crash of both sides
// must not lose it.
func TestPushedButUnsyncedChunksAreDirtyAfterACrash(t *testing.T) {
	b := newStub(4 * 4096)
	dir := t.TempDir()
	p, err := Open(t.Context(), b, dirOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	write(t, p, 100, []byte("pushed"))
	if err := p.pushAll(t.Context(), p.dirty); err != nil {
		t.Fatal(err)
	}
	if p.Stats().Dirty != 0 {
		t.Fatal("the push left the chunk dirty")
	}
	if err := p.abort(); err != nil {
		t.Fatal(err)
	}
	copy(b.mem, b.synced) // the backend's host loses power
	p = open(t, b, dirOptions(dir))
	if err := p.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := string(b.synced[100:106]); got != "pushed" {
		t.Errorf("after both sides crashed the backend has %q; want %q", got, "pushed")
	}
}

func TestDirIsRefused(t *testing.T) {
	size := int64(10 * 4096)
	fresh := func(t *testing.T) string {
		dir := t.TempDir()
		p := open(t, newStub(size), dirOptions(dir))
		write(t, p, 0, []byte("x"))
		if err := p.abort(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	patch := func(name string, off int64, b ...byte) func(string) error {
		return func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(b, off)
			return errors.Join(err, f.Close())
		}
	}
	for name, c := range map[string]struct {
		spoil func(dir string) error
		o     func(*Options)
		size  int64
		want  string
	}{
		"another region":   {o: func(o *Options) { o.Name = "other" }, want: `it holds "test region", not "other"`},
		"another size":     {size: size + 1, want: "it holds 40960 bytes, the region has 40961"},
		"another chunk":    {o: func(o *Options) { o.ChunkSize = 8192 }, want: "chunks have 4096 bytes, not 8192"},
		"damaged header":   {spoil: patch("state", 40, 1), want: "checksum"},
		"not ours":         {spoil: patch("state", 0, 'X'), want: "not one of telemap's"},
		"truncated state":  {spoil: func(d string) error { return os.Truncate(filepath.Join(d, "state"), 100) }, want: "too short"},
		"truncated bitmap": {spoil: func(d string) error { return os.Truncate(filepath.Join(d, "state"), 4097) }, want: "damaged"},
		"truncated data":   {spoil: func(d string) error { return os.Truncate(filepath.Join(d, "data"), 100) }, want: "100 bytes"},
		"no data":          {spoil: func(d string) error { return os.Remove(filepath.Join(d, "data")) }, want: "gone"},
		"no state":         {spoil: func(d string) error { return os.Remove(filepath.Join(d, "state")) }, want: "no state"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := fresh(t)
			if c.spoil != nil {
				if err := c.spoil(dir); err != nil {
					t.Fatal(err)
				}
			}
			before := contents(t, dir)
			o := dirOptions(dir)
			if c.o != nil {
				c.o(&o)
			}
			if c.size == 0 {
				c.size = size
			}
			_, err := Open(t.Context(), newStub(c.size), o)
			if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open = %v; want ErrForeign naming the directory and %q", err, c.want)
			}
			if after := contents(t, dir); after != before {
				t.Errorf("a refused Open changed the directory from %s to %s", before, after)
			}
		})
	}
	t.Run("in use", func(t *testing.T) {
		dir := t.TempDir()
		open(t, newStub(size), dirOptions(dir))
		if _, err := Open(t.Context(), newStub(size), dirOptions(dir)); !errors.Is(err, ErrBusy) {
			t.Errorf("Open of a directory in use = %v; want ErrBusy", err)
		}
	})
	t.Run("unpushed writes, read-only", func(t *testing.T) {
		o := dirOptions(fresh(t))
		o.ReadOnly = true
		if _, err := Open(t.Context(), newStub(size), o); err == nil || !strings.Contains(err.Error(), "mount it writable") {
			t.Errorf("Open = %v; want advice to mount it writable", err)
		}
	})
}

func contents(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{"state", "data"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		fmt.Fprintf(&all, "%s %d %x %v;", name, len(b), crcOf(b), err != nil)
	}
	return all.String()
}

func crcOf(b []byte) []byte {
	sum := make([]byte, 8)
	for i, c := range b {
		sum[i%8] = sum[i%8]*31 + c
	}
	return sum
}

func TestFullDiskIsAClearErrorAndLosesNothing(t *testing.T) {
	dir := t.TempDir()
	err := unix.Mount("telemap-test", dir, "tmpfs", 0, "size=256k")
	testkit.Need(t, "root", err)
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	b := newStub(1 << 20)
	want := b.bytes()
	p, err := Open(t.Context(), b, dirOptions(filepath.Join(dir, "cache")))
	if err != nil {
		t.Fatal(err)
	}
	var full error
	for off := int64(0); off < b.Size() && full == nil; off += 4096 {
		buf := bytes.Repeat([]byte{byte(off >> 12)}, 4096)
		n, err := p.WriteAt(t.Context(), buf, off)
		copy(want[off:], buf[:n])
		full = err
	}
	if !errors.Is(full, region.ErrNoSpace) || !strings.Contains(full.Error(), "another cache directory") {
		t.Fatalf("writing to a full cache: %v; want ErrNoSpace with advice", full)
	}
	if err := p.Sync(t.Context()); err != nil {
		t.Fatalf("Sync with a full cache: %v", err)
	}
	if !bytes.Equal(b.bytes(), want) {
		t.Error("what was acknowledged before the disk was full is not in the backend")
	}
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestKill runs a child that writes to a file-backed region through a cache
// directory and tells what was acknowledged, kills it at a random moment, and
// checks what a reopened pager finds.
func TestKill(t *testing.T) {
	if dir := os.Getenv("TELEMAP_TEST_KILL"); dir != "" {
		killChild(dir)
		return
	}
	rounds := 12
	if os.Getenv("TELEMAP_SOAK") != "" {
		rounds = 500
	}
	if testing.Short() {
		rounds = 3
	}
	r := testkit.Rand(t)
	for range rounds {
		killOnce(t, r)
	}
}

const (
	killChunks = 16
	killSize   = killChunks*4096 - 100
)

// killChild writes chunk after chunk, each whole and filled with one counter, and
// prints "chunk counter" once the write has returned. Now and then it syncs and
// prints "synced".
func killChild(dir string) {
	b, err := openFileBackend(filepath.Join(dir, "remote"))
	if err != nil {
		panic(err)
	}
	o := dirOptions(filepath.Join(dir, "cache"))
	o.Push = PushOptions{Interval: 1, Workers: 2}
	p, err := Open(context.Background(), b, o)
	if err != nil {
		panic(err)
	}
	for n := uint64(1); ; n++ {
		i := region.ChunkIndex(rand.IntN(killChunks))
		c := p.geo.Range(i)
		fmt.Printf("begin %d %d\n", i, n)
		if _, err := p.WriteAt(context.Background(), counterChunk(n, c.Len), c.Off); err != nil {
			panic(err)
		}
		fmt.Printf("wrote %d %d\n", i, n)
		if n%50 == 0 {
			if err := p.Sync(context.Background()); err != nil {
				panic(err)
			}
		}
	}
}

func counterChunk(n uint64, size int64) []byte {
	b := make([]byte, size+8)
	for i := 0; i < len(b)-7; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], n)
	}
	return b[:size]
}

func killOnce(t *testing.T, r *rand.Rand) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "remote"), make([]byte, killSize), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), "TELEMAP_TEST_KILL="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The moment is counted in lines of output, not in time.
	after := 20 + r.IntN(2000)
	var log []byte
	buf := make([]byte, 4096)
	killed := false
	for {
		n, err := out.Read(buf)
		log = append(log, buf[:n]...)
		if !killed && bytes.Count(log, []byte{'\n'}) >= after {
			killed = true
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	_ = cmd.Wait() // killed
	if !killed {
		t.Fatalf("the child ended by itself: %s", log)
	}
	acked, begun := make([]uint64, killChunks), make([]uint64, killChunks)
	for line := range strings.Lines(string(log)) {
		f := strings.Fields(line)
		if len(f) != 3 || !strings.HasSuffix(line, "\n") {
			continue // cut off by the kill
		}
		i, _ := strconv.Atoi(f[1])
		n, _ := strconv.ParseUint(f[2], 10, 64)
		if f[0] == "wrote" {
			acked[i] = n
		} else {
			begun[i] = n
		}
	}
	b, err := openFileBackend(filepath.Join(dir, "remote"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := open(t, b, dirOptions(filepath.Join(dir, "cache")))
	if err := p.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := readBack(t, p)
	remote, err := os.ReadFile(filepath.Join(dir, "remote"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, remote) {
		t.Fatal("after a Sync the backend differs from the pager")
	}
	for i := range acked {
		c := p.geo.Range(region.ChunkIndex(i))
		mem := got[c.Off:c.End()]
		switch {
		case bytes.Equal(mem, counterChunk(acked[i], c.Len)):
		case begun[i] > acked[i]:
			// The write that the kill cut off may have happened in part: each of
			// its words is old or new.
			for k := 0; k+8 <= len(mem); k += 8 {
				if n := binary.LittleEndian.Uint64(mem[k:]); n != acked[i] && n != begun[i] {
					t.Fatalf("chunk %d word %d holds %d; want %d or %d", i, k/8, n, acked[i], begun[i])
				}
			}
		default:
			t.Fatalf("chunk %d holds %d; want %d, which was acknowledged", i, binary.LittleEndian.Uint64(mem), acked[i])
		}
	}
}

// fileBackend is a backend in a file, so that a killed child leaves it behind.
type fileBackend struct {
	*os.File
	size int64
}

func openFileBackend(path string) (backend.Backend, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &fileBackend{f, st.Size()}, nil
}

func (f *fileBackend) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err == io.EOF && n == len(p) {
		err = nil
	}
	return n, err
}

func (f *fileBackend) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	return f.File.WriteAt(p, off)
}
func (f *fileBackend) Sync(context.Context) error { return f.File.Sync() }
func (f *fileBackend) Size() int64                { return f.size }

// FuzzHeader checks that no state file can crash an Open, and that what passes
// the check is what would be written.
func FuzzHeader(f *testing.F) {
	g, err := region.NewGeometry(12345, 4096)
	if err != nil {
		f.Fatal(err)
	}
	good, err := encodeHeader("name", g)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:100])
	f.Add(bytes.Repeat([]byte{0xFF}, stateHeader))
	f.Fuzz(func(t *testing.T, page []byte) {
		if checkHeader(page, "name", g) == nil && !bytes.Equal(page[:stateHeader], good) {
			t.Error("a header that differs was accepted")
		}
	})
}
