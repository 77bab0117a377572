package main

import (
	"fmt"
	"strings"
)

// A row puts a figure beside another one.
type row struct {
	ID     string // group/name, what --only matches
	What   string
	Side   string // whose figure; see side
	Metric string
	Unit   string
	Beside string // the other side, or empty
	Target target
}

// A target is what a row should reach; zero fields ask nothing.
type target struct {
	AtLeast float64 `json:"ratio_at_least,omitempty"`
	AtMost  float64 `json:"ratio_at_most,omitempty"`
	Limit   float64 `json:"figure_at_most,omitempty"` // in the row's unit
}

func (t target) text(unit string) string {
	var parts []string
	if t.AtLeast != 0 {
		parts = append(parts, fmt.Sprintf("≥ %g", t.AtLeast))
	}
	if t.AtMost != 0 {
		parts = append(parts, fmt.Sprintf("≤ %g", t.AtMost))
	}
	if t.Limit != 0 {
		parts = append(parts, fmt.Sprintf("≤ %g %s", t.Limit, unit))
	}
	return strings.Join(parts, ", ")
}

// A result is a row with its figures.
type result struct {
	row
	Figure *figure // nil if it could not be measured
	Other  *figure // of Beside
	Ratio  *figure // Figure by Other
	Note   string  // why something is missing
}

// A verdict says whether a target was met.
type verdict string

const (
	met     verdict = "met"
	missed  verdict = "missed"
	unknown verdict = "unknown" // there is a target and a figure is missing
	none    verdict = ""        // no target
)

func (r result) verdict() verdict {
	t := r.Target
	switch {
	case t == target{}:
		return none
	case r.Figure == nil, t.Limit != 0 && r.Figure.Median > t.Limit:
		if r.Figure != nil {
			return missed
		}
		return unknown
	case t.AtLeast == 0 && t.AtMost == 0:
		return met
	case r.Ratio == nil:
		return unknown
	case t.AtLeast != 0 && r.Ratio.Median < t.AtLeast, t.AtMost != 0 && r.Ratio.Median > t.AtMost:
		return missed
	}
	return met
}

// A sideResult is all that one side's rounds gave.
type sideResult struct {
	samples map[string][]float64 // by metric
	note    string               // why it was skipped or failed
}

// join makes the result of r from the sides' results.
func join(r row, sides map[string]sideResult) result {
	res := result{row: r}
	take := func(name string) *figure {
		s := sides[name]
		if samples := s.samples[r.Metric]; len(samples) > 0 && s.note == "" {
			f := summarize(samples)
			return &f
		}
		if s.note != "" {
			res.Note = name + ": " + s.note
		}
		return nil
	}
	res.Figure = take(r.Side)
	if r.Beside == "" {
		return res
	}
	if res.Other = take(r.Beside); res.Figure != nil && res.Other != nil {
		f := summarize(ratios(res.Figure.Samples, res.Other.Samples))
		res.Ratio = &f
	}
	return res
}
