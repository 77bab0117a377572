//go:build !linux

package mem

import (
	"fmt"
	"math"

	"github.com/telemap/telemap/backend"
)

// maxHeap keeps make from panicking; the Go heap ends well before.
const maxHeap = min(math.MaxInt/2, 1<<40)

// allocate takes the whole region from the Go heap. Most systems provide the
// pages with the first write.
func allocate(size int64) ([]byte, error) {
	if size > maxHeap {
		return nil, fmt.Errorf("allocate %d bytes of memory: %w", size, backend.ErrNoSpace)
	}
	return make([]byte, size), nil
}

func release(p []byte) error {
	clear(p)
	return nil
}

func free([]byte) error { return nil }
