package main

import (
	"math"
	"slices"
)

// A figure sums up the samples of one measurement, one of each round.
type figure struct {
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Samples []float64 `json:"samples"` // in the order they were taken
}

// summarize is the figure of at least one sample.
func summarize(samples []float64) figure {
	return figure{
		Median:  percentile(samples, 50),
		Min:     slices.Min(samples),
		Max:     slices.Max(samples),
		Samples: samples,
	}
}

// percentile is the value below which p percent of at least one sample lie,
// interpolated between its neighbours.
func percentile(samples []float64, p float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	rank := p / 100 * float64(len(s)-1)
	low := int(math.Floor(rank))
	if low+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[low] + (rank-float64(low))*(s[low+1]-s[low])
}

// ratios divides each round's a by the same round's b.
func ratios(a, b []float64) []float64 {
	r := make([]float64, min(len(a), len(b)))
	for i := range r {
		r[i] = a[i] / b[i]
	}
	return r
}
