package file

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/backend/internal/disk"
)

// fallocate asks the file system for zeros without writing them. The error
// wraps errors.ErrUnsupported where that way is not known.
func fallocate(f *os.File, w way, off, n int64) error {
	mode := uint32(unix.FALLOC_FL_KEEP_SIZE)
	if w == punchHole {
		mode |= unix.FALLOC_FL_PUNCH_HOLE
	} else {
		mode |= unix.FALLOC_FL_ZERO_RANGE
	}
	return disk.Control(f, func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
}

// seekData is the first extent of data at or behind off; io.EOF if there is
// none. See lseek(2), SEEK_DATA and SEEK_HOLE.
func seekData(f *os.File, off int64) (start, end int64, err error) {
	err = disk.Control(f, func(fd int) (err error) {
		start, err = unix.Seek(fd, off, unix.SEEK_DATA)
		if err == nil {
			end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		}
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, io.EOF
	case errors.Is(err, unix.EINVAL): // a file system or device that cannot tell
		return 0, 0, errors.ErrUnsupported
	}
	return start, end, err
}
