package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/telemap/telemap/backend"
)

// dirty is what a buffer holds before it is read into: a reader that leaves
// bytes alone is seen to do so.
const dirty = 0xDB

func dirtied(n int) []byte { return bytes.Repeat([]byte{dirty}, n) }

// write stores p whole and checks what WriteAt says and that it left p alone.
func write(ctx context.Context, b backend.Backend, p []byte, off int64) error {
	before := bytes.Clone(p)
	n, err := b.WriteAt(ctx, p, off)
	if n != len(p) || err != nil {
		return fmt.Errorf("WriteAt(off=%d, len=%d) = %d, %v; want %d, nil", off, len(p), n, err, len(p))
	}
	if i := differ(p, before); i >= 0 {
		return fmt.Errorf("WriteAt(off=%d, len=%d) changed byte %d of its argument", off, len(p), i)
	}
	return nil
}

// read wants ReadAt to return exactly want.
func read(ctx context.Context, b backend.Backend, want []byte, off int64) error {
	p := dirtied(len(want))
	n, err := b.ReadAt(ctx, p, off)
	atEnd := off+int64(len(want)) == b.Size()
	if n != len(want) || err != nil && !(err == io.EOF && atEnd) {
		return fmt.Errorf("ReadAt(off=%d, len=%d) = %d, %v; want %d, nil", off, len(want), n, err, len(want))
	}
	return same(p, want, fmt.Sprintf("ReadAt(off=%d, len=%d)", off, len(want)), off)
}

func same(got, want []byte, what string, off int64) error {
	i := differ(got, want)
	if i < 0 {
		return nil
	}
	note := ""
	if got[i] == dirty {
		note = ", which the buffer held before"
	}
	return fmt.Errorf("%s: byte %d is %#02x%s; want %#02x", what, off+int64(i), got[i], note, want[i])
}

// differ is the first index at which a and b differ, or -1.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// refused wants an operation to have done nothing and to return want.
func refused(what string, n int, err, want error) error {
	if n != 0 || !errors.Is(err, want) {
		return fmt.Errorf("%s = %d, %v; want 0, %v", what, n, err, want)
	}
	return nil
}
