package backend

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/telemap/telemap/backend/internal/gate"
	"github.com/telemap/telemap/region"
)

// Plain is the interface without contexts that programs for go-nbd and r3map
// implement. Size is asked once.
type Plain interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Sync() error
}

// FromReaderAt makes a read-only backend of the first size bytes of r, such as a
// [bytes.Reader], a [strings.Reader] or a file. Size must be positive. If r ends
// before, reads of what is missing fail with [io.ErrUnexpectedEOF]. Contexts are
// looked at between calls of r only. Closing the backend leaves r open.
func FromReaderAt(r io.ReaderAt, size int64) Backend {
	return &adapter{r: r, size: size}
}

// FromReadWriterAt is [FromReaderAt] for something that can be written too.
// Unless it has a Sync method, as files do, Sync does nothing.
func FromReadWriterAt(rw interface {
	io.ReaderAt
	io.WriterAt
}, size int64) Backend {
	a := &adapter{r: rw, w: rw, size: size}
	if s, ok := rw.(interface{ Sync() error }); ok {
		a.sync = s.Sync
	}
	return a
}

// FromPlain makes a backend of p. Implementations of [Plain] are known to leave
// the buffer alone where nothing was written, hence it is cleared before each
// read. Closing the backend leaves p open.
func FromPlain(p Plain) (Backend, error) {
	size, err := p.Size()
	if err != nil {
		return nil, &OpError{Op: "open", Name: fmt.Sprintf("%T", p), Err: err}
	}
	if size <= 0 {
		return nil, &OpError{Op: "open", Name: fmt.Sprintf("%T", p), Err: fmt.Errorf("size is %d bytes: it must be positive", size)}
	}
	return &adapter{r: p, w: p, sync: p.Sync, size: size, clear: true}, nil
}

// ToPlain is b for code that wants a [Plain]. Operations use ctx.
func ToPlain(ctx context.Context, b Backend) Plain {
	return plain{ReaderAt(ctx, b), WriterAt(ctx, b), ctx, b}
}

// plain carries a context because the interface has no other place for it.
type plain struct {
	io.ReaderAt
	io.WriterAt
	ctx context.Context
	b   Backend
}

func (p plain) Size() (int64, error) { return p.b.Size(), nil }
func (p plain) Sync() error          { return p.b.Sync(p.ctx) }

// ReaderAt is b for code that wants an [io.ReaderAt], such as
// [io.NewSectionReader]. Reads use ctx.
func ReaderAt(ctx context.Context, b Backend) io.ReaderAt {
	return readerAt(func(p []byte, off int64) (int, error) { return b.ReadAt(ctx, p, off) })
}

// WriterAt is b for code that wants an [io.WriterAt], such as
// [io.NewOffsetWriter]. Writes use ctx.
func WriterAt(ctx context.Context, b Backend) io.WriterAt {
	return writerAt(func(p []byte, off int64) (int, error) { return b.WriteAt(ctx, p, off) })
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

type writerAt func(p []byte, off int64) (int, error)

func (f writerAt) WriteAt(p []byte, off int64) (int, error) { return f(p, off) }

// adapter is a backend on interfaces without contexts.
type adapter struct {
	r     io.ReaderAt
	w     io.WriterAt  // nil if read-only
	sync  func() error // nil if there is nothing to do
	size  int64
	clear bool // whether r may leave bytes alone that were never written
	gate  gate.Gate
}

func (a *adapter) Size() int64 { return a.size }

func (a *adapter) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := a.enter(ctx); err != nil {
		return 0, a.fail("read", off, len(p), err)
	}
	defer a.gate.Leave()
	q, end := Clip(p, off, a.size)
	if a.clear {
		clear(q)
	}
	n, err := transfer(ctx, a.r.ReadAt, q, off)
	if err == io.EOF {
		err = fmt.Errorf("it ended at byte %d of %d: %w", off+int64(n), a.size, io.ErrUnexpectedEOF)
	}
	if err == nil {
		if err = end; err == nil || err == io.EOF {
			return n, err
		}
	}
	return n, a.fail("read", off, len(p), err)
}

func (a *adapter) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	err := a.enter(ctx)
	if err != nil {
		return 0, a.fail("write", off, len(p), err)
	}
	defer a.gate.Leave()
	var n int
	switch {
	case a.w == nil:
		err = ErrReadOnly
	case !region.Check(off, int64(len(p)), a.size):
		err = ErrOutOfRange
	default:
		n, err = transfer(ctx, a.w.WriteAt, p, off)
	}
	if err != nil {
		return n, a.fail("write", off, len(p), err)
	}
	return n, nil
}

// transfer calls at until all of p is done. The interfaces promise that once is
// enough, but not all who implement them keep it.
func transfer(ctx context.Context, at func(p []byte, off int64) (int, error), p []byte, off int64) (done int, err error) {
	for done < len(p) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		n, err := at(p[done:], off+int64(done))
		if n < 0 || n > len(p)-done {
			return done, fmt.Errorf("%d of %d bytes are said to be done (%v): %w", n, len(p)-done, err, errInvalidCount)
		}
		done += n
		switch {
		case err == io.EOF && done == len(p): // the end right behind p
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrNoProgress
		}
	}
	return done, nil
}

var errInvalidCount = errors.New("invalid count")

func (a *adapter) Sync(ctx context.Context) error {
	err := a.enter(ctx)
	if err == nil {
		defer a.gate.Leave()
		if a.sync != nil {
			err = a.sync()
		}
	}
	if err != nil {
		return a.fail("sync", 0, 0, err)
	}
	return nil
}

func (a *adapter) Close() error {
	a.gate.Shut()
	return nil
}

// enter returns nil if the operation may go on; it must then leave the gate.
func (a *adapter) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !a.gate.Enter() {
		return ErrClosed
	}
	return nil
}

func (a *adapter) fail(op string, off int64, n int, err error) error {
	return &OpError{Op: op, Name: fmt.Sprintf("%T", a.r), Off: off, Len: int64(n), Err: err}
}
