package pager

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/region"
)

// newMemStore maps a memfd: shared memory that takes space only where it was
// touched, and that a view can map or splice from.
func newMemStore(size int64) (store, error) {
	if size > math.MaxInt {
		return nil, fmt.Errorf("region of %d bytes: it does not fit the address space", size)
	}
	fd, err := unix.MemfdCreate("telemap-pager", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create a memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:telemap-pager")
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("size a memfd to %d bytes: %w", size, err), f.Close())
	}
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map a memfd of %d bytes: %w", size, err), f.Close())
	}
	return &memStore{
		mem:    mem,
		filler: func(p []byte, off int64) error { _, err := f.WriteAt(p, off); return err },
		punch:  func(r region.Range) error { return punchHole(f, r) },
		free:   func() error { return errors.Join(unix.Munmap(mem), f.Close()) },
	}, nil
}

// punchHole frees r of f, which then reads as zeros; see fallocate(2).
func punchHole(f *os.File, r region.Range) error {
	if r.Empty() {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Len)
	if err != nil {
		return fmt.Errorf("punch a hole %v in %s: %w", r, f.Name(), err)
	}
	return nil
}
