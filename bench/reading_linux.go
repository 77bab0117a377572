package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// readBlock is how much one read(2) asks for.
const readBlock = 1 << 20

// throughput is the sample of n bytes in d.
func throughput(n int64, d time.Duration) sample {
	return sample{"GB/s": float64(n) / 1e9 / d.Seconds()}
}

// touched is a buffer whose pages are there.
func touched(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += page {
		b[i] = 1
	}
	return b
}

// readAll times reading all of the file at path by read(2), open included.
func (s *site) readAll(path string) (time.Duration, error) {
	buf := touched(readBlock)
	var t trace
	begin := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		n, err := f.Read(buf)
		t.add(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	took := time.Since(begin)
	if t != traceOf(s.source.data, 0, s.size) {
		return 0, fmt.Errorf("read %s: %d wrong bytes", path, t.off)
	}
	return took, nil
}

// coldRead times the first read of all of m, then reads all again to compare.
func (s *site) coldRead(m *mounted) (sample, error) {
	took, err := s.readAll(m.path)
	if err != nil {
		return nil, err
	}
	return throughput(s.size, took), s.check(m.path)
}

// check compares all of the file at path with the source.
func (s *site) check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return compare(f, s.source.data)
}

// warmReads is how often a warm read is repeated within a round.
const warmReads = 5

// warmRead times reading what has just been read.
func (s *site) warmRead(path string) (sample, error) {
	if err := s.check(path); err != nil {
		return nil, err
	}
	var speeds []float64
	for range warmReads {
		took, err := s.readAll(path)
		if err != nil {
			return nil, err
		}
		speeds = append(speeds, throughput(s.size, took)["GB/s"])
	}
	return sample{"GB/s": percentile(speeds, 50)}, nil
}

// Latency is measured at one place of each slot, in the slot's first half, so
// that no two places are near each other.
const (
	latencySlot    = 1 << 20
	latencySamples = 512
)

// latency times read of 4 KiB at places far apart, in random order.
func (s *site) latency(read func(p []byte, off int64) (int, error)) (sample, error) {
	n := int(min(latencySamples, s.size/latencySlot))
	offs := make([]int64, n)
	for i, slot := range rand.Perm(int(s.size / latencySlot))[:n] {
		offs[i] = int64(slot)*latencySlot + rand.Int64N(latencySlot/2/page)*page
	}
	buf := touched(n * page)
	times := make([]float64, n)
	for i, off := range offs {
		begin := time.Now()
		got, err := read(buf[i*page:(i+1)*page], off)
		times[i] = float64(time.Since(begin)) / float64(time.Microsecond)
		if err != nil || got != page {
			return nil, fmt.Errorf("read 4 KiB at %d: %d bytes, %w", off, got, err)
		}
	}
	for i, off := range offs {
		if !bytes.Equal(buf[i*page:(i+1)*page], s.source.data[off:off+page]) {
			return nil, fmt.Errorf("read 4 KiB at %d: wrong bytes", off)
		}
	}
	return sample{"p50": percentile(times, 50), "p99": percentile(times, 99)}, nil
}

// fileLatency is the latency of pread(2) on a cold mount, with the advice that
// accesses will be random or without.
func (s *site) fileLatency(m *mounted, random bool) (sample, error) {
	f, err := os.Open(m.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f.Fd())
	if random {
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
			return nil, err
		}
	}
	return s.latency(func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) })
}

// mapCommand is the bench's own command for a process that reads a mapping.
const mapCommand = "map-reader"

// A mapReading is what such a process prints.
type mapReading struct {
	Nanoseconds int64
	Off         int64
	Sum         uint64
}

// mapReader maps the file at path and copies all of it out.
func mapReader(path string) (err error) {
	// A mount that goes away is a SIGBUS.
	debug.SetPanicOnFault(true)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("read the mapping of %s: %v", path, r)
		}
	}()
	buf := touched(64 << 10)
	var t trace
	begin := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for off := 0; off < len(data); off += len(buf) {
		t.add(buf[:copy(buf, data[off:])])
	}
	took := time.Since(begin)
	return json.NewEncoder(os.Stdout).Encode(mapReading{took.Nanoseconds(), t.off, t.sum})
}

// coldMap times reading all of m by a mapping of another process, one that can
// be killed while it waits in a page fault.
func (s *site) coldMap(ctx context.Context, m *mounted) (smp sample, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := s.start(ctx, self, mapCommand, m.path)
	if err != nil {
		return nil, err
	}
	defer s.ended(p)
	l, err := p.lineWithin(ctx, measureTimeout)
	if err != nil {
		p.kill()
		return nil, err
	}
	<-p.done
	var r mapReading
	if err := json.Unmarshal([]byte(l), &r); err != nil {
		return nil, err
	}
	if want := traceOf(s.source.data, 0, s.size); want != (trace{r.Off, r.Sum}) {
		return nil, errors.New("read a mapping: wrong bytes")
	}
	return throughput(s.size, time.Duration(r.Nanoseconds)), s.check(m.path)
}
