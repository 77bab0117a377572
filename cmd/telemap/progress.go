package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// A progress shows how many bytes of a total are done: a bar on a terminal,
// elsewhere a line every few seconds and one at the end. Methods may be called
// concurrently.
type progress struct {
	w     io.Writer
	what  string
	total int64
	bar   *progressbar.ProgressBar // nil for lines

	mu    sync.Mutex
	last  time.Time
	done  int64
	quiet bool
}

const progressLineEvery = 2 * time.Second

func newProgress(w io.Writer, on bool, what string, total int64) *progress {
	p := &progress{w: w, what: what, total: total, last: time.Now(), quiet: !on}
	if f, ok := w.(*os.File); on && ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(w),
			progressbar.OptionSetDescription(what),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionFullWidth(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionOnCompletion(func() { fmt.Fprintln(w) }))
	}
	return p
}

// set says that done bytes of the total are done.
func (p *progress) set(done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quiet || done == p.done {
		return
	}
	p.done = done
	if p.bar != nil {
		// A bar that cannot be drawn is no reason to fail the work.
		_ = p.bar.Set64(done)
		return
	}
	if now := time.Now(); now.Sub(p.last) >= progressLineEvery {
		p.last = now
		p.lineLocked()
	}
}

func (p *progress) lineLocked() {
	fmt.Fprintf(p.w, "%s: %s of %s (%d%%)\n", p.what, humanize.IBytes(uint64(p.done)), humanize.IBytes(uint64(p.total)), 100*p.done/max(p.total, 1))
}

// finish ends the display; ok says that the total was reached.
func (p *progress) finish(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.quiet:
	case p.bar != nil && ok:
		_ = p.bar.Finish()
	case p.bar != nil:
		_ = p.bar.Exit()
		fmt.Fprintln(p.w)
	default:
		p.lineLocked()
	}
	p.quiet = true
}
