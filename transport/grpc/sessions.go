package grpc

import (
	"container/list"
	"context"
	"crypto/rand"
	"fmt"
	"sync"

	"github.com/telemap/telemap/region"
)

// A sessionID names a session. The server makes it, so that a late copy of a
// request cannot bring a forgotten session back to life.
type sessionID [16]byte

// maxSessions bounds a server's memory of its clients. One that is forgotten
// attaches again when it next writes.
const maxSessions = 4096

// sessions orders the mutations of each session by generation: a generation
// starts only when all of the lower ones have finished, and once it was seen
// no lower one starts. The zero value with max set is ready.
type sessions struct {
	max int
	// waits, when set, is called as a mutation begins to wait for lower
	// generations. Tests hold on to it.
	waits func()

	mu     sync.Mutex
	known  map[sessionID]*list.Element // of *session
	recent list.List                   // most recently used first
}

type session struct {
	id         sessionID
	generation uint64 // the highest seen
	running    int    // mutations being carried out,
	runs       uint64 // which are all of this generation
	waiting    int
	changed    chan struct{} // closed and replaced for those who wait
}

// attach makes a session. It forgets the one unused for longest when there are
// too many: one with nothing running, whose late requests are refused as unknown.
func (t *sessions) attach() (sessionID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= t.max && !t.forgetLocked() {
		return sessionID{}, fmt.Errorf("all %d sessions are busy: %w", t.max, region.ErrUnavailable)
	}
	s := &session{changed: make(chan struct{})}
	rand.Read(s.id[:])
	if t.known == nil {
		t.known = map[sessionID]*list.Element{}
	}
	t.known[s.id] = t.recent.PushFront(s)
	return s.id, nil
}

func (t *sessions) forgetLocked() bool {
	for e := t.recent.Back(); e != nil; e = e.Prev() {
		if s := e.Value.(*session); s.running+s.waiting == 0 {
			t.recent.Remove(e)
			delete(t.known, s.id)
			return true
		}
	}
	return false
}

// enter admits a mutation of a generation, after those of lower ones, and
// refuses it with errStale once a higher one was seen. The caller calls leave
// when the mutation is over.
func (t *sessions) enter(ctx context.Context, id []byte, generation uint64) (leave func(), err error) {
	if generation == 0 || len(id) != len(sessionID{}) {
		return nil, fmt.Errorf("stamp without session or generation: %w", region.ErrBadRequest)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.known[sessionID(id)]
	if e == nil {
		return nil, errUnknown
	}
	t.recent.MoveToFront(e)
	s := e.Value.(*session)
	if generation > s.generation {
		s.generation = generation
		s.wakeLocked() // those who wait with a lower one have lost
	}
	for {
		switch {
		case generation < s.generation:
			return nil, errStale
		case s.running == 0 || s.runs == generation:
			s.running++
			s.runs = generation
			return func() { t.leave(s) }, nil
		}
		changed := s.changed
		s.waiting++
		t.mu.Unlock()
		if t.waits != nil {
			t.waits()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		t.mu.Lock()
		s.waiting--
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (t *sessions) leave(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.running--; s.running == 0 {
		s.wakeLocked()
	}
}

func (s *session) wakeLocked() {
	if s.waiting > 0 {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}
