package tcp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/pager"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// A life is a server that can be ended and followed by another at its address.
type life struct {
	end func()
}

func live(t *testing.T, addr string, r transport.Region) life {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := NewServer(transport.Exports{{Region: r, Info: transport.Info{Name: "r", Size: r.Size()}}}, ServerOptions{})
	go func() { done <- s.Serve(ctx, l) }()
	ended := false
	end := func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(end)
	return life{end}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestSyncTellsThatTheServerForgot(t *testing.T) {
	addr := freeAddr(t)
	first := live(t, addr, mem.New(1000))
	s := dial(t, addr, Options{Logger: testkit.Logger(t)})
	ctx := within(t)
	r, _, err := s.Open(ctx, "r")
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if _, err := r.WriteAt(ctx, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("synced")
	if err := r.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	first.end()
	second := live(t, addr, mem.New(1000))
	if err := r.Sync(ctx); err != nil {
		t.Errorf("Sync with nothing written since the last: %v", err)
	}
	write("forgotten")
	second.end()
	live(t, addr, mem.New(1000))
	if err := r.Sync(ctx); !errors.Is(err, region.ErrLost) {
		t.Errorf("Sync of a write that a restart swallowed = %v; want ErrLost", err)
	}
	write("again")
	if err := r.Sync(ctx); err != nil {
		t.Errorf("Sync after writing again = %v", err)
	}
	if s.Stats().Reconnects < 2 {
		t.Errorf("%d reconnects: the restarts went unnoticed", s.Stats().Reconnects)
	}
}

// What a pager has pushed and a restarted server has forgotten is pushed again.
func TestPagerSurvivesAForgetfulServer(t *testing.T) {
	addr := freeAddr(t)
	first := live(t, addr, mem.New(1<<20))
	s := dial(t, addr, Options{Logger: testkit.Logger(t)})
	ctx := within(t)
	r, _, err := s.Open(ctx, "r")
	if err != nil {
		t.Fatal(err)
	}
	p, err := pager.Open(ctx, r, pager.Options{ChunkSize: 4096, Pull: pager.PullOptions{Off: true}, Push: pager.PushOptions{Interval: 1}})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 100_000)
	testkit.Pattern(want, 0, 3)
	if _, err := p.WriteAt(ctx, want, 5000); err != nil {
		t.Fatal(err)
	}
	until(t, "the background push", func() bool { return p.Stats().Dirty == 0 })
	first.end()
	kept := mem.New(1 << 20)
	live(t, addr, kept)
	if err := p.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := backend.ReadFull(ctx, kept, got, 5000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after Sync the restarted server lacks what was written (%v)", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}
