package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/backend/remote"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/inproc"
	"github.com/telemap/telemap/transport/tcp"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// transports are ways to a catalog.
var transports = map[string]func(t *testing.T, c transport.Catalog) transport.Session{
	"inproc": func(_ *testing.T, c transport.Catalog) transport.Session { return inproc.New(c) },
	"tcp": func(t *testing.T, c transport.Catalog) transport.Session {
		s, err := tcp.Dial(t.Context(), serve(t, c), tcp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	},
}

// serve offers c by TCP until the test ends.
func serve(t *testing.T, c transport.Catalog) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tcp.NewServer(c, tcp.ServerOptions{}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func open(t *testing.T, s transport.Session) *remote.Backend {
	t.Helper()
	b, err := remote.Open(t.Context(), s, "", "the other host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// plain hides the abilities of a backend.
type plain struct{ backend.Backend }

func TestConformance(t *testing.T) {
	for name, dial := range transports {
		for _, able := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/able=%v", name, able), func(t *testing.T) {
				backendtest.Suite{
					Ops: 40,
					Open: func(t *testing.T, size int64) backend.Backend {
						var b backend.Backend = mem.New(size)
						t.Cleanup(func() { b.Close() })
						if !able {
							b = plain{b}
						}
						return open(t, dial(t, transport.Exports{remote.Export("r", b)}))
					},
					ReadOnly: func(t *testing.T, content []byte) backend.Backend {
						b := mem.New(int64(len(content)))
						t.Cleanup(func() { b.Close() })
						if _, err := b.WriteAt(t.Context(), content, 0); err != nil {
							t.Fatal(err)
						}
						x := remote.Export("r", b)
						x.Info.ReadOnly = true
						return open(t, dial(t, transport.Exports{x}))
					},
				}.Run(t)
			})
		}
	}
}

func TestErrorsAreWrappedOnce(t *testing.T) {
	for name, dial := range transports {
		t.Run(name, func(t *testing.T) {
			s := dial(t, transport.Exports{remote.Export("r", mem.New(5000))})
			_, err := remote.Open(t.Context(), s, "nobody", "the other host")
			wrapped(t, err, "open", backend.ErrNotFound)
			b := open(t, s)
			_, err = b.WriteAt(t.Context(), make([]byte, 10), 4995)
			if op := wrapped(t, err, "write", backend.ErrOutOfRange); op != nil && (op.Off != 4995 || op.Len != 10) {
				t.Errorf("the error says [%d,%d)", op.Off, op.Off+op.Len)
			}
			_, err = b.ReadAt(t.Context(), make([]byte, 10), 5001)
			wrapped(t, err, "read", backend.ErrOutOfRange)
			wrapped(t, b.Zero(t.Context(), -1, 5), "zero", backend.ErrOutOfRange)
			wrapped(t, b.Discard(t.Context(), 0, -5), "discard", backend.ErrOutOfRange)
			wrapped(t, b.ReadVec(t.Context(), []backend.Vec{{P: make([]byte, 1), Off: 5000}}), "read", backend.ErrOutOfRange)
			_, err = b.NextData(t.Context(), -1)
			wrapped(t, err, "find data of", backend.ErrOutOfRange)
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			wrapped(t, b.Sync(t.Context()), "sync", backend.ErrClosed)
			if _, err := s.List(t.Context()); !errors.Is(err, backend.ErrClosed) {
				t.Errorf("List of the session after the backend's Close = %v; want %v", err, backend.ErrClosed)
			}
		})
	}
}

// wrapped wants one OpError, with the name that the user gave, around what is.
func wrapped(t *testing.T, err error, op string, is error) *backend.OpError {
	t.Helper()
	var outer, inner *backend.OpError
	if !errors.As(err, &outer) || outer.Op != op || outer.Name != "the other host" || !errors.Is(err, is) {
		t.Errorf("error %v; want %v of %q, wrapped in an OpError", err, is, op)
		return nil
	}
	if errors.As(outer.Err, &inner) || strings.Count(err.Error(), "the other host") != 1 {
		t.Errorf("error %v is wrapped more than once", err)
	}
	return outer
}

// described says more of itself than its bytes.
type described struct{ backend.Backend }

func (described) ChunkSize() int64 { return 4096 }
func (described) ReadOnly() bool   { return true }

func TestDescriptionTravels(t *testing.T) {
	for name, dial := range transports {
		t.Run(name, func(t *testing.T) {
			b := open(t, dial(t, transport.Exports{remote.Export("r", described{mem.New(5000)})}))
			want := transport.Info{Name: "r", Size: 5000, ReadOnly: true, ChunkSize: 4096}
			if b.Info() != want || !b.ReadOnly() || b.ChunkSize() != 4096 || b.Size() != 5000 {
				t.Errorf("Info() = %+v; want %+v", b.Info(), want)
			}
		})
	}
}

func Example() {
	ctx := context.Background()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	disk := mem.New(1 << 20)
	server := tcp.NewServer(transport.Exports{remote.Export("disk", disk)}, tcp.ServerOptions{})
	go func() { done <- server.Serve(serving, l) }()

	session, err := tcp.Dial(ctx, l.Addr().String(), tcp.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := remote.Open(ctx, session, "disk", "the disk of the other host")
	if err != nil {
		fmt.Println(err)
		return
	}
	b.WriteAt(ctx, []byte("hello"), 4096)
	p := make([]byte, 5)
	disk.ReadAt(ctx, p, 4096)
	fmt.Printf("%s, %d bytes\n", p, b.Size())
	_, err = b.WriteAt(ctx, p, 1<<20)
	fmt.Println(err)

	b.Close()
	stop()
	fmt.Println(<-done)
	// Output:
	// hello, 1048576 bytes
	// write the disk of the other host [1048576,1048581): out of the region's range
	// <nil>
}
