package pager

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockFile locks f until it is closed or the process ends; see flock(2).
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrBusy
	}
	return err
}

// allocate makes f size bytes long with space for each of them.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Writing zeros allocates on any file system.
		for off := int64(0); off < size; off += int64(len(zeros)) {
			if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
				return err
			}
		}
		return nil
	}
	return err
}

// mapState maps f, size bytes long, and returns the words behind its header.
func mapState(f *os.File, size int64) (mem []byte, words []uint64, err error) {
	mem, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	n := (size - stateHeader) / 8
	return mem, unsafe.Slice((*uint64)(unsafe.Pointer(&mem[stateHeader])), n), nil
}

func unmapState(mem []byte) error { return unix.Munmap(mem) }
