// Package pager makes a slow backend look fast and local.
//
// A [Pager] keeps a local copy of a region, chunk by chunk. A read of a chunk
// that is not here yet fetches it once, whoever asks and however many ask at the
// same time; meanwhile a background pull brings the rest. Writes go to the local
// copy and return; a background push and [Pager.Sync] carry them to the backend.
//
//	p, err := pager.Open(ctx, b, pager.Options{})
//	…
//	n, err := p.ReadAt(ctx, buf, off) // fetched now, local ever after
//	n, err = p.WriteAt(ctx, buf, off) // local now
//	err = p.Sync(ctx)                 // durable in the backend
//	err = p.Close(ctx)                // Sync, then free everything
//
// The local copy lives in memory (a memfd that may be mapped), or with
// [Options.Dir] in a sparse file on disk. A pager with a directory survives
// kill -9: what was written and not yet durable in the backend is found again by
// the next Open of that directory. Chunks that had only been read are fetched
// anew, since the backend may have changed in between.
//
// # Order
//
// A chunk is absent, local, or local and dirty. Two rules keep writes from being
// lost. The writer stores, then marks dirty; the pusher clears the mark, then
// copies, and marks again if the push fails. And what the cache directory calls
// unsynced is forgotten only after a Sync of the backend that began after the
// push. At most one fetch and one push of a chunk are in flight.
//
// Lock order: syncMu, markMu, mu.
package pager
