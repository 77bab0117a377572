package pager

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/telemap/telemap/region"
)

// A store holds the local copy. What was never written or was zeroed reads as
// zeros. Ranges lie in the region.
type store interface {
	readAt(p []byte, off int64) error
	writeAt(p []byte, off int64) error
	// fill is writeAt for bytes that were not there before.
	fill(p []byte, off int64) error
	// zero makes r read as zeros and frees its space where it can.
	zero(r region.Range) error
	// bytes is r in memory, or nil if the store is not in memory.
	bytes(r region.Range) []byte
	close() error
}

// memStore keeps the copy in mapped memory.
type memStore struct {
	mem    []byte
	filler func(p []byte, off int64) error
	punch  func(r region.Range) error
	free   func() error
}

// fill uses write(2): it takes fresh pages without zeroing and mapping them first,
// which costs three times the copy.
func (s *memStore) fill(p []byte, off int64) error { return s.filler(p, off) }

func (s *memStore) bytes(r region.Range) []byte { return s.mem[r.Off:r.End():r.End()] }
func (s *memStore) close() error                { return s.free() }
func (s *memStore) zero(r region.Range) error   { return s.punch(r) }

func (s *memStore) readAt(p []byte, off int64) error {
	copy(p, s.mem[off:])
	return nil
}

func (s *memStore) writeAt(p []byte, off int64) error {
	copy(s.mem[off:], p)
	return nil
}

// fileStore keeps the copy in a sparse file, through read(2) and write(2): a
// full disk is then an error of the write, where a mapping would raise SIGBUS.
type fileStore struct {
	f *os.File
}

func (s *fileStore) fill(p []byte, off int64) error { return s.writeAt(p, off) }

func (s *fileStore) bytes(region.Range) []byte { return nil }
func (s *fileStore) close() error              { return s.f.Close() }

func (s *fileStore) readAt(p []byte, off int64) error {
	n, err := s.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s was truncated to less than the region", s.f.Name())
	}
	return err
}

func (s *fileStore) writeAt(p []byte, off int64) error {
	_, err := s.f.WriteAt(p, off)
	return diskError(err)
}

func (s *fileStore) zero(r region.Range) error {
	if err := punchHole(s.f, r); err == nil || !errors.Is(err, errors.ErrUnsupported) {
		return diskError(err)
	}
	for r.Len > 0 {
		n := min(r.Len, int64(len(zeros)))
		if err := s.writeAt(zeros[:n], r.Off); err != nil {
			return err
		}
		r.Off, r.Len = r.Off+n, r.Len-n
	}
	return nil
}

// diskError says in our words that the disk is full.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: free some, or choose another cache directory (%w)", region.ErrNoSpace, err)
	}
	return err
}

var zeros [64 << 10]byte
