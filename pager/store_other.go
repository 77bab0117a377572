//go:build !linux

package pager

import (
	"errors"
	"os"

	"github.com/telemap/telemap/region"
)

func newMemStore(size int64) (store, error) {
	mem := make([]byte, size)
	return &memStore{
		mem:    mem,
		filler: func(p []byte, off int64) error { copy(mem[off:], p); return nil },
		punch:  func(r region.Range) error { clear(mem[r.Off:r.End()]); return nil },
		free:   func() error { return nil },
	}, nil
}

func punchHole(*os.File, region.Range) error { return errors.ErrUnsupported }
