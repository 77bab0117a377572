package mem

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/backend"
)

// allocate reserves address space whose pages come, zeroed, with the first write.
func allocate(size int64) ([]byte, error) {
	if size > math.MaxInt {
		return nil, backend.ErrNoSpace
	}
	data, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of memory: %w: %w", size, backend.ErrNoSpace, err)
	}
	return data, nil
}

// release gives pages back; they read as zeros. p starts at a page.
func release(p []byte) error { return unix.Madvise(p, unix.MADV_DONTNEED) }

func free(data []byte) error { return unix.Munmap(data) }
