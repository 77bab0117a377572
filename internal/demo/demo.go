package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// Options say what the demo uses.
type Options struct {
	// Program is the telemap executable whose serve and mount commands are run.
	Program string
	// Input is a file whose bytes fill the region. Empty means the Go tree if there
	// is one, else Program.
	Input string
	// Size is the region's length in bytes. Zero means the length of Input, or 256
	// MiB and a bit without one.
	Size int64
	// Out gets the story and the table.
	Out io.Writer
	// FUSE is nil if files can be mounted here, else why not. Then the demo uses
	// the library instead of a mounted file.
	FUSE error
}

// defaultSize is no multiple of a chunk, a page or a sector.
const defaultSize = 256<<20 + 12_345

// Figures is what the demo measured.
type Figures struct {
	Size            int64
	Open            time.Duration
	FirstP50        time.Duration
	FirstP99        time.Duration
	ReadPerSecond   float64 // bytes
	RereadPerSecond float64
	WritePerSecond  float64
	Fetched, Pushed int64
	Hits, Misses    int64
}

// A user is a region as the demo uses it.
type user interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Map writes p at off through a shared mapping, or by WriteAt where there is
	// none; mapped says which.
	Map(p []byte, off int64) (mapped bool, err error)
	Sync() error
	// Close ends the use and returns what the mount counted.
	Close() (counts, error)
}

type counts struct {
	Fetched int64 `json:"fetched_bytes"`
	Pushed  int64 `json:"pushed_bytes"`
	Hits    int64 `json:"hits"`
	Misses  int64 `json:"misses"`
}

// Run acts the demo out. It returns nil only if every check held.
func Run(ctx context.Context, o Options) (err error) {
	d := &demo{o: o}
	if d.dir, err = os.MkdirTemp("", "telemap-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	if err := d.run(ctx); err != nil {
		return err
	}
	d.table()
	return nil
}

type demo struct {
	o     Options
	dir   string
	model []byte // what the region must hold
	fig   Figures
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.o.Out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (err error) {
	backing := filepath.Join(d.dir, "region")
	if err := d.build(ctx, backing); err != nil {
		return fmt.Errorf("build the region: %w", err)
	}
	d.fig.Size = int64(len(d.model))
	sum := sha256.Sum256(d.model)
	d.say("region     %s of real bytes (%d, no multiple of the chunk), sha256 %x…", humanize.IBytes(uint64(len(d.model))), len(d.model), sum[:6])

	s, err := d.serve(ctx, backing)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	d.say("serve      %s, by process %d", s.url, s.pid())

	if err := d.latency(ctx, s.url); err != nil {
		return fmt.Errorf("first bytes: %w", err)
	}
	start := time.Now()
	u, err := d.use(ctx, s.url, true)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	d.fig.Open = time.Since(start)
	if f, ok := u.(*fileUser); ok {
		d.fig.Open = f.open
		d.say("mount      %s, by process %d", f.f.Name(), f.proc.pid())
	} else {
		d.say("mount      no FUSE here (%v): the library's pager serves this process instead", d.o.FUSE)
	}
	if err := d.work(u, sum); err != nil {
		_, cerr := u.Close()
		return errors.Join(err, cerr)
	}
	c, err := u.Close()
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	d.fig.Fetched, d.fig.Pushed, d.fig.Hits, d.fig.Misses = c.Fetched, c.Pushed, c.Hits, c.Misses
	d.say("unmount    clean")
	return d.compare(backing, "after unmounting")
}

// latency measures reads of bytes that are nowhere near.
func (d *demo) latency(ctx context.Context, url string) error {
	u, err := d.use(ctx, url, false)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 2))
	var took []time.Duration
	buf := make([]byte, 4096)
	seen := map[int64]bool{}
	for range min(400, len(d.model)/(256<<10)) {
		off := r.Int64N(int64(len(d.model))/(256<<10)) * (256 << 10)
		if seen[off] {
			continue
		}
		seen[off] = true
		start := time.Now()
		if _, err := u.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			_, cerr := u.Close()
			return errors.Join(err, cerr)
		}
		took = append(took, time.Since(start))
		if !bytes.Equal(buf, d.model[off:off+4096]) {
			_, cerr := u.Close()
			return errors.Join(fmt.Errorf("wrong bytes at %d", off), cerr)
		}
	}
	slices.Sort(took)
	if len(took) > 0 {
		d.fig.FirstP50, d.fig.FirstP99 = took[len(took)/2], took[len(took)*99/100]
	}
	_, err = u.Close()
	return err
}

func (d *demo) work(u user, want [sha256.Size]byte) error {
	size := int64(len(d.model))
	for _, pass := range []*float64{&d.fig.ReadPerSecond, &d.fig.RereadPerSecond} {
		h := sha256.New()
		var reading time.Duration
		buf := make([]byte, 1<<20)
		for off := int64(0); off < size; {
			start := time.Now()
			n, err := u.ReadAt(buf, off)
			reading += time.Since(start)
			if n == 0 {
				return fmt.Errorf("read at %d: %w", off, err)
			}
			h.Write(buf[:n])
			off += int64(n)
		}
		*pass = float64(size) / reading.Seconds()
		if got := [sha256.Size]byte(h.Sum(nil)); got != want {
			return fmt.Errorf("read everything: sha256 is %x, want %x", got, want)
		}
	}
	d.say("read       all of it, twice: sha256 is right")

	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	buf := make([]byte, 100_000)
	for range 500 {
		off := r.Int64N(size)
		n, err := u.ReadAt(buf[:1+r.IntN(len(buf))], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read at random: %w", err)
		}
		if !bytes.Equal(buf[:n], d.model[off:off+int64(n)]) {
			return fmt.Errorf("read at random: wrong bytes in [%d,%d)", off, off+int64(n))
		}
	}
	d.say("random     500 reads of odd lengths at odd offsets: right")
	return d.write(u, r)
}

func (d *demo) write(u user, r *rand.Rand) error {
	size := int64(len(d.model))
	// One write of a fair length for the figure, then the awkward ones.
	start := time.Now()
	var wrote int64
	big := min(size, 64<<20)
	for off := int64(0); off < big; off += 1 << 20 {
		p := d.model[off:min(off+1<<20, big)]
		scramble(p, r)
		if _, err := u.WriteAt(p, off); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		wrote += int64(len(p))
	}
	if err := u.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	d.fig.WritePerSecond = float64(wrote) / time.Since(start).Seconds()
	edges := []int64{0, 1, 4095, 65535, 65537, size / 2, size - 1}
	mapped := 0
	for i := range 200 {
		off := r.Int64N(size)
		if i < len(edges) {
			off = min(max(0, edges[i]), size-1)
		}
		p := d.model[off:min(size, off+1+r.Int64N(20_000))]
		scramble(p, r)
		if i%2 == 0 {
			if _, err := u.WriteAt(p, off); err != nil {
				return fmt.Errorf("write at %d: %w", off, err)
			}
			continue
		}
		viaMap, err := u.Map(p, off)
		if err != nil {
			return fmt.Errorf("write through a mapping at %d: %w", off, err)
		}
		if viaMap {
			mapped++
		}
	}
	if err := u.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	d.say("write      %s and 200 odd pieces, %d of them through a shared mapping; synced", humanize.IBytes(uint64(wrote)), mapped)
	return d.compare(filepath.Join(d.dir, "region"), "after the sync")
}

func scramble(p []byte, r *rand.Rand) {
	for i := range p {
		p[i] ^= byte(i) ^ 0xA5
	}
	p[0] = byte(r.Uint32())
}

// compare checks the server's own file.
func (d *demo) compare(path, when string) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, d.model) {
		return fmt.Errorf("%s the server's file differs from what was written", when)
	}
	d.say("check      the server's file, %s: every byte right", when)
	return nil
}

func (d *demo) table() {
	f := d.fig
	w := tabwriter.NewWriter(d.o.Out, 0, 0, 2, ' ', 0)
	rate := func(v float64) string { return humanize.Bytes(uint64(v)) + "/s" }
	fmt.Fprintln(w)
	for _, row := range [][2]string{
		{"open", f.Open.Round(10 * time.Microsecond).String()},
		{"first 4 KiB, p50 / p99", fmt.Sprintf("%v / %v", f.FirstP50.Round(time.Microsecond), f.FirstP99.Round(time.Microsecond))},
		{"read, cold", rate(f.ReadPerSecond)},
		{"read, warm", rate(f.RereadPerSecond)},
		{"write and sync", rate(f.WritePerSecond)},
		{"fetched / pushed", humanize.IBytes(uint64(f.Fetched)) + " / " + humanize.IBytes(uint64(f.Pushed))},
		{"reads that hit / waited", fmt.Sprintf("%d / %d", f.Hits, f.Misses)},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
	// The writer is the caller's; if it cannot be written to, the demo's result
	// still is its error.
	_ = w.Flush()
	d.say("\nevery check held")
}
