package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// writeTable prints results in aligned columns, a blank line between groups.
func writeTable(w io.Writer, results []result) error {
	head := []string{"what", "figure", "beside", "ratio", "target", ""}
	lines := [][]string{head}
	for _, r := range results {
		lines = append(lines, cells(r))
	}
	widths := make([]int, len(head))
	for _, l := range lines {
		for i, c := range l {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	group := ""
	for i, l := range lines {
		if i > 0 {
			if g := groupOf(results[i-1].ID); g != group {
				group = g
				if _, err := fmt.Fprintln(w); err != nil {
					return err
				}
			}
		}
		var b strings.Builder
		for j, c := range l {
			b.WriteString(c)
			b.WriteString(strings.Repeat(" ", widths[j]-utf8.RuneCountInString(c)+2))
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

func groupOf(id string) string {
	g, _, _ := strings.Cut(id, "/")
	return g
}

func cells(r result) []string {
	c := []string{r.What, "–", "", "", r.Target.text(r.Unit), string(r.verdict())}
	if r.Figure != nil {
		c[1] = spread(r.Figure) + " " + r.Unit
	}
	if r.Beside != "" {
		c[2] = r.Beside
		if r.Other != nil {
			c[2] += " " + spread(r.Other)
		}
	}
	if r.Ratio != nil {
		c[3] = spread(r.Ratio)
	}
	if r.Note != "" {
		c[5] = strings.TrimSpace(c[5] + " (" + r.Note + ")")
	}
	return c
}

// spread is a figure as median [min–max].
func spread(f *figure) string {
	return fmt.Sprintf("%s [%s–%s]", number(f.Median), number(f.Min), number(f.Max))
}

// number is v with three digits that matter.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
