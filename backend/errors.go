package backend

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/telemap/telemap/region"
)

// Errors that callers act on; see package region for what each means.
var (
	ErrClosed      = region.ErrClosed
	ErrOutOfRange  = region.ErrOutOfRange
	ErrReadOnly    = region.ErrReadOnly
	ErrNotFound    = region.ErrNotFound
	ErrFenced      = region.ErrFenced
	ErrNoSpace     = region.ErrNoSpace
	ErrUnavailable = region.ErrUnavailable
)

// OpError says which operation on which bytes of what failed.
type OpError struct {
	Op       string // "open", "read", "write", "sync", "zero", "close"
	Name     string // what the user called it; never contains credentials
	Off, Len int64  // bytes; Len 0 where the operation has no range
	Err      error
}

func (e *OpError) Error() string {
	if e.Len == 0 {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Name, e.Err)
	}
	return fmt.Sprintf("%s %s [%d,%d): %v", e.Op, e.Name, e.Off, e.Off+e.Len, e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }

// Retryable reports whether the operation that returned err may succeed when it
// is simply tried again. Errors that say the request itself is wrong, that
// somebody gave up waiting, or that another owner writes now are not retryable.
func Retryable(err error) bool {
	for _, final := range []error{
		ErrClosed, ErrOutOfRange, ErrReadOnly, ErrNotFound, ErrFenced, region.ErrBadRequest,
		io.EOF, context.Canceled, context.DeadlineExceeded, errors.ErrUnsupported,
	} {
		if errors.Is(err, final) {
			return false
		}
	}
	return err != nil
}
