package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// Datasync is fsync without what nobody needs to find the bytes again, such as
// the time of the last change.
func Datasync(f *os.File) error { return Control(f, unix.Fdatasync) }

// Control calls do with f's descriptor, again as long as a signal interrupts it.
func Control(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := c.Control(func(fd uintptr) {
		for {
			if result = do(int(fd)); result != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return err
	}
	return result
}
