package main

import (
	"reflect"
	"testing"
)

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		samples []float64
		p, want float64
	}{
		{[]float64{7}, 50, 7},
		{[]float64{7}, 99, 7},
		{[]float64{3, 1, 2}, 50, 2},
		{[]float64{4, 1, 3, 2}, 50, 2.5},
		{[]float64{4, 1, 3, 2}, 0, 1},
		{[]float64{4, 1, 3, 2}, 100, 4},
		{[]float64{0, 100}, 99, 99},
	} {
		if got := percentile(c.samples, c.p); got != c.want {
			t.Errorf("percentile(%v, %v) = %v; want %v", c.samples, c.p, got, c.want)
		}
	}
}

func TestSummaryKeepsTheOrderOfRounds(t *testing.T) {
	samples := []float64{3, 1, 2}
	f := summarize(samples)
	if want := (figure{Median: 2, Min: 1, Max: 3, Samples: []float64{3, 1, 2}}); !reflect.DeepEqual(f, want) {
		t.Errorf("summarize = %+v; want %+v", f, want)
	}
}

func TestRatiosPairRounds(t *testing.T) {
	// The machine was half as fast in the second round: the ratio is the same.
	if got, want := ratios([]float64{4, 2, 9}, []float64{2, 1}), []float64{2, 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("ratios = %v; want %v", got, want)
	}
}
