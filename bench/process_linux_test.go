package main

import (
	"context"
	"strings"
	"testing"
)

func TestProcessSaysItIsReadyAndStops(t *testing.T) {
	p, err := start(t.Context(), "sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	if l, err := p.line(t.Context()); l != "ready" || err != nil {
		t.Errorf("line = %q, %v; want ready", l, err)
	}
	if err := p.stop(); err != nil {
		t.Errorf("stop = %v", err)
	}
}

func TestProcessThatFailsSaysWhy(t *testing.T) {
	p, err := start(t.Context(), "sh", "-c", "echo no such region >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.line(t.Context()); err == nil || !strings.Contains(err.Error(), "no such region") || !strings.Contains(err.Error(), "status 3") {
		t.Errorf("line = %v; want what it complained about", err)
	}
}

func TestProcessEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := start(ctx, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-p.done
	if p.err == nil {
		t.Error("a killed process ended without an error")
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var b tail
	for range 10 {
		if _, err := b.Write([]byte(strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = b.Write([]byte("the reason\n"))
	if s := b.String(); len(s) > tailSize || !strings.HasSuffix(s, "the reason") {
		t.Errorf("%d bytes, ends with %q", len(s), s[len(s)-10:])
	}
}
