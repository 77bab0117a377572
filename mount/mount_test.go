package mount_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/mount"
	"github.com/telemap/telemap/pager"
	"github.com/telemap/telemap/view/file"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const size = 1<<20 + 4321

// watched is memory that knows whether it was closed and what was synced.
type watched struct {
	*mem.Store
	mu     sync.Mutex
	synced []byte
	closed bool
	full   atomic.Bool // Sync fails
}

func newWatched(t *testing.T) *watched {
	w := &watched{Store: mem.New(size)}
	p := make([]byte, size)
	testkit.Pattern(p, 0, 1)
	if _, err := w.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	w.synced = p
	return w
}

func (w *watched) Sync(ctx context.Context) error {
	if w.full.Load() {
		return backend.ErrNoSpace
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return backend.ReadFull(ctx, w.Store, w.synced, 0)
}

// durable is what the last Sync found.
func (w *watched) durable() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.synced)
}

func (w *watched) Close() error { w.closed = true; return w.Store.Close() }

func open(t *testing.T, b backend.Backend, o mount.Options) *mount.Mount {
	t.Helper()
	testkit.NeedFUSE(t)
	m, err := mount.Open(t.Context(), b, filepath.Join(t.TempDir(), "disk"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		m.Detach(ctx)
	})
	return m
}

func TestReadWriteSyncClose(t *testing.T) {
	for name, o := range map[string]mount.Options{
		"managed": {},
		"lazy":    {Pager: pager.Options{Pull: pager.PullOptions{Off: true}, ChunkSize: 4096}},
		"cached":  {Pager: pager.Options{Dir: t.TempDir()}},
		"direct":  {Direct: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newWatched(t)
			want := b.durable()
			m := open(t, b, o)
			got, err := os.ReadFile(m.Path())
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("ReadFile: %v, right bytes: %v", err, bytes.Equal(got, want))
			}
			f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{0, 4095, 70_000, size - 3} {
				copy(want[off:], "new")
				if _, err := f.WriteAt([]byte("new"), off); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.durable(), want) {
				t.Error("after Sync the backend differs")
			}
			copy(want[100:], "last")
			if _, err := f.WriteAt([]byte("last"), 100); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(t.Context()); !errors.Is(err, file.ErrBusy) {
				t.Fatalf("Close with the file open = %v; want ErrBusy", err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.durable(), want) || !b.closed {
				t.Errorf("after Close the backend differs or is open (closed: %v)", b.closed)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Errorf("second Close = %v", err)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	for _, direct := range []bool{false, true} {
		m := open(t, newWatched(t), mount.Options{ReadOnly: true, Direct: direct})
		if f, err := os.OpenFile(m.Path(), os.O_RDWR, 0); err == nil {
			f.Close()
			t.Errorf("direct %v: a read-only mount was opened for writing", direct)
		}
		if _, err := os.ReadFile(m.Path()); err != nil {
			t.Error(err)
		}
	}
}

func TestSyncErrorReachesTheProgramAndClose(t *testing.T) {
	for _, direct := range []bool{false, true} {
		b := newWatched(t)
		m := open(t, b, mount.Options{Direct: direct})
		f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		b.full.Store(true)
		if err := f.Sync(); err == nil {
			t.Errorf("direct %v: fsync succeeded though the backend failed", direct)
		}
		if err := m.Sync(t.Context()); err == nil {
			t.Errorf("direct %v: Sync succeeded though the backend failed", direct)
		}
		if err := f.Close(); err != nil {
			t.Log("close:", err)
		}
		if err := m.Close(t.Context()); err == nil {
			t.Errorf("direct %v: Close succeeded though the last Sync failed", direct)
		}
		if !b.closed {
			t.Errorf("direct %v: the backend is still open", direct)
		}
	}
}

func TestDetachWaitsForUsers(t *testing.T) {
	b := newWatched(t)
	m := open(t, b, mount.Options{})
	f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Detach(context.Background()) }()
	for { // until the file has left the tree; what it was mounted on is empty
		if st, err := os.Stat(m.Path()); err != nil || st.Size() != size {
			break
		}
	}
	if _, err := f.WriteAt([]byte("late"), 10); err != nil {
		t.Errorf("a write by whoever has the file open: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("Detach returned with the file open: %v", err)
	default:
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if string(b.durable()[10:14]) != "late" {
		t.Error("a write before the last close is lost")
	}
}

func TestHooksOfADirectMount(t *testing.T) {
	var calls []string
	m := open(t, newWatched(t), mount.Options{Direct: true, Pager: pager.Options{Hooks: pager.Hooks{
		BeforeSync:  func(context.Context) error { calls = append(calls, "sync"); return nil },
		BeforeClose: func(context.Context) error { calls = append(calls, "close"); return errors.New("refused") },
	}}})
	if err := m.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Close(t.Context()); err == nil {
		t.Error("Close lost the hook's error")
	}
	if len(calls) != 2 {
		t.Errorf("hooks ran %q; want sync and close", calls)
	}
}

func TestOpenFailsCleanly(t *testing.T) {
	b := newWatched(t)
	for name, open := range map[string]func() (*mount.Mount, error){
		"no parent": func() (*mount.Mount, error) {
			return mount.Open(t.Context(), b, "/nonexistent/telemap/disk", mount.Options{})
		},
		"chunk": func() (*mount.Mount, error) {
			return mount.Open(t.Context(), b, t.TempDir(), mount.Options{Pager: pager.Options{ChunkSize: 3}})
		},
	} {
		if _, err := open(); err == nil {
			t.Errorf("%s: Open succeeded", name)
		}
		if b.closed {
			t.Errorf("%s: a failed Open closed the backend", name)
		}
	}
}
