package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
)

// page is the distance of the bytes that a trace looks at.
const page = 4096

// A trace sums up one byte of every page that passes by. It costs so little that
// it can be kept within the timed part, where it proves that the bytes arrived.
type trace struct {
	off int64
	sum uint64
}

// add takes the next bytes.
func (t *trace) add(p []byte) {
	for i := (page - t.off%page) % page; i < int64(len(p)); i += page {
		t.sum = t.sum*31 + uint64(p[i]) + 1
	}
	t.off += int64(len(p))
}

// traceOf is the trace of [off, off+n) of content.
func traceOf(content []byte, off, n int64) trace {
	t := trace{off: off}
	t.add(content[off : off+n])
	return t
}

// fillRandom fills p with bytes that do not compress and depend on seed.
func fillRandom(p []byte, seed byte) {
	var key [32]byte
	key[0] = seed
	// Read of ChaCha8 never fails.
	_, _ = rand.NewChaCha8(key).Read(p)
}

// compare reads r to the end and compares it with content.
func compare(r io.Reader, content []byte) error {
	buf := make([]byte, 1<<20)
	var off int
	for {
		n, err := io.ReadFull(r, buf)
		if n > len(content)-off {
			return fmt.Errorf("compare: more than the %d bytes there should be", len(content))
		}
		if !bytes.Equal(buf[:n], content[off:off+n]) {
			return fmt.Errorf("compare: wrong bytes in [%d,%d)", off, off+n)
		}
		off += n
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			if off != len(content) {
				return fmt.Errorf("compare: the end after %d of %d bytes", off, len(content))
			}
			return nil
		default:
			return fmt.Errorf("compare at %d: %w", off, err)
		}
	}
}
