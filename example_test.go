package telemap_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/mount"
	"github.com/telemap/telemap/pager"
	"github.com/telemap/telemap/region"
)

// A program that serves bytes of its own and mounts them. The reader may as well
// be another program on another host.
//
// It reads the file with read(2): a process must not map a file that it serves
// itself.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	text := strings.NewReader("hello from the other side\n")
	l, err := telemap.Listen(ctx, "tcp://127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go l.Serve(ctx, telemap.Export("hello", backend.FromReaderAt(text, text.Size())))
	m, err := telemap.Mount(ctx, l.URL("hello"), "./hello", mount.Options{ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	got, err := os.ReadFile("./hello") // any program can, now
	fmt.Printf("%s%v\n", got, errors.Join(err, m.Close(ctx)))
}

// Example has no Output because it needs FUSE; this runs it where that is to be
// had.
func TestExample(t *testing.T) {
	testkit.NeedFUSE(t)
	t.Chdir(t.TempDir())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stdout := os.Stdout
	os.Stdout = w
	Example()
	os.Stdout = stdout
	w.Close()
	got, err := io.ReadAll(r)
	if want := "hello from the other side\n<nil>\n"; string(got) != want || err != nil {
		t.Errorf("Example printed %q, %v; want %q", got, err, want)
	}
}

func ExampleOpen() {
	ctx := context.Background()
	b, err := telemap.Open(ctx, "mem:1MiB")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	if _, err := b.WriteAt(ctx, []byte("abc"), b.Size()-3); err != nil {
		log.Fatal(err)
	}
	p := []byte("xxxxxx")
	n, err := b.ReadAt(ctx, p, b.Size()-6) // never written reads as zero
	fmt.Printf("%d of %d bytes: %q, %v\n", n, b.Size(), p, err)
	n, err = b.ReadAt(ctx, p, b.Size()-3)
	fmt.Printf("%q, %v\n", p[:n], err)
	// Output:
	// 6 of 1048576 bytes: "\x00\x00\x00abc", <nil>
	// "abc", EOF
}

// A backend is served over loopback; a pager keeps a local copy of it, fetches
// what is touched and writes back.
func ExampleListen() {
	ctx, stop := context.WithCancel(context.Background())
	storage, err := telemap.Open(ctx, "mem:1MiB")
	if err != nil {
		log.Fatal(err)
	}
	l, err := telemap.Listen(ctx, "tcp://127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx, telemap.Export("disk", storage)) }()

	remote, err := telemap.Open(ctx, l.URL("disk"))
	if err != nil {
		log.Fatal(err)
	}
	p, err := pager.Open(ctx, remote, pager.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := p.WriteAt(ctx, []byte("written here"), 4096); err != nil {
		log.Fatal(err)
	}
	if err := p.Sync(ctx); err != nil { // durable over there
		log.Fatal(err)
	}
	there := make([]byte, 12)
	if _, err := storage.ReadAt(ctx, there, 4096); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, found there\n", there)

	fmt.Println(errors.Join(p.Close(ctx), remote.Close()))
	stop()
	fmt.Println(errors.Join(<-served, storage.Close()))
	// Output:
	// written here, found there
	// <nil>
	// <nil>
}

// Programs add schemes of their own.
func ExampleOpener_Open() {
	ctx := context.Background()
	o := telemap.Opener{Schemes: map[string]telemap.OpenFunc{
		"text": func(_ context.Context, u *url.URL, _ telemap.Opener) (backend.Backend, error) {
			return backend.FromReaderAt(strings.NewReader(u.Opaque), int64(len(u.Opaque))), nil
		},
	}}
	b, err := o.Open(ctx, "text:hello")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	all, err := io.ReadAll(io.NewSectionReader(backend.ReaderAt(ctx, b), 0, b.Size()))
	fmt.Printf("%s %v\n", all, err)

	_, err = o.Open(ctx, "txt:hello")
	fmt.Println(errors.Is(err, telemap.ErrUnknownScheme))
	// Output:
	// hello <nil>
	// true
}

// Hooks tell a program when bytes have become local, and give it a last chance
// to write before they are synced. [mount.Options] has them too.
func Example_hooks() {
	ctx := context.Background()
	local := make(chan region.Range, 1)
	var p *pager.Pager
	p, err := pager.Open(ctx, backend.FromReadWriterAt(make(buffer, 128<<10), 128<<10), pager.Options{
		Pull: pager.PullOptions{Off: true},
		Push: pager.PushOptions{Off: true},
		Hooks: pager.Hooks{
			// Readers of the chunk do not wait for this hook.
			ChunkLocal: func(r region.Range) { local <- r },
			BeforeSync: func(ctx context.Context) error {
				fmt.Println("before sync")
				if p.Stats().WrittenBytes > 0 {
					return nil // written already, and Close syncs once more
				}
				_, err := p.WriteAt(ctx, []byte("version 7"), 0)
				return err
			},
			BeforeClose: func(context.Context) error {
				fmt.Println("before close")
				return nil
			},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := p.Ensure(ctx, 0, 1); err != nil {
		log.Fatal(err)
	}
	fmt.Println("local", <-local)
	if err := p.Sync(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.Stats().PushedBytes, "bytes pushed")
	fmt.Println(p.Close(ctx))
	// Output:
	// local [0,65536)
	// before sync
	// 65536 bytes pushed
	// before close
	// before sync
	// <nil>
}

// What programs for go-nbd and r3map implement becomes a backend by one call, and
// a backend becomes that.
func Example_adapters() {
	ctx := context.Background()
	b, err := backend.FromPlain(make(buffer, 4096))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	plain := backend.ToPlain(ctx, b)
	if _, err := plain.WriteAt([]byte("plain"), 100); err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 5)
	n, err := b.ReadAt(ctx, p, 100)
	fmt.Printf("%q %v\n", p[:n], err)
	// Output:
	// "plain" <nil>
}

// A server that other hosts can reach insists on knowing them.
func ExampleServer_Listen() {
	_, err := telemap.Server{}.Listen(context.Background(), "tcp://0.0.0.0:0")
	fmt.Println(errors.Is(err, telemap.ErrInsecure))
	// Output:
	// true
}

func ExampleParseSize() {
	for _, s := range []string{"4096", "64KiB", "1.5GiB", "10MB", "ten"} {
		n, err := telemap.ParseSize(s)
		fmt.Println(n, err)
	}
	// Output:
	// 4096 <nil>
	// 65536 <nil>
	// 1610612736 <nil>
	// 10000000 <nil>
	// 0 size "ten": write bytes as 4096, 64KiB or 1.5GiB
}

func ExampleRedact() {
	fmt.Println(telemap.Redact("tcp://user:secret@host:7070/disk?token=abc"))
	// Output:
	// tcp://host:7070/disk?token=xxxxx
}

// A buffer is memory as somebody else's interface has it.
type buffer []byte

func (b buffer) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(b).ReadAt(p, off) }

func (b buffer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(b)) {
		return 0, io.ErrShortWrite
	}
	return copy(b[off:], p), nil
}

func (b buffer) Size() (int64, error) { return int64(len(b)), nil }
func (b buffer) Sync() error          { return nil }
