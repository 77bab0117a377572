package grpc

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/telemap/telemap/region"
)

func TestGenerationsFollowEachOther(t *testing.T) {
	ctx := within(t)
	waits := make(chan struct{}, 1)
	s := sessions{max: 2, waits: func() { waits <- struct{}{} }}
	id, err := s.attach()
	if err != nil {
		t.Fatal(err)
	}
	enter := func(g uint64) (func(), error) { return s.enter(ctx, id[:], g) }
	leave1, err := enter(1)
	leave2, err2 := enter(1) // one generation runs in parallel
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	type result struct {
		leave func()
		err   error
	}
	third, fourth := make(chan result, 1), make(chan result, 1)
	go func() { l, err := enter(3); third <- result{l, err} }()
	wait(t, ctx, "generation 3 waits", waits)
	if _, err := enter(2); !errors.Is(err, errStale) {
		t.Errorf("generation 2 after 3 = %v; want errStale", err)
	}
	go func() { l, err := enter(4); fourth <- result{l, err} }()
	if r := wait(t, ctx, "generation 3", third); !errors.Is(r.err, errStale) {
		t.Errorf("generation 3, waiting as 4 came = %v; want errStale", r.err)
	}
	wait(t, ctx, "generation 4 waits", waits)
	leave1()
	if len(fourth) > 0 {
		t.Error("generation 4 began beside one of generation 1")
	}
	leave2()
	r := wait(t, ctx, "generation 4", fourth)
	if r.err != nil {
		t.Fatal(r.err)
	}
	gone, cancel := context.WithCancel(ctx)
	fifth := make(chan error, 1)
	go func() { _, err := s.enter(gone, id[:], 5); fifth <- err }()
	wait(t, ctx, "generation 5 waits", waits)
	cancel()
	if err := wait(t, ctx, "generation 5", fifth); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled wait = %v", err)
	}
	r.leave()
}

func TestSessionsAreBounded(t *testing.T) {
	ctx := t.Context()
	s := sessions{max: 2}
	a, _ := s.attach()
	b, _ := s.attach()
	leave, err := s.enter(ctx, a[:], 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.attach() // forgets b: a is busy
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.enter(ctx, b[:], 7); !errors.Is(err, errUnknown) {
		t.Errorf("request of a forgotten session = %v; want errUnknown", err)
	}
	leaveC, err := s.enter(ctx, c[:], 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.attach(); !errors.Is(err, region.ErrUnavailable) {
		t.Errorf("attach beside busy sessions only = %v; want ErrUnavailable", err)
	}
	leave()
	leaveC()
	for range 100 {
		if _, err := s.attach(); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.known) != 2 || s.recent.Len() != 2 {
		t.Errorf("%d sessions are remembered; want 2", len(s.known))
	}
	for _, id := range [][]byte{nil, {1}, make([]byte, 17)} {
		if _, err := s.enter(ctx, id, 1); !errors.Is(err, region.ErrBadRequest) {
			t.Errorf("session of %d bytes = %v; want ErrBadRequest", len(id), err)
		}
	}
	if _, err := s.enter(ctx, a[:], 0); !errors.Is(err, region.ErrBadRequest) {
		t.Errorf("generation 0 = %v; want ErrBadRequest", err)
	}
}

func TestStatusTable(t *testing.T) {
	ctx := t.Context()
	for _, r := range reasons {
		err, answered := fromStatus(toStatus(ctx, fmt.Errorf("disk 3: %w", r.err)))
		if !errors.Is(err, r.err) || !answered {
			t.Errorf("%v came back as %v, answered %v", r.err, err, answered)
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err, answered := fromStatus(toStatus(gone, context.Canceled)); answered || !errors.Is(err, errUnreachable) {
		t.Errorf("a request whose asker left counts as answered: %v", err)
	}
}
