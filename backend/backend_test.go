package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"

	"github.com/telemap/telemap/region"
)

func TestClip(t *testing.T) {
	for _, c := range []struct {
		n         int
		off, size int64
		want      int
		err       error
	}{
		{5, 0, 10, 5, nil}, {5, 5, 10, 5, nil}, {5, 6, 10, 4, io.EOF}, {5, 10, 10, 0, io.EOF}, {0, 10, 10, 0, nil},
		{0, 11, 10, 0, ErrOutOfRange}, {5, -1, 10, 0, ErrOutOfRange}, {5, math.MaxInt64, 10, 0, ErrOutOfRange},
		{5, math.MaxInt64 - 2, math.MaxInt64, 2, io.EOF},
	} {
		if p, err := Clip(make([]byte, c.n), c.off, c.size); len(p) != c.want || err != c.err {
			t.Errorf("Clip(len=%d, off=%d, size=%d) = %d bytes, %v; want %d, %v", c.n, c.off, c.size, len(p), err, c.want, c.err)
		}
	}
}

func TestRetryable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {io.EOF, false}, {io.ErrUnexpectedEOF, true}, {ErrUnavailable, true}, {ErrNoSpace, true},
		{errors.New("connection reset"), true}, {ErrFenced, false}, {ErrClosed, false}, {region.ErrBadRequest, false},
		{&OpError{Op: "read", Name: "x", Err: fmt.Errorf("deep: %w", ErrReadOnly)}, false},
		{context.Canceled, false}, {context.DeadlineExceeded, false}, {errors.ErrUnsupported, false},
	} {
		if got := Retryable(c.err); got != c.want {
			t.Errorf("Retryable(%v) = %v; want %v", c.err, got, c.want)
		}
	}
}

func TestOpErrorText(t *testing.T) {
	for want, err := range map[string]error{
		"read disk [10,15): boom": &OpError{"read", "disk", 10, 5, errors.New("boom")},
		"sync disk: boom":         &OpError{"sync", "disk", 0, 0, errors.New("boom")},
	} {
		if got := err.Error(); got != want {
			t.Errorf("Error() = %q; want %q", got, want)
		}
	}
}

// memory has no ability.
type memory []byte

func (m memory) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	q, err := Clip(p, off, m.Size())
	if len(q) > 0 {
		copy(q, m[off:])
	}
	return len(q), err
}

func (m memory) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if !region.Check(off, int64(len(p)), m.Size()) {
		return 0, ErrOutOfRange
	}
	return copy(m[off:], p), nil
}

func (m memory) Sync(context.Context) error { return nil }
func (m memory) Size() int64                { return int64(len(m)) }
func (m memory) Close() error               { return nil }

func TestHelpersFallBack(t *testing.T) {
	ctx := t.Context()
	m := memory(bytes.Repeat([]byte{1}, 1<<20))
	if err := Zero(ctx, m, 10, 1<<19); err != nil {
		t.Errorf("Zero = %v", err)
	}
	if err := Discard(ctx, m, 1<<20-1, 1); err != nil {
		t.Errorf("Discard = %v", err)
	}
	want := bytes.Repeat([]byte{1}, 1<<20)
	clear(want[10 : 10+1<<19])
	want[1<<20-1] = 0
	if !bytes.Equal(m, want) {
		t.Error("Zero and Discard left other bytes than they should")
	}
	if err := Zero(ctx, m, 1, 1<<20); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("Zero = %v; want %v", err, ErrOutOfRange)
	}
	if r, err := NextData(ctx, m, 5); err != nil || r != (region.Range{Off: 5, Len: 1<<20 - 5}) {
		t.Errorf("NextData(5) = %v, %v; want the rest", r, err)
	}
	if _, err := NextData(ctx, m, 1<<20); err != io.EOF {
		t.Errorf("NextData at the end = %v; want EOF", err)
	}
	if _, err := NextData(ctx, m, -1); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("NextData(-1) = %v; want %v", err, ErrOutOfRange)
	}
	var v []Vec
	for i := range int64(20) {
		v = append(v, Vec{P: make([]byte, 100), Off: i * 1000})
	}
	if err := ReadVec(ctx, m, v); err != nil {
		t.Errorf("ReadVec = %v", err)
	}
	for _, x := range v {
		if !bytes.Equal(x.P, want[x.Off:x.Off+100]) {
			t.Errorf("ReadVec filled the piece at %d with other bytes", x.Off)
		}
	}
	if err := ReadVec(ctx, m, append(v, Vec{P: make([]byte, 2), Off: 1<<20 - 1})); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("ReadVec past the end = %v; want %v", err, ErrOutOfRange)
	}
}
