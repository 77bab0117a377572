package file

import (
	"context"
	"errors"
	"syscall"

	"github.com/telemap/telemap/region"
)

// errno is what a program sees of err. Whatever it cannot act on is EIO. In
// particular no error of a source becomes ENOSYS, which the kernel remembers and
// takes for "never ask again".
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, m := range []struct {
		err   error
		errno syscall.Errno
	}{
		{region.ErrOutOfRange, syscall.EINVAL},
		{region.ErrBadRequest, syscall.EINVAL},
		{region.ErrReadOnly, syscall.EROFS},
		{region.ErrFenced, syscall.EROFS}, // the region may be read here, no more
		{region.ErrNoSpace, syscall.ENOSPC},
		{region.ErrClosed, syscall.EIO},
		{region.ErrUnavailable, syscall.EIO},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{syscall.ENOSPC, syscall.ENOSPC},
		{syscall.EDQUOT, syscall.EDQUOT},
		{syscall.EROFS, syscall.EROFS},
		{syscall.ENOMEM, syscall.ENOMEM},
		{syscall.ETIMEDOUT, syscall.ETIMEDOUT},
		// After the errors above: many an errno says that it Is ErrUnsupported.
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
	} {
		if errors.Is(err, m.err) {
			return m.errno
		}
	}
	return syscall.EIO
}
