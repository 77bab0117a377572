package transport

import (
	"context"
	"fmt"

	"github.com/telemap/telemap/region"
)

// A Region is what a peer can do with one region. Every backend.Backend is one,
// and the contract of its methods is the one written there. A Region may also
// have the abilities Zero, Discard, NextData and ReadVec of package backend; a
// session offers them when the other side has them.
type Region interface {
	ReadAt(ctx context.Context, p []byte, off int64) (n int, err error)
	WriteAt(ctx context.Context, p []byte, off int64) (n int, err error)
	Sync(ctx context.Context) error
	Size() int64
	Close() error
}

// Info describes a region to a peer.
type Info struct {
	// Name is how peers ask for the region. It has at most MaxName bytes.
	Name string
	// Size is the region's length in bytes.
	Size int64
	// ReadOnly says that writes are refused with region.ErrReadOnly.
	ReadOnly bool
	// ChunkSize is the transfer unit in bytes that suits the storage, a power of
	// two, or zero if it has none.
	ChunkSize int64
}

// MaxName is the longest name of a region in bytes.
const MaxName = 255

// An Export is a region offered to peers.
type Export struct {
	Region Region
	Info   Info
}

// A Catalog finds regions by name for a server. Lookup of an unknown name
// returns an error that wraps region.ErrNotFound. The empty name asks for the only region
// there is. Methods may be called concurrently.
type Catalog interface {
	Lookup(ctx context.Context, name string) (Export, error)
	List(ctx context.Context) ([]Info, error)
}

// Exports is a fixed Catalog.
type Exports []Export

// Lookup implements [Catalog].
func (e Exports) Lookup(_ context.Context, name string) (Export, error) {
	if name == "" {
		if len(e) == 1 {
			return e[0], nil
		}
		return Export{}, fmt.Errorf("the server has %d regions, name one: %w", len(e), region.ErrNotFound)
	}
	for _, x := range e {
		if x.Info.Name == name {
			return x, nil
		}
	}
	return Export{}, fmt.Errorf("%q: %w", name, region.ErrNotFound)
}

// List implements [Catalog].
func (e Exports) List(context.Context) ([]Info, error) {
	infos := make([]Info, len(e))
	for i, x := range e {
		infos[i] = x.Info
	}
	return infos, nil
}

// A Session is one client's relation to a server. It outlives single
// connections: it reconnects when they break. Methods may be called
// concurrently.
type Session interface {
	// Open asks for the region called name; the empty name asks for the only one.
	// Closing the region leaves the session open.
	Open(ctx context.Context, name string) (Region, Info, error)

	// List describes the regions that the server offers.
	List(ctx context.Context) ([]Info, error)

	// Close ends the session and its regions. Calls in flight return
	// region.ErrClosed. Closing twice is harmless.
	Close() error
}
