package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/telemap/telemap/region"
)

// Options tune a [Pager]. The zero value is a good start.
type Options struct {
	// ChunkSize is the unit of fetching, pushing and dirty tracking in bytes, a
	// power of two in [region.MinChunkSize, region.MaxChunkSize]. Zero means 64
	// KiB.
	ChunkSize int64

	// ReadOnly refuses writes with region.ErrReadOnly.
	ReadOnly bool

	// Dir is a directory for the local copy. It is created if it does not exist;
	// one pager at a time can have it open. Empty keeps the copy in memory.
	Dir string

	// Name says whose bytes Dir holds, such as the backend's URL without
	// credentials. Opening a directory under another name is refused. It also
	// stands in log messages.
	Name string

	Pull PullOptions
	Push PushOptions

	Hooks Hooks

	// Logger gets warnings about background work. Nil discards them.
	Logger *slog.Logger
}

// PullOptions tune the background pull.
type PullOptions struct {
	// Off leaves every chunk to be fetched on demand.
	Off bool
	// Workers is how many ranges are fetched at once. Zero means 8.
	Workers int
	// First makes Open return only when every chunk is local.
	First bool
	// Ranges are pulled before the others, in their order, clipped to the region.
	Ranges []region.Range
	// Before orders all chunks: it reports whether chunk a is pulled before b.
	// Nil means ascending. It costs 8 bytes per chunk until the pull is done, and
	// is not used for chunks in Ranges.
	Before func(a, b region.ChunkIndex) bool
}

// PushOptions tune the background push.
type PushOptions struct {
	// Off leaves dirty chunks to Sync and Close.
	Off bool
	// Workers is how many ranges are pushed at once. Zero means 4.
	Workers int
	// Interval is the time between pushes. Zero means 5 seconds.
	Interval time.Duration
}

// Hooks are called at moments that a program may care about. Nil ones are
// skipped. They must not call Close or Sync of the same pager; BeforeSync and
// BeforeClose may read and write it, ChunkLocal may not.
type Hooks struct {
	// BeforeSync runs at the start of every Sync, the one of Close included, so
	// that a program can write what it still holds. Its error ends that Sync; Close
	// goes on and returns it.
	BeforeSync func(ctx context.Context) error
	// BeforeClose runs at the start of Close. Close goes on if it fails and
	// returns the error.
	BeforeClose func(ctx context.Context) error
	// ChunkLocal runs when chunks have become local, by a fetch or by a write
	// that covered them. It runs on the goroutine of the fetch or write; readers
	// of the chunks do not wait for it. It may be called concurrently.
	ChunkLocal func(r region.Range)
}

func (o Options) withDefaults() (Options, error) {
	if o.Pull.Workers < 0 {
		return o, fmt.Errorf("%d pull workers: the number cannot be negative", o.Pull.Workers)
	}
	if o.Push.Workers < 0 {
		return o, fmt.Errorf("%d push workers: the number cannot be negative", o.Push.Workers)
	}
	if o.Push.Interval < 0 {
		return o, fmt.Errorf("push interval %v: it cannot be negative", o.Push.Interval)
	}
	if o.Pull.Off && o.Pull.First {
		return o, errors.New("pull is off and first at once: choose one")
	}
	if o.Pull.Workers == 0 {
		o.Pull.Workers = 8
	}
	if o.Push.Workers == 0 {
		o.Push.Workers = 4
	}
	if o.Push.Interval == 0 {
		o.Push.Interval = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}
