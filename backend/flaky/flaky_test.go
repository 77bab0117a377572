package flaky

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T, size int64) backend.Backend { return Wrap(mem.New(size)) })
}

// perform does one operation of each kind.
var perform = map[Op]func(ctx context.Context, b *Backend) error{
	Read:     func(ctx context.Context, b *Backend) error { _, err := b.ReadAt(ctx, make([]byte, 10), 0); return err },
	Write:    func(ctx context.Context, b *Backend) error { _, err := b.WriteAt(ctx, make([]byte, 10), 0); return err },
	Sync:     func(ctx context.Context, b *Backend) error { return b.Sync(ctx) },
	Zero:     func(ctx context.Context, b *Backend) error { return b.Zero(ctx, 0, 10) },
	Discard:  func(ctx context.Context, b *Backend) error { return b.Discard(ctx, 0, 10) },
	NextData: func(ctx context.Context, b *Backend) error { _, err := b.NextData(ctx, 0); return err },
	Close:    func(ctx context.Context, b *Backend) error { return b.Close() },
}

func TestFailStrikesTheNth(t *testing.T) {
	for op := range ops {
		f := Fail(op, 3)
		b := Wrap(mem.New(100), f)
		defer b.Close()
		b.WriteAt(t.Context(), []byte{1}, 99) // so that NextData has an answer
		if op == Write {
			b.Inject()
			f.seen = 0
		}
		for i := range 5 {
			err := perform[op](t.Context(), b)
			if failed := errors.Is(err, ErrInjected); failed != (i == 2) {
				t.Errorf("%v number %d = %v", op, i+1, err)
			}
		}
		if f.Fired() != 1 {
			t.Errorf("%v: Fired() = %d; want 1", op, f.Fired())
		}
	}
}

func TestWhichOperationsFail(t *testing.T) {
	own := os.ErrDeadlineExceeded
	for _, c := range []struct {
		name string
		f    *Failure
		want string // x: fails
	}{
		{"FailFrom", FailFrom(Sync, 4), "...xxxxx"},
		{"FailUntil", FailUntil(Sync, 4), "xxx....."},
		{"Chance 0", Chance(Sync, 0, 1), "........"},
		{"Chance 1", Chance(Sync, 1, 1).With(own), "xxxxxxxx"},
		{"other kind", FailFrom(Read, 1), "........"},
	} {
		b := Wrap(mem.New(1), c.f)
		defer b.Close()
		var got []byte
		for range 8 {
			switch err := b.Sync(t.Context()); {
			case err == nil:
				got = append(got, '.')
			case errors.Is(err, c.f.err) && backend.Retryable(err):
				got = append(got, 'x')
			default:
				t.Errorf("%s: Sync = %v", c.name, err)
			}
		}
		if string(got) != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
		if n := b.Calls(Sync); n != 8 {
			t.Errorf("Calls(Sync) = %d; want 8", n)
		}
	}
}

func TestShortReadAndWrite(t *testing.T) {
	w, r := Short(Write, 1, 4), Short(Read, 1, 3)
	b := Wrap(mem.New(10), w, r)
	defer b.Close()
	if n, err := b.WriteAt(t.Context(), []byte("abcdefgh"), 0); n != 4 || !errors.Is(err, ErrInjected) {
		t.Errorf("WriteAt = %d, %v; want 4, %v", n, err, ErrInjected)
	}
	if n, err := b.ReadAt(t.Context(), make([]byte, 8), 0); n != 3 || !errors.Is(err, ErrInjected) {
		t.Errorf("ReadAt = %d, %v; want 3, %v", n, err, ErrInjected)
	}
	p := make([]byte, 10)
	if err := backend.ReadFull(t.Context(), b, p, 0); err != nil || !bytes.Equal(p, []byte("abcd\x00\x00\x00\x00\x00\x00")) {
		t.Errorf("then ReadAt = %q, %v", p, err)
	}
	if w.Fired() != 1 || r.Fired() != 1 {
		t.Errorf("Fired() = %d and %d; want 1 and 1", w.Fired(), r.Fired())
	}
}

func TestAfterLosesTheReplyOnly(t *testing.T) {
	b := Wrap(mem.New(1), Fail(Write, 1).After())
	defer b.Close()
	if n, err := b.WriteAt(t.Context(), []byte{7}, 0); n != 0 || !errors.Is(err, ErrInjected) {
		t.Errorf("WriteAt = %d, %v; want 0, %v", n, err, ErrInjected)
	}
	p := make([]byte, 1)
	if err := backend.ReadFull(t.Context(), b, p, 0); err != nil || p[0] != 7 {
		t.Errorf("ReadAt = %v, %v; want the byte written", p, err)
	}
}

func TestStallHoldsUntilReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Stall(Read, 1)
		b := Wrap(mem.New(1), f)
		defer b.Close()
		done := make(chan error, 1)
		go func() { _, err := b.ReadAt(t.Context(), make([]byte, 1), 0); done <- err }()
		<-f.Held()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("the held read returned %v", err)
		default:
		}
		f.Release()
		f.Release()
		if err := <-done; err != nil {
			t.Errorf("the released read returned %v", err)
		}
	})
}

func TestStallEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(b *Backend, cancel func(), f *Failure)
		want error
	}{
		{"by the context", func(b *Backend, cancel func(), f *Failure) { cancel() }, context.Canceled},
		{"by Close", func(b *Backend, cancel func(), f *Failure) { b.Close() }, backend.ErrClosed},
		{"by Stop", func(b *Backend, cancel func(), f *Failure) { f.Stop() }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := StallFrom(Write, 1)
				b := Wrap(mem.New(1), f)
				defer b.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { _, err := b.WriteAt(ctx, []byte{1}, 0); done <- err }()
				<-f.Held()
				c.end(b, cancel, f)
				if err := <-done; !errors.Is(err, c.want) {
					t.Errorf("WriteAt = %v; want %v", err, c.want)
				}
			})
		})
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := Delay(Sync, time.Second)
		b := Wrap(mem.New(1), f)
		start := time.Now()
		if err := b.Sync(t.Context()); err != nil || time.Since(start) != time.Second {
			t.Errorf("Sync = %v after %v; want nil after 1s", err, time.Since(start))
		}
		go b.Close()
		if err := b.Sync(t.Context()); !errors.Is(err, backend.ErrClosed) {
			t.Errorf("Sync = %v when closed meanwhile; want %v", err, backend.ErrClosed)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := Wrap(mem.New(1), Delay(Sync, time.Second)).Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Sync = %v; want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestInjectCountsFromThenOn(t *testing.T) {
	b := Wrap(mem.New(1))
	defer b.Close()
	b.Sync(t.Context())
	f := Fail(Sync, 1)
	b.Inject(f)
	if err := b.Sync(t.Context()); !errors.Is(err, ErrInjected) {
		t.Errorf("Sync = %v; want %v", err, ErrInjected)
	}
	if b.Unwrap().Size() != b.Size() {
		t.Error("Unwrap is another backend")
	}
}

func TestCloseFailsButCloses(t *testing.T) {
	inner := mem.New(1)
	b := Wrap(inner, Fail(Close, 1).With(io.ErrUnexpectedEOF))
	if err := b.Close(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Close = %v; want %v", err, io.ErrUnexpectedEOF)
	}
	if err := inner.Sync(t.Context()); !errors.Is(err, backend.ErrClosed) {
		t.Errorf("the backend behind is open: Sync = %v", err)
	}
}
