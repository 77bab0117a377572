package main

import (
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	one := func(v float64) *figure { f := summarize([]float64{v}); return &f }
	for _, c := range []struct {
		name          string
		target        target
		figure, ratio *figure
		want          verdict
	}{
		{"no target", target{}, one(1), one(1), none},
		{"no target, no figure", target{}, nil, nil, none},
		{"fast enough", target{AtLeast: 2}, one(1), one(2), met},
		{"too slow", target{AtLeast: 2}, one(1), one(1.99), missed},
		{"short enough", target{AtMost: 0.7}, one(1), one(0.7), met},
		{"too long", target{AtMost: 0.7}, one(1), one(0.71), missed},
		{"below the limit", target{Limit: 3}, one(3), nil, met},
		{"above the limit", target{Limit: 3}, one(3.1), nil, missed},
		{"both", target{AtMost: 0.7, Limit: 60}, one(59), one(0.6), met},
		{"ratio met, limit missed", target{AtMost: 0.7, Limit: 60}, one(61), one(0.6), missed},
		{"ratio missed, limit met", target{AtMost: 0.7, Limit: 60}, one(59), one(0.8), missed},
		{"nothing beside it", target{AtLeast: 2}, one(1), nil, unknown},
		{"nothing beside it, limit missed", target{AtMost: 2, Limit: 3}, one(4), nil, missed},
		{"not measured", target{Limit: 3}, nil, nil, unknown},
	} {
		if got := (result{row: row{Target: c.target}, Figure: c.figure, Ratio: c.ratio}).verdict(); got != c.want {
			t.Errorf("%s: verdict = %q; want %q", c.name, got, c.want)
		}
	}
}

func TestJoinSaysWhatIsMissing(t *testing.T) {
	sides := map[string]sideResult{
		"ours": {samples: map[string][]float64{"GB/s": {2, 3}}},
		"peer": {note: "not installed"},
	}
	r := join(row{Side: "ours", Metric: "GB/s", Beside: "peer", Target: target{AtLeast: 2}}, sides)
	if r.Figure == nil || r.Figure.Median != 2.5 || r.Other != nil || r.Ratio != nil {
		t.Errorf("join = %+v; want our figure alone", r)
	}
	if r.verdict() != unknown || !strings.Contains(r.Note, "not installed") {
		t.Errorf("verdict %q, note %q; want unknown and why", r.verdict(), r.Note)
	}
}

func TestTargetText(t *testing.T) {
	if got, want := (target{AtMost: 0.7, Limit: 60}).text("µs"), "≤ 0.7, ≤ 60 µs"; got != want {
		t.Errorf("text = %q; want %q", got, want)
	}
}
