package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 {
		switch args[0] {
		case rawCommand:
			return rawServer(args[1])
		case mapCommand:
			return mapReader(args[1])
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.list {
		return list(os.Stdout, o.only)
	}
	return bench(o)
}

type options struct {
	size int64
	runs int
	only *regexp.Regexp
	list bool
	shm  string
	json string
	svg  string
}

func parse(args []string) (o options, err error) {
	o.size = 512 << 20
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.Func("size", "size of the regions (default 512MiB)", func(v string) (err error) {
		o.size, err = telemap.ParseSize(v)
		return err
	})
	f.IntVar(&o.runs, "runs", 5, "rounds, of which the median is taken")
	f.Func("only", "measure only rows whose id matches this regular expression", func(v string) (err error) {
		o.only, err = regexp.Compile(v)
		return err
	})
	f.BoolVar(&o.list, "list", false, "print the rows and measure nothing")
	f.StringVar(&o.shm, "tmpfs", "/dev/shm", "a directory in tmpfs for the files to be served")
	f.StringVar(&o.json, "json", "", "write every sample to this file")
	f.StringVar(&o.svg, "svg", "", "write a plot of the ratios to this file")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("what is %q? There are only flags; see --help", f.Arg(0))
	case o.runs < 1:
		return o, fmt.Errorf("--runs %d: at least 1", o.runs)
	case o.size < 4<<20 || o.size%(2<<20) != 0:
		return o, fmt.Errorf("--size %d: use a multiple of 2 MiB, at least 4 MiB", o.size)
	}
	return o, nil
}

func list(w io.Writer, only *regexp.Regexp) error {
	e := engine{only: only}
	var err error
	for _, g := range groups(&site{}) {
		for _, r := range e.chosen(g) {
			_, werr := fmt.Fprintf(w, "%-26s %s, beside %s\n", r.ID, r.What, strings.TrimSpace(r.Beside+" "+r.Target.text(r.Unit)))
			err = errors.Join(err, werr)
		}
	}
	return err
}

func bench(o options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fmt.Fprintf(os.Stderr, "building telemap, filling %d MiB\n", o.size>>20)
	s, err := openSite(ctx, o.shm, o.size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	rep := report{Time: time.Now(), Machine: thisMachine(), Size: o.size, Runs: o.runs}
	e := engine{runs: o.runs, only: o.only, log: os.Stderr}
	rep.Load = loadAverage(nil)
	results, err := e.run(ctx, groups(s))
	rep.Load = loadAverage(rep.Load)
	fmt.Printf("%s\n%d MiB, %d rounds, median [min–max], load average before and after %.1f\n\n", rep.Machine, o.size>>20, o.runs, rep.Load)
	err = errors.Join(err, writeTable(os.Stdout, results))
	if o.json != "" {
		err = errors.Join(err, writeFile(o.json, func(w io.Writer) error { return writeJSON(w, rep, results) }))
	}
	if o.svg != "" {
		err = errors.Join(err, writeFile(o.svg, func(w io.Writer) error { return writeSVG(w, rep, results) }))
	}
	return err
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func thisMachine() machine {
	m := machine{CPU: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	info, _ := os.ReadFile("/proc/cpuinfo") // the architecture must do without
	for l := range strings.Lines(string(info)) {
		if key, v, _ := strings.Cut(l, ":"); strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	return m
}

// loadAverage appends the load average of the last minute, if there is one.
func loadAverage(to []float64) []float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return to
	}
	var v float64
	if _, err := fmt.Sscan(string(text), &v); err != nil {
		return to
	}
	return append(to, v)
}
