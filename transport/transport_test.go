package transport_test

import (
	"context"
	"errors"
	"testing"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

func TestExports(t *testing.T) {
	ctx := t.Context()
	a, b := transport.Export{Info: transport.Info{Name: "a"}}, transport.Export{Info: transport.Info{Name: "b"}}
	if x, err := (transport.Exports{a}).Lookup(ctx, ""); err != nil || x.Info.Name != "a" {
		t.Errorf("the only region = %v, %v", x.Info, err)
	}
	if x, err := (transport.Exports{a, b}).Lookup(ctx, "b"); err != nil || x.Info.Name != "b" {
		t.Errorf("Lookup(b) = %v, %v", x.Info, err)
	}
	for _, name := range []string{"", "c"} {
		if _, err := (transport.Exports{a, b}).Lookup(ctx, name); !errors.Is(err, region.ErrNotFound) {
			t.Errorf("Lookup(%q) of two = %v; want ErrNotFound", name, err)
		}
	}
	if infos, err := (transport.Exports{a, b}).List(ctx); err != nil || len(infos) != 2 || infos[1].Name != "b" {
		t.Errorf("List = %v, %v", infos, err)
	}
}

func TestWitness(t *testing.T) {
	now := int64(1)
	instance := func() int64 { return now }
	fine := func() error { return nil }
	w := transport.NewWitness()
	sync := func(want error, do func() error) {
		t.Helper()
		if err := w.Sync(t.Context(), instance, do); !errors.Is(err, want) {
			t.Errorf("Sync = %v; want %v", err, want)
		}
	}
	sync(nil, fine)
	w.Wrote(1)
	sync(nil, fine)
	now = 2
	sync(nil, fine) // nothing was written since
	w.Wrote(2)
	now = 3
	w.Wrote(3) // does not make up for the older one
	broken := errors.New("broken")
	sync(broken, func() error { return broken }) // forgets nothing
	sync(region.ErrLost, fine)
	sync(nil, fine)
	w.Wrote(3)
	sync(region.ErrLost, func() error { now = 4; return nil }) // restarted just before
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Sync(t.Context(), instance, func() error { return w.Sync(ctx, instance, fine) }); !errors.Is(err, context.Canceled) {
		t.Errorf("a Sync whose turn did not come = %v; want context.Canceled", err)
	}
}
