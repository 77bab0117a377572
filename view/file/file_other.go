//go:build !linux

package file

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/telemap/telemap/view"
)

// A View is a region shown as a file. There is none on this system.
type View struct{}

// Open fails with an error that wraps [errors.ErrUnsupported].
func Open(ctx context.Context, src view.Source, path string, o Options) (*View, error) {
	return nil, fmt.Errorf("show a region as a file on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Path is empty.
func (*View) Path() string { return "" }

// Done is nil.
func (*View) Done() <-chan struct{} { return nil }

// Err is nil.
func (*View) Err() error { return nil }

// Stats is zero.
func (*View) Stats() Stats { return Stats{} }

// Invalidate does nothing.
func (*View) Invalidate(off, n int64) error { return nil }

// Sync does nothing.
func (*View) Sync(ctx context.Context) error { return nil }

// Close does nothing.
func (*View) Close(ctx context.Context) error { return nil }

// Detach does nothing.
func (*View) Detach(ctx context.Context) error { return nil }
