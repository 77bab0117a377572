// Package limit bounds what a backend is asked to do: bytes per second, each way,
// and operations at a time.
//
//	b := limit.New(remote, limit.Options{ReadRate: 100 << 20, WriteRate: 20 << 20, Concurrency: 32})
//
// An operation that is over the limit waits for its turn, or until its context is
// done. Bytes are paid for before they move; one operation may be larger than
// the burst and waits longer then. What was paid for and did not move, because the
// operation failed, is not paid back: it may have crossed the network.
package limit
