package readonly

import (
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/backendtest"
	"github.com/telemap/telemap/backend/flaky"
	"github.com/telemap/telemap/backend/mem"
)

func TestConformance(t *testing.T) {
	backendtest.Suite{ReadOnly: func(t *testing.T, content []byte) backend.Backend {
		b := mem.New(int64(len(content)))
		if _, err := b.WriteAt(t.Context(), content, 0); err != nil {
			t.Fatal(err)
		}
		return New(b)
	}}.Run(t)
}

func TestNothingThatChangesGetsThrough(t *testing.T) {
	inner := flaky.Wrap(mem.New(100))
	b := New(inner)
	defer b.Close()
	ctx := t.Context()
	b.WriteAt(ctx, []byte{1}, 0)
	b.Zero(ctx, 0, 1)
	b.Discard(ctx, 0, 1)
	b.Sync(ctx)
	for _, op := range []flaky.Op{flaky.Write, flaky.Zero, flaky.Discard, flaky.Sync} {
		if n := inner.Calls(op); n != 0 {
			t.Errorf("%d calls of %v reached the backend behind", n, op)
		}
	}
	if b.Unwrap() != backend.Backend(inner) {
		t.Error("Unwrap is another backend")
	}
}
