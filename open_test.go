package telemap_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/transport"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// serve offers exports at rawURL until the test ends.
func serve(t *testing.T, rawURL string, exports ...transport.Export) *telemap.Listener {
	t.Helper()
	l, err := telemap.Listen(t.Context(), rawURL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, exports...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

func roundTrip(t *testing.T, b backend.Backend) {
	t.Helper()
	ctx := t.Context()
	want := make([]byte, b.Size())
	testkit.Pattern(want, 0, 7)
	if _, err := b.WriteAt(ctx, want, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, b.Size())
	if err := backend.ReadFull(ctx, b, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("what was written is not what is read")
	}
}

func TestEveryScheme(t *testing.T) {
	const size = 3<<20 + 123
	dir := t.TempDir()
	store := mem.New(size)
	defer store.Close()
	export := telemap.Export("disk", store)
	urls := map[string]string{
		"mem":          "mem:3145851",
		"file":         "file://" + dir + "/a?size=3145851",
		"path":         dir + "/a",
		"dir":          "dir://" + dir + "/d?size=3145851&chunk=64KiB",
		"tcp":          serve(t, "tcp://127.0.0.1:0", export).URL("disk"),
		"tcp, no name": strings.TrimSuffix(serve(t, "tcp://127.0.0.1:0", export).URL("disk"), "disk"),
		"tcp+unix":     serve(t, "tcp+unix:"+dir+"/t", export).URL("disk"),
		"grpc":         serve(t, "grpc://127.0.0.1:0", export).URL("disk"),
		"grpc+unix":    serve(t, "grpc+unix:"+dir+"/g", export).URL("disk"),
		"r3map":        strings.Replace(serve(t, "grpc://127.0.0.1:0", export).URL(""), "grpc", "r3map", 1) + "?size=3145851",
	}
	for _, name := range []string{"mem", "file", "path", "dir", "tcp", "tcp, no name", "tcp+unix", "grpc", "grpc+unix", "r3map"} {
		t.Run(name, func(t *testing.T) {
			b, err := telemap.Open(t.Context(), urls[name])
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if b.Size() != size {
				t.Errorf("%s has %d bytes; want %d", urls[name], b.Size(), size)
			}
			roundTrip(t, b)
			ro, err := telemap.Opener{ReadOnly: true}.Open(t.Context(), urls[name])
			if err != nil {
				t.Fatal(err)
			}
			defer ro.Close()
			if _, err := ro.WriteAt(t.Context(), []byte{1}, 0); !errors.Is(err, backend.ErrReadOnly) {
				t.Errorf("a write to what was opened for reading = %v; want ErrReadOnly", err)
			}
		})
	}
}

func TestBadURLs(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := serve(t, "tcp://127.0.0.1:0", telemap.Export("disk", mem.New(10)))
	for _, c := range []struct {
		url  string
		is   error
		says string
	}{
		{"", nil, "empty"},
		{"gopher://x", telemap.ErrUnknownScheme, "known are dir, file, grpc"},
		{"tcp://user:hunter2@h:%zz/", nil, "malformed URL"},
		{filepath.Join(dir, "none"), fs.ErrNotExist, "none"},
		{empty, nil, "empty"},
		{dir, nil, "directory"},
		{"file://host/x", nil, "host"},
		{"mem:", nil, "mem:512MiB"},
		{"mem:-5", nil, "size"},
		{"mem:lots", nil, "size"},
		{"mem:5?color=red", nil, `unknown parameter "color"`},
		{"file:" + empty + "?siez=5", nil, `unknown parameter "siez"`},
		{"tcp://localhost/disk", nil, "port"},
		{"tcp+unix:///disk", nil, "socket="},
		{"tcp://127.0.0.1:1/disk", nil, "refused"},
		{l.URL("other"), backend.ErrNotFound, "other"},
		{l.URL("disk") + "?cert=x", nil, "both cert and key"},
		{l.URL("disk") + "?readonly=maybe", nil, "readonly"},
		{"r3map://127.0.0.1:1", nil, "?size="},
		{"r3map://127.0.0.1:1/name?size=5", nil, "no region names"},
	} {
		b, err := telemap.Open(t.Context(), c.url)
		if err == nil {
			b.Close()
			t.Errorf("Open(%q) succeeded", c.url)
			continue
		}
		if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Open(%q) = %v; want %v and the words %q", c.url, err, c.is, c.says)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%q) tells the password: %v", c.url, err)
		}
	}
}

func TestListenRefuses(t *testing.T) {
	for rawURL, says := range map[string]string{
		"tcp://0.0.0.0:0":       "refusing to listen",
		"grpc://0.0.0.0:0":      "refusing to listen",
		"tcp://127.0.0.1":       "port",
		"tcp+unix:":             "path",
		"quic://127.0.0.1:0":    "unknown scheme",
		"127.0.0.1:7070":        "use a URL",
		"tcp://256.0.0.1:99999": "listen at",
	} {
		l, err := telemap.Listen(t.Context(), rawURL)
		if err == nil {
			l.Close()
			t.Errorf("Listen(%q) succeeded", rawURL)
		} else if !strings.Contains(err.Error(), says) {
			t.Errorf("Listen(%q) = %v; want the words %q", rawURL, err, says)
		}
	}
	l, err := telemap.Server{Insecure: true}.Listen(t.Context(), "tcp://0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestStaleSocketIsReplacedALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := serve(t, "tcp+unix:"+path, telemap.Export("disk", mem.New(10)))
	if second, err := telemap.Listen(t.Context(), "tcp+unix:"+path); err == nil {
		second.Close()
		t.Error("a live server's socket was taken away")
	}
	b, err := telemap.Open(t.Context(), l.URL("disk"))
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestNamesAndRedaction(t *testing.T) {
	for rawURL, want := range map[string]string{
		"tcp://h:1/disk.img": "disk.img", "./a/b.img": "b.img", "file:c": "c", "mem:5MiB": "region",
		"tcp://h:1": "region", "tcp://h:1/": "region", "": "region", "dir:///srv/x/": "x",
	} {
		if got := telemap.Name(rawURL); got != want {
			t.Errorf("Name(%q) = %q; want %q", rawURL, got, want)
		}
	}
	got := telemap.Redact("redis://user:hunter2@h:1/x?Token=hunter2&size=5")
	if u, err := url.Parse(got); err != nil || strings.Contains(got, "hunter2") || u.Query().Get("size") != "5" || u.Host != "h:1" {
		t.Errorf("Redact = %q", got)
	}
	for in, want := range map[string]int64{"4096": 4096, "64KiB": 65536, "1.5GiB": 3 << 29, "10MB": 10_000_000} {
		if n, err := telemap.ParseSize(in); n != want || err != nil {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, n, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1e30", "5 parsecs"} {
		if n, err := telemap.ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d", in, n)
		}
	}
}

func TestOwnScheme(t *testing.T) {
	o := telemap.Opener{Schemes: map[string]telemap.OpenFunc{
		"const": func(_ context.Context, u *url.URL, _ telemap.Opener) (backend.Backend, error) {
			return backend.FromReaderAt(strings.NewReader(u.Opaque), int64(len(u.Opaque))), nil
		},
	}}
	b, err := o.Open(t.Context(), "const:hello")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := make([]byte, 5)
	if err := backend.ReadFull(t.Context(), b, p, 0); err != nil || string(p) != "hello" {
		t.Errorf("read %q, %v", p, err)
	}
}

func TestExportTellsWhatItIs(t *testing.T) {
	dir := t.TempDir()
	for rawURL, want := range map[string]transport.Info{
		"mem:5KiB?readonly=1":                       {Size: 5120, ReadOnly: true},
		"dir:" + dir + "/d?size=9000&chunk=4KiB":    {Size: 9000, ChunkSize: 4096},
		"file:" + dir + "/f?size=77":                {Size: 77},
		"file:" + dir + "/g?size=77&readonly=false": {Size: 77},
	} {
		b, err := telemap.Open(t.Context(), rawURL)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		want.Name = "x"
		if got := telemap.Export("x", b).Info; got != want {
			t.Errorf("Export of %s says %+v; want %+v", rawURL, got, want)
		}
	}
}
