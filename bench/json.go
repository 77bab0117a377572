package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// A report is what --json writes.
type report struct {
	Time    time.Time `json:"time"`
	Machine machine   `json:"machine"`
	Size    int64     `json:"size_bytes"`
	Runs    int       `json:"runs"`
	// Load is the load average of the last minute, before and after. The bench
	// adds to it; much more than the number of CPUs means that others were busy.
	Load []float64  `json:"load,omitempty"`
	Rows []rowEntry `json:"rows"`
}

// A machine is where the figures come from.
type machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

type rowEntry struct {
	ID         string  `json:"id"`
	What       string  `json:"what"`
	Unit       string  `json:"unit"`
	Figure     *figure `json:"figure,omitempty"`
	Beside     string  `json:"beside,omitempty"`
	Other      *figure `json:"beside_figure,omitempty"`
	Ratio      *figure `json:"ratio,omitempty"`
	Target     target  `json:"target,omitzero"`
	TargetText string  `json:"target_text,omitempty"`
	Verdict    verdict `json:"verdict,omitempty"`
	Note       string  `json:"note,omitempty"`
}

func writeJSON(w io.Writer, rep report, results []result) error {
	for _, r := range results {
		rep.Rows = append(rep.Rows, rowEntry{
			r.ID, r.What, r.Unit, r.Figure, r.Beside, r.Other, r.Ratio, r.Target, r.Target.text(r.Unit), r.verdict(), r.Note,
		})
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(rep)
}

func (m machine) String() string {
	return fmt.Sprintf("%d × %s, Linux %s, %s", m.CPUs, m.CPU, m.Kernel, m.Go)
}
