package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/mount"
	"github.com/telemap/telemap/pager"
)

// openTimes is how often opening is repeated within a round.
const openTimes = 10

// openLibrary times telemap.Mount, the dial included, until the file is open.
func (s *site) openLibrary(ctx context.Context, o mount.Options) (sample, error) {
	if err := needFUSE(); err != nil {
		return nil, err
	}
	url, err := s.serveFile(s.source.path)
	if err != nil {
		return nil, err
	}
	var times []float64
	for range openTimes {
		took, err := s.openOnce(ctx, url, o)
		if err != nil {
			return nil, err
		}
		times = append(times, milliseconds(took))
	}
	return sample{"open": percentile(times, 50)}, nil
}

func (s *site) openOnce(ctx context.Context, url string, o mount.Options) (took time.Duration, err error) {
	path := s.fresh("library")
	s.mounted(path, true)
	begin := time.Now()
	m, err := telemap.Mount(ctx, url, path, o)
	if err != nil {
		return 0, err
	}
	f, err := os.Open(m.Path())
	took = time.Since(begin)
	if err == nil {
		err = f.Close()
	}
	if err = errors.Join(err, m.Close(ctx)); err == nil {
		s.mounted(path, false)
	}
	return took, err
}

// openCommand takes the time that the command reports, and the time from before
// the start of its process.
func (s *site) openCommand(mount func() (*mounted, error)) (sample, error) {
	var open, ready []float64
	for range openTimes {
		m, err := mount()
		if err != nil {
			return nil, err
		}
		open = append(open, milliseconds(m.open))
		ready = append(ready, milliseconds(m.ready))
		if err := m.close(); err != nil {
			return nil, err
		}
	}
	return sample{"open": percentile(open, 50), "ready": percentile(ready, 50)}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// remote opens the source through loopback TCP and runs f on it.
func (s *site) remote(ctx context.Context, f func(b backend.Backend) (sample, error)) (smp sample, err error) {
	url, err := s.serveFile(s.source.path)
	if err != nil {
		return nil, err
	}
	b, err := telemap.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return f(b)
}

// pagerRead times a cold sequential read through a pager over loopback TCP, dial
// included.
func (s *site) pagerRead(ctx context.Context, o pager.Options) (smp sample, err error) {
	url, err := s.serveFile(s.source.path)
	if err != nil {
		return nil, err
	}
	buf := touched(readBlock)
	begin := time.Now()
	b, err := telemap.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	p, err := pager.Open(ctx, b, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close(ctx)) }()
	return s.timeReader(ctx, begin, p, buf)
}

// backendRead is pagerRead without a pager.
func (s *site) backendRead(ctx context.Context) (smp sample, err error) {
	url, err := s.serveFile(s.source.path)
	if err != nil {
		return nil, err
	}
	buf := touched(readBlock)
	begin := time.Now()
	b, err := telemap.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return s.timeReader(ctx, begin, b, buf)
}

// A reader is what a pager and a backend have in common here.
type reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

func (s *site) timeReader(ctx context.Context, begin time.Time, r reader, buf []byte) (sample, error) {
	var t trace
	for t.off < s.size {
		n, err := r.ReadAt(ctx, buf[:min(int64(len(buf)), s.size-t.off)], t.off)
		if err != nil {
			return nil, err
		}
		t.add(buf[:n])
	}
	took := time.Since(begin)
	if t != traceOf(s.source.data, 0, s.size) {
		return nil, errors.New("read: wrong bytes")
	}
	return throughput(s.size, took), nil
}

// hits is how many reads a round of the hit rows makes.
const hits = 200_000

// pagerHit times reads of 4 KiB that are local, at random places.
func (s *site) pagerHit(ctx context.Context) (sample, error) {
	return s.remote(ctx, func(b backend.Backend) (smp sample, err error) {
		p, err := pager.Open(ctx, b, pager.Options{Pull: pager.PullOptions{First: true}})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, p.Close(ctx)) }()
		return s.hit(func(buf []byte, off int64) (int, error) { return p.ReadAt(ctx, buf, off) })
	})
}

// tmpfsHit is the same by pread(2) on the file in tmpfs.
func (s *site) tmpfsHit(context.Context) (sample, error) {
	f, err := os.Open(s.source.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f.Fd())
	return s.hit(func(buf []byte, off int64) (int, error) { return unix.Pread(fd, buf, off) })
}

func (s *site) hit(read func(p []byte, off int64) (int, error)) (sample, error) {
	buf := touched(page)
	offs := make([]int64, hits)
	for i := range offs {
		offs[i] = rand.Int64N(s.size/page) * page
	}
	var sum, want uint64
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	for _, off := range offs {
		if n, err := read(buf, off); n != page || err != nil {
			return nil, fmt.Errorf("read 4 KiB at %d: %d bytes, %w", off, n, err)
		}
		sum += uint64(buf[page-1])
	}
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	for _, off := range offs {
		want += uint64(s.source.data[off+page-1])
	}
	if sum != want {
		return nil, errors.New("local reads: wrong bytes")
	}
	return sample{
		"ns/op":     float64(took.Nanoseconds()) / hits,
		"allocs/op": float64(after.Mallocs-before.Mallocs) / hits,
	}, nil
}

// backendLatency is the latency of a page from the backend, without a mount.
func (s *site) backendLatency(ctx context.Context) (sample, error) {
	return s.remote(ctx, func(b backend.Backend) (sample, error) {
		return s.latency(func(p []byte, off int64) (int, error) { return b.ReadAt(ctx, p, off) })
	})
}

// pagerLatency is the same through a pager that pulls nothing.
func (s *site) pagerLatency(ctx context.Context) (sample, error) {
	return s.remote(ctx, func(b backend.Backend) (smp sample, err error) {
		p, err := pager.Open(ctx, b, pager.Options{Pull: pager.PullOptions{Off: true}})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, p.Close(ctx)) }()
		return s.latency(func(buf []byte, off int64) (int, error) { return p.ReadAt(ctx, buf, off) })
	})
}
