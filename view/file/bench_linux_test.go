package file

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/view"
)

const benchSize = 256 << 20

// sources are in memory, so that only the view costs.
func sources(b *testing.B) map[string]view.Source {
	v := newViewed(b, benchSize)
	testkit.Pattern(v.b, 0, 1)
	return map[string]view.Source{"copied": v.store, "viewed": v}
}

// drop empties the kernel's cache of the file.
func drop(b *testing.B, f *os.File) {
	b.Helper()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

func readAll(b *testing.B, f *os.File, buf []byte) {
	b.Helper()
	for off := int64(0); off < benchSize; off += int64(len(buf)) {
		if _, err := f.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkColdRead(b *testing.B) {
	for name, src := range sources(b) {
		for _, direct := range []bool{false, true} {
			b.Run(fmt.Sprintf("source=%s/direct=%t", name, direct), func(b *testing.B) {
				_, path := show(b, src, Options{Direct: direct})
				f := openFile(b, path, os.O_RDONLY)
				defer f.Close()
				buf := make([]byte, 1<<20)
				b.SetBytes(benchSize)
				for b.Loop() {
					b.StopTimer()
					drop(b, f)
					b.StartTimer()
					readAll(b, f, buf)
				}
			})
		}
	}
}

// The kernel reads ahead of a sequential reader, and around the first touch of a
// mapping.
func BenchmarkReadAhead(b *testing.B) {
	src := sources(b)["viewed"]
	for _, kib := range []int64{128, 256, 512, 1024, 2048, 4096} {
		b.Run(fmt.Sprintf("ahead=%dK", kib), func(b *testing.B) {
			_, path := show(b, src, Options{ReadAhead: kib << 10})
			f := openFile(b, path, os.O_RDONLY)
			defer f.Close()
			buf := make([]byte, 1<<20)
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				drop(b, f)
				b.StartTimer()
				readAll(b, f, buf)
			}
			drop(b, f)
			b.ReportMetric(float64(childPrints(b, "touch-random", path))/1e3, "touch-p50-µs")
			drop(b, f)
			b.ReportMetric(benchSize*1e3/float64(childPrints(b, "touch", path)), "mmap-MB/s")
		})
	}
}

// childPrints runs a child that prints a number of nanoseconds.
func childPrints(b *testing.B, what, path string) int64 {
	b.Helper()
	ns, err := strconv.ParseInt(strings.TrimSpace(runChild(b, what, path)), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return ns
}

// A child process maps the file and touches every page for the first time.
func BenchmarkColdMmap(b *testing.B) {
	for name, src := range sources(b) {
		b.Run("source="+name, func(b *testing.B) {
			_, path := show(b, src, Options{})
			f := openFile(b, path, os.O_RDONLY)
			defer f.Close()
			var total time.Duration
			var n int
			for b.Loop() {
				drop(b, f)
				total += time.Duration(childPrints(b, "touch", path))
				n++
			}
			b.ReportMetric(float64(n)*benchSize/1e6/total.Seconds(), "MB/s")
		})
	}
}

// The first 4 KiB that a program reads.
func BenchmarkFirst4K(b *testing.B) {
	for name, src := range sources(b) {
		b.Run("source="+name, func(b *testing.B) {
			_, path := show(b, src, Options{})
			f := openFile(b, path, os.O_RDONLY)
			defer f.Close()
			// Without read-ahead, or this would measure that.
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 4096)
			var took []time.Duration
			for b.Loop() {
				if len(took)%4096 == 0 {
					drop(b, f)
				}
				off := rand.Int64N(benchSize/4096) * 4096
				start := time.Now()
				if _, err := f.ReadAt(buf, off); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
		})
	}
}

// Everything is in the kernel's cache, beside the same on tmpfs.
func BenchmarkWarmRead(b *testing.B) {
	run := func(b *testing.B, f *os.File) {
		buf := make([]byte, 1<<20)
		readAll(b, f, buf)
		b.SetBytes(benchSize)
		for b.Loop() {
			readAll(b, f, buf)
		}
	}
	src := sources(b)["viewed"]
	b.Run("view", func(b *testing.B) {
		_, path := show(b, src, Options{})
		f := openFile(b, path, os.O_RDONLY)
		defer f.Close()
		run(b, f)
	})
	b.Run("tmpfs", func(b *testing.B) {
		fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
		if err != nil {
			b.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		defer f.Close()
		if _, err := f.Write(make([]byte, benchSize)); err != nil {
			b.Fatal(err)
		}
		run(b, f)
	})
}

// A child process dirties every page of a shared mapping, in the cache, and syncs.
func BenchmarkMmapWrite(b *testing.B) {
	for name, src := range sources(b) {
		b.Run("source="+name, func(b *testing.B) {
			_, path := show(b, src, Options{})
			f := openFile(b, path, os.O_RDONLY)
			defer f.Close()
			readAll(b, f, make([]byte, 1<<20))
			var total time.Duration
			var n int
			for b.Loop() {
				total += time.Duration(childPrints(b, "dirty", path))
				n++
			}
			b.ReportMetric(float64(n)*benchSize/1e6/total.Seconds(), "MB/s")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	src := sources(b)["copied"]
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		for _, direct := range []bool{false, true} {
			b.Run(fmt.Sprintf("size=%dK/direct=%t", n>>10, direct), func(b *testing.B) {
				_, path := show(b, src, Options{Direct: direct})
				f := openFile(b, path, os.O_RDWR)
				defer f.Close()
				buf := make([]byte, n)
				var off int64
				b.SetBytes(int64(n))
				for b.Loop() {
					if _, err := f.WriteAt(buf, off); err != nil {
						b.Fatal(err)
					}
					off = (off + int64(n)) % benchSize
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	testkit.NeedFUSE(b)
	path := filepath.Join(b.TempDir(), "f")
	src := newStore(1 << 20)
	var closing time.Duration
	var n int
	for b.Loop() {
		v, err := Open(context.Background(), src, path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		start := time.Now()
		if err := v.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
		closing += time.Since(start)
		n++
		b.StartTimer()
	}
	b.ReportMetric(closing.Seconds()*1e3/float64(n), "close-ms")
}
