package main

import (
	"context"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestSidesTakeTurns(t *testing.T) {
	var order []string
	fake := func(name string) side {
		return side{name, func(context.Context) (sample, error) {
			order = append(order, name)
			return sample{"x": float64(len(order))}, nil
		}}
	}
	g := group{
		sides: []side{fake("a"), fake("b"), fake("unused"), fake("c")},
		rows:  []row{{ID: "g/1", Side: "a", Metric: "x", Beside: "b"}, {ID: "g/2", Side: "c", Metric: "x"}},
	}
	e := engine{runs: 3, log: io.Discard}
	results, err := e.run(t.Context(), []group{g})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ""); got != "abcabcabc" {
		t.Errorf("measured %s; want abcabcabc", got)
	}
	if got, want := results[0].Figure.Samples, []float64{1, 4, 7}; !slices.Equal(got, want) {
		t.Errorf("samples %v; want %v", got, want)
	}
}

func TestOnlyMeasuresWhatMatches(t *testing.T) {
	g := group{
		sides: []side{
			{"a", func(context.Context) (sample, error) { return sample{"x": 1}, nil }},
			{"b", func(context.Context) (sample, error) { t.Error("b was measured"); return nil, nil }},
		},
		rows: []row{{ID: "g/one", Side: "a", Metric: "x"}, {ID: "g/two", Side: "b", Metric: "x"}},
	}
	e := engine{runs: 1, only: regexp.MustCompile("one$"), log: io.Discard}
	results, err := e.run(t.Context(), []group{g})
	if err != nil || len(results) != 1 || results[0].ID != "g/one" {
		t.Errorf("run = %v, %v; want g/one alone", results, err)
	}
}

func TestASkipIsNoFailureAndAFailureStopsNobodyElse(t *testing.T) {
	broken := errors.New("wrong bytes")
	failed := 0
	g := group{
		name: "g",
		sides: []side{
			{"absent", func(context.Context) (sample, error) { return nil, skip("not installed") }},
			{"broken", func(context.Context) (sample, error) { failed++; return nil, broken }},
			{"good", func(context.Context) (sample, error) { return sample{"x": 1}, nil }},
		},
		rows: []row{
			{ID: "g/1", Side: "absent", Metric: "x"},
			{ID: "g/2", Side: "broken", Metric: "x"},
			{ID: "g/3", Side: "good", Metric: "x", Beside: "absent"},
		},
	}
	e := engine{runs: 2, log: io.Discard}
	results, err := e.run(t.Context(), []group{g})
	if !errors.Is(err, broken) || strings.Contains(err.Error(), "not installed") {
		t.Errorf("run = %v; want the failure alone", err)
	}
	if failed != 1 {
		t.Errorf("the broken side was measured %d times; want once", failed)
	}
	if results[0].Note != "absent: not installed" || results[1].Note != "broken: failed" || results[2].Figure == nil {
		t.Errorf("results = %+v", results)
	}
}

func TestAnInterruptEndsTheRun(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	rounds := 0
	g := group{
		sides: []side{{"a", func(context.Context) (sample, error) { rounds++; interrupt(); return nil, ctx.Err() }}},
		rows:  []row{{ID: "g/1", Side: "a", Metric: "x"}},
	}
	e := engine{runs: 5, log: io.Discard}
	if _, err := e.run(ctx, []group{g, g}); !errors.Is(err, context.Canceled) || rounds != 1 {
		t.Errorf("run = %v after %d rounds; want the interrupt after 1", err, rounds)
	}
}
