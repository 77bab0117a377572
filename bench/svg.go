package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// Sizes of the plot in pixels.
const (
	plotLabels = 330 // the column of names on the left
	plotBars   = 520
	plotRight  = 390 // figures and verdicts
	plotRow    = 26
	plotTop    = 84
	plotGap    = 12 // between groups
)

// plotMost is the largest ratio that a bar shows in full; a longer one is cut
// off and its number says how long it is.
const plotMost = 3.0

var plotColors = map[verdict]string{met: "#2e7d4f", missed: "#b3402e", unknown: "#9a9a9a", none: "#5b7a9d"}

// writeSVG plots the ratio of each row that has one as a bar with its least and
// greatest round, the targets as ticks.
func writeSVG(w io.Writer, rep report, results []result) error {
	var b strings.Builder
	y := plotTop
	group := ""
	for _, r := range results {
		if r.Ratio == nil {
			continue
		}
		if g := groupOf(r.ID); g != group {
			group = g
			y += plotGap
		}
		plotBar(&b, r, y)
		y += plotRow
	}
	height := y + plotGap
	width := plotLabels + plotBars + plotRight

	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#222222">
<rect width="%d" height="%d" fill="#ffffff"/>
<text x="16" y="26" font-size="16">telemap: figure divided by the one beside it</text>
<text x="16" y="46" fill="#666666">%s; %d MiB, median of %d rounds [min–max]</text>
%s%s</svg>
`, width, height, width, height, width, height, escape(rep.Machine.String()), rep.Size>>20, rep.Runs, plotAxis(height), b.String())
	return err
}

// plotX is where a ratio lies.
func plotX(ratio float64) float64 {
	return plotLabels + min(ratio, plotMost)/plotMost*plotBars
}

func plotAxis(height int) string {
	var b strings.Builder
	for ratio := 0.0; ratio <= plotMost; ratio += 0.5 {
		color := "#e4e4e4"
		if ratio == 1 {
			color = "#888888" // as good as what it stands beside
		}
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle" fill="#666666">%g</text>`+"\n",
			plotX(ratio), plotX(ratio), plotTop-8, height-plotGap, color, plotX(ratio), plotTop-14, ratio)
	}
	return b.String()
}

func plotBar(b *strings.Builder, r result, y int) {
	mid := y + plotRow/2
	v := r.verdict()
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", plotLabels-8, mid+4, escape(r.What))
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n",
		plotLabels, y+5, plotX(r.Ratio.Median)-plotLabels, plotRow-10, plotColors[v])
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#222222"/>`+"\n",
		plotX(r.Ratio.Min), plotX(r.Ratio.Max), mid, mid)
	for _, t := range []struct {
		ratio float64
		sign  string
	}{{r.Target.AtLeast, "≥"}, {r.Target.AtMost, "≤"}} {
		if t.ratio != 0 {
			fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#111111" stroke-width="3"><title>target %s %g</title></line>`+"\n",
				plotX(t.ratio), plotX(t.ratio), y+2, y+plotRow-2, t.sign, t.ratio)
		}
	}
	label := number(r.Ratio.Median) + " × " + r.Beside
	if v != none {
		label += ", " + r.Target.text(r.Unit) + ": " + string(v)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", plotLabels+plotBars+10, mid+4, escape(label))
}

func escape(s string) string {
	var b strings.Builder
	// A strings.Builder takes every write.
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}
