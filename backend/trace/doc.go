// Package trace tells what a backend is asked to do and how long that takes.
//
//	b := trace.New(remote, trace.Options{Logger: log})
//	fmt.Println(b.Stats().Read.Mean())
//
// Counters and latency histograms are always kept, at the cost of two clock
// readings and a few atomic additions; [Backend.Stats] is a snapshot of them in
// a form that exporters of metrics can use. Each operation is logged at debug
// level if the logger is enabled for it.
package trace
