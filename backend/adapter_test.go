package backend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestFromReaderAtConformance(t *testing.T) {
	backendtest.Suite{ReadOnly: func(t *testing.T, content []byte) backend.Backend {
		return backend.FromReaderAt(bytes.NewReader(content), int64(len(content)))
	}}.Run(t)
}

func TestFromReadWriterAtConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		return backend.FromReadWriterAt(f, size)
	})
}

// careless is a Plain as they are found: it leaves the buffer alone where
// nothing was written, and returns less than it was asked for without an error.
type careless struct {
	mu      sync.Mutex
	data    []byte
	written []bool
	synced  int
	sizeErr error
}

func (c *careless) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p = p[:min(len(p), 1000, len(c.data)-int(off))]
	for i := range p {
		if c.written[off+int64(i)] {
			p[i] = c.data[off+int64(i)]
		}
	}
	return len(p), nil
}

func (c *careless) WriteAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p = p[:min(len(p), 700)]
	copy(c.data[off:], p)
	for i := range p {
		c.written[off+int64(i)] = true
	}
	return len(p), nil
}

func (c *careless) Size() (int64, error) { return int64(len(c.data)), c.sizeErr }
func (c *careless) Sync() error          { c.synced++; return nil }

func newCareless(size int64) *careless {
	return &careless{data: make([]byte, size), written: make([]bool, size)}
}

func TestFromPlainConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend {
		b, err := backend.FromPlain(newCareless(size))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestThereAndBackAgainConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend {
		b, err := backend.FromPlain(backend.ToPlain(t.Context(), mem.New(size)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

func TestFromPlainSyncsAndAsksSize(t *testing.T) {
	c := newCareless(10)
	b, err := backend.FromPlain(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(t.Context()); err != nil || c.synced != 1 {
		t.Errorf("Sync = %v, reaching the other side %d times; want nil, once", err, c.synced)
	}
	c.sizeErr = io.ErrClosedPipe
	if _, err := backend.FromPlain(c); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("FromPlain = %v; want %v", err, io.ErrClosedPipe)
	}
	if _, err := backend.FromPlain(newCareless(0)); err == nil {
		t.Error("FromPlain of nothing = nil; want an error")
	}
}

type readFunc func(p []byte, off int64) (int, error)

func (f readFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestFromReaderAtWithStrangeReaders(t *testing.T) {
	for _, c := range []struct {
		name  string
		r     readFunc
		wantN int
		want  error
	}{
		{"ends early", func(p []byte, off int64) (int, error) { return copy(p, "abc"[min(off, 3):]), io.EOF }, 3, io.ErrUnexpectedEOF},
		{"one byte at a time", func(p []byte, off int64) (int, error) { p[0] = 'x'; return 1, nil }, 10, nil},
		{"EOF with the last byte", func(p []byte, off int64) (int, error) { return len(p), io.EOF }, 10, nil},
		{"makes no progress", func(p []byte, off int64) (int, error) { return 0, nil }, 0, io.ErrNoProgress},
		{"counts below zero", func(p []byte, off int64) (int, error) { return -1, nil }, 0, nil},
		{"counts too much", func(p []byte, off int64) (int, error) { return len(p) + 1, nil }, 0, nil},
		{"fails", func(p []byte, off int64) (int, error) { return 2, io.ErrClosedPipe }, 2, io.ErrClosedPipe},
	} {
		b := backend.FromReaderAt(c.r, 100)
		n, err := b.ReadAt(t.Context(), make([]byte, 10), 0)
		if n != c.wantN || (err == nil) != (n == 10) || c.want != nil && !errors.Is(err, c.want) || errors.Is(err, io.EOF) {
			t.Errorf("%s: ReadAt = %d, %v; want %d, %v", c.name, n, err, c.wantN, c.want)
		}
	}
}

func TestSectionReader(t *testing.T) {
	content := make([]byte, 10_001)
	testkit.Pattern(content, 0, 1)
	b := mem.New(int64(len(content)))
	defer b.Close()
	if _, err := io.Copy(io.NewOffsetWriter(backend.WriterAt(t.Context(), b), 0), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(backend.ReaderAt(t.Context(), b), 0, b.Size()), content); err != nil {
		t.Error(err)
	}
}

func ExampleFromReaderAt() {
	b := backend.FromReaderAt(strings.NewReader("hello, world"), 12)
	defer b.Close()
	p := make([]byte, 5)
	n, err := b.ReadAt(context.Background(), p, 7)
	fmt.Println(n, err, string(p))
	_, err = b.WriteAt(context.Background(), p, 0)
	fmt.Println(errors.Is(err, backend.ErrReadOnly))
	// Output:
	// 5 <nil> world
	// true
}

func ExampleReaderAt() {
	ctx := context.Background()
	b := mem.New(1 << 40) // a terabyte of zeros
	defer b.Close()
	fmt.Fprint(io.NewOffsetWriter(backend.WriterAt(ctx, b), 1<<39), "half-way")
	text, err := io.ReadAll(io.NewSectionReader(backend.ReaderAt(ctx, b), 1<<39, 8))
	fmt.Println(string(text), err)
	// Output: half-way <nil>
}

func ExampleZero() {
	ctx := context.Background()
	b := mem.New(8)
	defer b.Close()
	b.WriteAt(ctx, []byte("abcdefgh"), 0)
	if err := backend.Zero(ctx, b, 2, 4); err != nil {
		fmt.Println(err)
	}
	p := make([]byte, 8)
	err := backend.ReadFull(ctx, b, p, 0)
	fmt.Printf("%q %v\n", p, err)
	// Output: "ab\x00\x00\x00\x00gh" <nil>
}
