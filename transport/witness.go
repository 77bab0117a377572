package transport

import (
	"context"
	"sync/atomic"

	"github.com/telemap/telemap/region"
)

// A Witness is for implementations of [Session]. It notices that a server was
// started anew between a write that it acknowledged and the Sync that was to make
// the write durable: the new one may never have heard of it. NFS version 3 does the
// same with its write verifier (RFC 1813, section 3.3.7). There is one Witness per
// open region; instances of the server are counted from 1.
type Witness struct {
	oldest atomic.Int64  // instance that took the oldest write since the last Sync
	turn   chan struct{} // held by the Sync that runs
}

// NewWitness makes a witness that has seen no write.
func NewWitness() *Witness { return &Witness{turn: make(chan struct{}, 1)} }

// Wrote notes a write that the instance, or a later one, has acknowledged.
func (w *Witness) Wrote(instance int64) {
	for {
		old := w.oldest.Load()
		if old != 0 && old <= instance || w.oldest.CompareAndSwap(old, instance) {
			return
		}
	}
}

// Sync does sync, one at a time: two could not both tell of the same loss. If sync succeeded at
// another instance than took a write since the last Sync, it returns
// [region.ErrLost], once.
func (w *Witness) Sync(ctx context.Context, instance func() int64, sync func() error) error {
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	oldest := w.oldest.Swap(0)
	if err := sync(); err != nil {
		if oldest != 0 {
			w.Wrote(oldest)
		}
		return err
	}
	if oldest != 0 && oldest != instance() {
		return region.ErrLost
	}
	return nil
}
