package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A sample is what one round of one side measured, by metric.
type sample map[string]float64

// A side is something that can be measured again and again.
type side struct {
	name    string
	measure func(ctx context.Context) (sample, error)
}

// A group is sides that take turns, and the rows that compare them.
type group struct {
	name  string
	sides []side
	rows  []row
}

// A skip says why a side cannot be measured on this machine.
type skip string

func (s skip) Error() string { return string(s) }

// measureTimeout bounds one round of one side.
const measureTimeout = 3 * time.Minute

// An engine measures groups and tells log what it does.
type engine struct {
	runs int
	only *regexp.Regexp // nil for every row
	log  io.Writer
}

// run measures what the chosen rows need. Its error joins those of the sides
// that failed; the results are complete but for them.
func (e *engine) run(ctx context.Context, groups []group) ([]result, error) {
	var (
		results []result
		errs    []error
	)
	for _, g := range groups {
		rows := e.chosen(g)
		sides, err := e.measure(ctx, g, rows)
		errs = append(errs, err)
		for _, r := range rows {
			results = append(results, join(r, sides))
		}
		if ctx.Err() != nil {
			return results, errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
	return results, errors.Join(errs...)
}

func (e *engine) chosen(g group) []row {
	return slices.DeleteFunc(slices.Clone(g.rows), func(r row) bool {
		return e.only != nil && !e.only.MatchString(r.ID)
	})
}

func (e *engine) measure(ctx context.Context, g group, rows []row) (map[string]sideResult, error) {
	needed := map[string]bool{}
	for _, r := range rows {
		needed[r.Side] = true
		needed[r.Beside] = true
	}
	got := map[string]sideResult{}
	var errs []error
	for round := range e.runs {
		for _, s := range g.sides {
			if !needed[s.name] || got[s.name].note != "" {
				continue
			}
			res := got[s.name]
			smp, err := measureOnce(ctx, s)
			var why skip
			switch {
			case ctx.Err() != nil:
				return got, nil // the caller says so
			case errors.As(err, &why):
				res.note = string(why)
			case err != nil:
				res.note = "failed"
				errs = append(errs, fmt.Errorf("%s: %s: %w", g.name, s.name, err))
			}
			if err != nil {
				fmt.Fprintf(e.log, "%s %d/%d: %s: %v\n", g.name, round+1, e.runs, s.name, err)
			} else {
				if res.samples == nil {
					res.samples = map[string][]float64{}
				}
				for metric, v := range smp {
					res.samples[metric] = append(res.samples[metric], v)
				}
				fmt.Fprintf(e.log, "%s %d/%d: %s: %s\n", g.name, round+1, e.runs, s.name, smp)
			}
			got[s.name] = res
		}
	}
	return got, errors.Join(errs...)
}

func measureOnce(ctx context.Context, s side) (sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, measureTimeout, fmt.Errorf("not done in %v", measureTimeout))
	defer cancel()
	smp, err := s.measure(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return smp, err
}

func (s sample) String() string {
	var parts []string
	for metric, v := range s {
		parts = append(parts, metric+" "+number(v))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
