package region

import "errors"

// Errors that mean the same in every layer and cross the network as codes.
// Packages re-export those that their callers act on; test with [errors.Is].
var (
	// ErrClosed is returned by an operation on something closed.
	ErrClosed = errors.New("already closed")
	// ErrOutOfRange is returned when a range does not lie in the region.
	ErrOutOfRange = errors.New("out of the region's range")
	// ErrReadOnly is returned by a write to a region that only allows reads.
	ErrReadOnly = errors.New("region is read-only")
	// ErrNotFound is returned when no region has the name asked for.
	ErrNotFound = errors.New("no such region")
	// ErrFenced is returned by a write whose epoch is no longer the region's.
	ErrFenced = errors.New("fenced: another owner may write now")
	// ErrNoSpace is returned when storage is full. Freeing space cures it.
	ErrNoSpace = errors.New("no space left")
	// ErrUnavailable is returned when storage or a peer cannot be reached now.
	// The same operation may succeed later.
	ErrUnavailable = errors.New("unavailable")
	// ErrLost is returned by a Sync when writes that were acknowledged since the
	// last one may be gone, because the storage restarted in between. Writing them again and
	// syncing again makes them durable.
	ErrLost = errors.New("acknowledged writes may be lost")
	// ErrBadRequest is returned by a peer that refuses what it was asked as
	// malformed or above its limits. Asking again does not help.
	ErrBadRequest = errors.New("bad request")
)
