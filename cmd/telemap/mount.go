package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/mount"
	"github.com/telemap/telemap/pager"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/view/file"
)

const mountHelp = `Mount shows BACKEND as a regular file that any program can read, write and map.
If PATH is a directory the file appears inside it under the region's name; otherwise
exactly at PATH, whether or not something is there.

A managed mount, the default, fetches what is touched, pulls the rest in the
background and pushes writes every --push-interval and on fsync(2). With --cache the
local copy lives in a directory, and writes that have not been pushed survive even
kill -9: mount again with the same directory. With --direct nothing is kept here and
writes go straight through.

It serves until SIGINT or SIGTERM, or until the file is unmounted; then it flushes.
If programs still have the file open it waits --grace for them. A second signal
stops at once: what was not flushed is lost, except in a --cache.`

const mountExamples = `  # A region of another host as ./disk
  telemap mount tcp://storage:7070/disk.img ./disk

  # Everything local before anything is served, with a bar
  telemap mount tcp://storage:7070/disk.img /mnt --pull-first --progress

  # Survive crashes, push every second
  telemap mount tcp://storage:7070/db ./db --cache /var/cache/telemap/db --push-interval 1s

  # Look, do not touch, keep nothing here
  telemap mount tcp://storage:7070/disk.img ./disk --direct --read-only`

type mountFlags struct {
	direct, readOnly, progress bool
	noPull, pullFirst          bool
	cache                      string
	name                       string
	chunk, size                sizeFlag
	pullWorkers, pushWorkers   int
	pushInterval               time.Duration
	retry, grace               time.Duration
	metrics                    string
	insecure, json             bool
}

func newMount(g *global) *cobra.Command {
	f := &mountFlags{}
	c := &cobra.Command{
		Use:     "mount BACKEND PATH",
		Short:   "Show a backend as a local file",
		Long:    mountHelp,
		Example: mountExamples,
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := g.logger(c, c.ErrOrStderr())
			if err != nil {
				return err
			}
			return f.run(c, args[0], args[1], log)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&f.direct, "direct", false, "no local copy: reads and writes go straight to the backend")
	fl.BoolVar(&f.readOnly, "read-only", false, "refuse writes")
	fl.StringVar(&f.cache, "cache", "", "keep the local copy in this directory (default: in memory)")
	fl.StringVar(&f.name, "name", "", "file name inside PATH if that is a directory (default: from the URL)")
	fl.Var(&f.chunk, "chunk", "unit of fetching and pushing, 4KiB to 4MiB (default 64 KiB)")
	fl.Var(&f.size, "size", "size of a file or directory to be made if it does not exist")
	fl.IntVar(&f.pullWorkers, "pull-workers", 0, "ranges pulled at once (default 8)")
	fl.BoolVar(&f.noPull, "no-pull", false, "fetch on demand only")
	fl.BoolVar(&f.pullFirst, "pull-first", false, "pull everything before the file appears")
	fl.IntVar(&f.pushWorkers, "push-workers", 0, "ranges pushed at once (default 4)")
	fl.DurationVar(&f.pushInterval, "push-interval", 0, "time between background pushes (default 5s)")
	fl.DurationVar(&f.retry, "retry", 0, "how long an operation is tried again while the other side is gone, before it fails (default 30s)")
	fl.DurationVar(&f.grace, "grace", 10*time.Second, "how long to wait at the end for programs that have the file open")
	fl.BoolVar(&f.progress, "progress", false, "show how much is local: a bar on a terminal, lines elsewhere")
	fl.StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics at http://ADDR/metrics")
	fl.BoolVar(&f.insecure, "insecure", false, "allow --metrics beyond this host")
	fl.BoolVar(&f.json, "json", false, "print what happens as JSON lines")
	for _, managed := range []string{"cache", "chunk", "pull-workers", "no-pull", "pull-first", "push-workers", "push-interval", "progress"} {
		c.MarkFlagsMutuallyExclusive("direct", managed)
	}
	c.MarkFlagsMutuallyExclusive("no-pull", "pull-first")
	return c
}

func (f *mountFlags) options(log *slog.Logger) mount.Options {
	return mount.Options{
		Name: f.name, Direct: f.direct, ReadOnly: f.readOnly, Logger: log,
		Pager: pager.Options{
			ChunkSize: int64(f.chunk), Dir: f.cache,
			Pull: pager.PullOptions{Off: f.noPull, First: f.pullFirst, Workers: f.pullWorkers},
			Push: pager.PushOptions{Workers: f.pushWorkers, Interval: f.pushInterval},
		},
	}
}

func (f *mountFlags) run(c *cobra.Command, rawURL, path string, log *slog.Logger) error {
	ctx := c.Context()
	start := time.Now()
	opener := telemap.Opener{ReadOnly: f.readOnly, Create: int64(f.size), RetryBudget: f.retry, Logger: log}
	b, err := opener.Open(ctx, rawURL)
	if err != nil {
		return err
	}
	o := f.options(log)
	if o.Name == "" {
		o.Name = telemap.Name(rawURL)
	}
	o.Pager.Name = telemap.Redact(rawURL)
	bar := newProgress(c.ErrOrStderr(), f.progress, "pulling", b.Size())
	local := &localCounter{bar: bar}
	if f.progress {
		o.Pager.Hooks.ChunkLocal = local.add
	}
	m, err := mount.Open(ctx, b, path, o)
	if err != nil {
		bar.finish(false)
		return errors.Join(err, b.Close())
	}
	if err := f.announce(c.OutOrStdout(), m, rawURL, time.Since(start)); err != nil {
		return errors.Join(err, f.unmount(m, io.Discard))
	}

	g, ctx := errgroup.WithContext(ctx)
	if f.metrics != "" {
		err = serveMetrics(ctx, g, f.metrics, f.insecure, log, &mountMetrics{m})
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case <-m.Done():
			log.Info("unmounted from outside, flushing", "path", m.Path())
		}
	}
	bar.finish(local.complete())
	err = errors.Join(err, f.unmount(m, c.OutOrStdout()))
	if f.metrics != "" {
		return errors.Join(err, g.Wait())
	}
	return err
}

// mountEvent is a line of --json.
type mountEvent struct {
	Event string `json:"event"` // mounted, busy, unmounted
	Path  string `json:"path"`
	*mountedEvent
	Busy  string       `json:"busy,omitempty"`
	Pager *pager.Stats `json:"pager,omitempty"`
	View  *file.Stats  `json:"view,omitempty"`
}

type mountedEvent struct {
	Backend  string  `json:"backend"`
	Size     int64   `json:"size_bytes"`
	Direct   bool    `json:"direct"`
	ReadOnly bool    `json:"read_only"`
	Cache    string  `json:"cache,omitempty"`
	Open     float64 `json:"open_seconds"`
}

func (f *mountFlags) announce(w io.Writer, m *mount.Mount, rawURL string, took time.Duration) error {
	if f.json {
		return json.NewEncoder(w).Encode(mountEvent{Event: "mounted", Path: m.Path(), mountedEvent: &mountedEvent{
			telemap.Redact(rawURL), m.Size(), f.direct, f.readOnly, f.cache, took.Seconds(),
		}})
	}
	how := "managed"
	switch {
	case f.direct:
		how = "direct"
	case f.cache != "":
		how = "managed, cache in " + f.cache
	}
	if f.readOnly {
		how += ", read-only"
	}
	_, err := fmt.Fprintf(w, "mounted %s at %s (%s, %s)\n", telemap.Redact(rawURL), m.Path(), humanize.IBytes(uint64(m.Size())), how)
	return err
}

// unmount closes m, waiting a while for programs that use the file.
func (f *mountFlags) unmount(m *mount.Mount, w io.Writer) error {
	// No deadline here: flushing takes what it takes, each operation bounded by
	// the retry budget, and a second signal ends it.
	err := m.Close(context.Background())
	if errors.Is(err, file.ErrBusy) {
		if f.json {
			_ = json.NewEncoder(w).Encode(mountEvent{Event: "busy", Path: m.Path(), Busy: err.Error()})
		} else {
			fmt.Fprintf(w, "%v; waiting %v\n", err, f.grace)
		}
		ctx, cancel := context.WithTimeout(context.Background(), f.grace)
		defer cancel()
		err = m.Detach(ctx)
	}
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	if f.json {
		e := mountEvent{Event: "unmounted", Path: m.Path()}
		if p := m.Pager(); p != nil {
			s := p.Stats()
			e.Pager = &s
		}
		v := m.View().Stats()
		e.View = &v
		return json.NewEncoder(w).Encode(e)
	}
	fmt.Fprintf(w, "unmounted %s\n", m.Path())
	return nil
}

// A localCounter turns the pager's news into progress.
type localCounter struct {
	bar   *progress
	bytes atomic.Int64
}

func (l *localCounter) add(r region.Range) { l.bar.set(l.bytes.Add(r.Len)) }
func (l *localCounter) complete() bool     { return l.bytes.Load() >= l.bar.total }
