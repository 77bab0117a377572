package view

import (
	"context"

	"github.com/telemap/telemap/region"
)

// A Source is what a view shows: a pager, or a backend for a direct mount.
// Methods may be called concurrently. Those that take a context return soon
// after it ends; a view cannot be closed before they have.
type Source interface {
	// ReadAt fills p from off as backend.Backend does. It does not keep p.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
	// WriteAt stores p at off. It does not keep or change p.
	WriteAt(ctx context.Context, p []byte, off int64) (n int, err error)
	// Sync returns once every write that returned before is durable.
	Sync(ctx context.Context) error
	// Size is the length in bytes, at least 1. It never changes.
	Size() int64
}

// A Viewer is a source that has its bytes in memory, so that a read needs no
// copy of ours.
type Viewer interface {
	// View returns the bytes [off, off+n) themselves, made present if need be.
	// They may be read, not written, until the source is closed, show later
	// writes, and are at no moment anything else than the region's bytes; so a
	// source that may drop them does not have this ability. Nil without an error
	// means that these bytes are not in memory: ask ReadAt. It does not allocate
	// when the bytes are present.
	View(ctx context.Context, off, n int64) ([]byte, error)
}

// A Zeroer can zero a range for less than it costs to write zeros.
type Zeroer interface {
	Zero(ctx context.Context, off, n int64) error
}

// A Discarder can free the space of a range, which reads as zeros afterwards.
type Discarder interface {
	Discard(ctx context.Context, off, n int64) error
}

// An Extenter knows which ranges may hold data; see backend.Extenter.
type Extenter interface {
	// NextData is the first range at or behind off that may hold something else
	// than zeros, clipped to start at off at the earliest. It is io.EOF when only
	// zeros follow. The range may end early.
	NextData(ctx context.Context, off int64) (region.Range, error)
}
