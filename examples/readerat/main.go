// Command readerat reads parts of a region as it would of a file that is here:
// what it touches is fetched once, the rest is not. Given no URL it serves itself
// a zip archive and lists that.
//
//	go run ./examples/readerat tcp://127.0.0.1:7070/archive.zip
package main

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/pager"
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var url string
	if len(os.Args) > 1 {
		url = os.Args[1]
	} else {
		var err error
		if url, err = serveArchive(ctx); err != nil {
			log.Fatal(err)
		}
	}
	if err := list(ctx, url); err != nil {
		log.Fatal(err)
	}
}

// list prints the names in the zip archive at url, of which it reads the
// directory only.
func list(ctx context.Context, url string) (err error) {
	b, err := telemap.Opener{ReadOnly: true}.Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	// The pull is off: only what is asked for crosses the network.
	p, err := pager.Open(ctx, b, pager.Options{ReadOnly: true, Pull: pager.PullOptions{Off: true}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close(ctx)) }()
	z, err := zip.NewReader(readerAt{ctx, p}, p.Size())
	if err != nil {
		return err
	}
	for _, f := range z.File {
		fmt.Printf("%9d  %s\n", f.UncompressedSize64, f.Name)
	}
	s := p.Stats()
	fmt.Printf("fetched %d of %d bytes\n", s.FetchedBytes, p.Size())
	return nil
}

// A readerAt is a pager for code that wants an io.ReaderAt.
type readerAt struct {
	ctx context.Context
	p   *pager.Pager
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.p.ReadAt(r.ctx, p, off) }

// serveArchive serves an archive of stored files over loopback until ctx ends.
func serveArchive(ctx context.Context) (url string, err error) {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	for i := range 3 {
		w, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("file-%d.txt", i), Method: zip.Store})
		if err != nil {
			return "", err
		}
		if _, err := w.Write([]byte(strings.Repeat(fmt.Sprintf("line of file %d\n", i), 50_000))); err != nil {
			return "", err
		}
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	l, err := telemap.Listen(ctx, "tcp://127.0.0.1:0")
	if err != nil {
		return "", err
	}
	archive := bytes.NewReader(buf.Bytes())
	go func() {
		if err := l.Serve(ctx, telemap.Export("archive.zip", backend.FromReaderAt(archive, archive.Size()))); err != nil {
			log.Print(err)
		}
	}()
	return l.URL("archive.zip"), nil
}
