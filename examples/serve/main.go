// Command serve is the smallest server of a backend of one's own: a region that
// computes its bytes. It serves until it is interrupted.
//
//	go run ./examples/serve &
//	telemap mount tcp://127.0.0.1:7070/squares ./squares
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"syscall"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/backend"
)

// squares is an io.ReaderAt whose n-th word of eight bytes, big-endian, is n².
// Nothing of it is stored anywhere.
type squares struct{}

const size = 1 << 30

func (squares) ReadAt(p []byte, off int64) (int, error) {
	var word [8]byte
	for i := range p {
		at := off + int64(i)
		if i == 0 || at%8 == 0 {
			n := uint64(at / 8)
			binary.BigEndian.PutUint64(word[:], n*n)
		}
		p[i] = word[at%8]
	}
	return len(p), nil
}

func main() {
	listen := flag.String("listen", "tcp://127.0.0.1:7070", "where to listen")
	flag.Parse()
	if err := serve(*listen); err != nil {
		log.Fatal(err)
	}
}

func serve(url string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	l, err := telemap.Listen(ctx, url)
	if err != nil {
		return err
	}
	fmt.Println("serving", l.URL("squares"))
	return l.Serve(ctx, telemap.Export("squares", backend.FromReaderAt(squares{}, size)))
}
