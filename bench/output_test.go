package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func sampleResults() []result {
	sides := map[string]sideResult{
		"managed": {samples: map[string][]float64{"GB/s": {2.1, 2.5, 1.9}, "p50": {41, 42, 40}}},
		"nbdfuse": {samples: map[string][]float64{"GB/s": {1, 1.25, 0.95}, "p50": {80, 84, 80}}},
		"absent":  {note: "not <installed>"},
	}
	var results []result
	for _, r := range []row{
		{"read/managed", "cold read", "managed", "GB/s", "GB/s", "nbdfuse", target{AtLeast: 2}},
		{"first/managed", "first 4 KiB & p50", "managed", "p50", "µs", "nbdfuse", target{AtMost: 0.5, Limit: 60}},
		{"first/absent", "absent peer", "managed", "p50", "µs", "absent", target{AtMost: 0.5}},
		{"open/managed", "no peer", "managed", "p50", "ms", "", target{Limit: 3}},
	} {
		results = append(results, join(r, sides))
	}
	return results
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := writeTable(&b, sampleResults()); err != nil {
		t.Fatal(err)
	}
	const want = `
what               figure                 beside                    ratio             target

cold read          2.10 [1.90–2.50] GB/s  nbdfuse 1.00 [0.95–1.25]  2.00 [2.00–2.10]  ≥ 2             met

first 4 KiB & p50  41.0 [40.0–42.0] µs    nbdfuse 80.0 [80.0–84.0]  0.50 [0.50–0.51]  ≤ 0.5, ≤ 60 µs  met
absent peer        41.0 [40.0–42.0] µs    absent                                      ≤ 0.5           unknown (absent: not <installed>)

no peer            41.0 [40.0–42.0] ms                                                ≤ 3 ms          missed
`
	if got := "\n" + b.String(); got != want {
		t.Errorf("table:%s\nwant:%s", got, want)
	}
}

func TestNumberHasThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 0.707: "0.71", 9.99: "9.99", 41.26: "41.3", 807.4: "807"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q; want %q", v, got, want)
		}
	}
}

func TestSVGIsWellFormedAndShowsEveryRatio(t *testing.T) {
	var b bytes.Buffer
	if err := writeSVG(&b, report{Machine: machine{CPU: "A&B <C>", CPUs: 2}, Size: 1 << 20, Runs: 3}, sampleResults()); err != nil {
		t.Fatal(err)
	}
	if !utf8.Valid(b.Bytes()) {
		t.Error("the plot is not UTF-8")
	}
	bars := 0
	d := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the plot is no XML: %v\n%s", err, b.String())
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars != 1+2 { // the background, and the two rows that have a ratio
		t.Errorf("%d rectangles; want 3", bars)
	}
	for _, want := range []string{"2.00 × nbdfuse, ≥ 2: met", "target ≤ 0.5", "first 4 KiB &amp; p50", "A&amp;B &lt;C&gt;"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the plot lacks %q", want)
		}
	}
}

func TestSVGCutsLongBars(t *testing.T) {
	if got, want := plotX(100), float64(plotLabels+plotBars); got != want {
		t.Errorf("plotX(100) = %v; want %v", got, want)
	}
}

func TestJSONHoldsEverySample(t *testing.T) {
	var b bytes.Buffer
	if err := writeJSON(&b, report{Runs: 3}, sampleResults()); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rows []struct {
			ID      string
			Verdict string
			Figure  struct{ Samples []float64 }
		}
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Rows) != 4 || got.Rows[0].ID != "read/managed" || got.Rows[0].Verdict != "met" || len(got.Rows[0].Figure.Samples) != 3 {
		t.Errorf("rows = %+v", got.Rows)
	}
}
