package pager

import (
	"sync"
	"sync/atomic"
)

// Stats is a snapshot of what a pager has and did.
type Stats struct {
	ChunkSize int64 `json:"chunk_size"` // bytes
	Chunks    int64 `json:"chunks"`
	Local     int64 `json:"local_chunks"`
	Dirty     int64 `json:"dirty_chunks"` // not yet pushed

	Hits   int64 `json:"hits"`   // reads and partial writes that found every chunk local
	Misses int64 `json:"misses"` // those that waited for a fetch

	FetchedBytes int64 `json:"fetched_bytes"` // from the backend
	PushedBytes  int64 `json:"pushed_bytes"`  // to the backend
	WrittenBytes int64 `json:"written_bytes"` // by WriteAt and Zero

	FetchErrors int64  `json:"fetch_errors"`
	PushErrors  int64  `json:"push_errors"`
	LastError   string `json:"last_error,omitempty"` // of either; cleared by nothing

	PullDone bool `json:"pull_done"` // the background pull has seen every chunk
}

type counters struct {
	local, dirty             atomic.Int64
	hits, misses             atomic.Int64
	fetched, pushed, written atomic.Int64
	fetchErrors, pushErrors  atomic.Int64
	pullDone                 atomic.Bool

	mu   sync.Mutex
	last error
}

func (c *counters) fail(n *atomic.Int64, err error) {
	n.Add(1)
	c.mu.Lock()
	c.last = err
	c.mu.Unlock()
}

// Stats returns a snapshot; its figures are each right but not of one instant.
func (p *Pager) Stats() Stats {
	c := &p.stats
	s := Stats{
		ChunkSize:    p.geo.ChunkSize(),
		Chunks:       int64(p.geo.Chunks()),
		Local:        c.local.Load(),
		Dirty:        c.dirty.Load(),
		Hits:         c.hits.Load(),
		Misses:       c.misses.Load(),
		FetchedBytes: c.fetched.Load(),
		PushedBytes:  c.pushed.Load(),
		WrittenBytes: c.written.Load(),
		FetchErrors:  c.fetchErrors.Load(),
		PushErrors:   c.pushErrors.Load(),
		PullDone:     c.pullDone.Load(),
	}
	c.mu.Lock()
	if c.last != nil {
		s.LastError = c.last.Error()
	}
	c.mu.Unlock()
	return s
}
