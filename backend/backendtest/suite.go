package backendtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/internal/testkit"
)

// A Suite says how to open what is tested. Fields that do not apply are nil.
type Suite struct {
	// Open makes a backend of size bytes that were never written. The suite
	// closes it; what else has to go is for t.Cleanup.
	Open func(t *testing.T, size int64) backend.Backend

	// Persistent makes storage for size bytes that were never written and returns
	// how to open it. Open may be called again after Close, and while an older
	// backend is still open but not used any more, as after a crash.
	Persistent func(t *testing.T, size int64) (open func() backend.Backend)

	// ReadOnly makes a backend that holds content and refuses writes.
	ReadOnly func(t *testing.T, content []byte) backend.Backend

	// Ops is how many operations a random check makes. Zero means 300; a service
	// far away may want fewer.
	Ops int
}

// Run checks a backend that can be written and is gone when it is closed.
func Run(t *testing.T, open func(t *testing.T, size int64) backend.Backend) {
	t.Helper()
	Suite{Open: open}.Run(t)
}

// Run runs the checks that apply as subtests.
func (s Suite) Run(t *testing.T) {
	t.Helper()
	run := func(c check) {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			e := &env{rand: testkit.Rand(t), ops: s.Ops}
			if s.Open != nil {
				e.create = func(size int64) backend.Backend { return s.Open(t, size) }
			}
			if s.Persistent != nil {
				e.storage = func(size int64) func() backend.Backend { return s.Persistent(t, size) }
			}
			if s.ReadOnly != nil {
				e.fixed = func(content []byte) backend.Backend { return s.ReadOnly(t, content) }
			}
			if err := e.run(ctx, c); err != nil {
				t.Errorf("%v\nthe contract: %s", err, c.contract)
			}
			if e.lacks != "" {
				t.Skipf("the backend has no %s", e.lacks)
			}
		})
	}
	if s.Open != nil {
		for _, c := range checks {
			run(c)
		}
	}
	if s.Persistent != nil {
		for _, c := range persistentChecks {
			run(c)
		}
	}
	if s.ReadOnly != nil {
		for _, c := range readOnlyChecks {
			run(c)
		}
	}
}

// A check enforces one sentence of the contract. It returns what it saw instead
// of failing a test, so that it can itself be tested against wrong backends.
type check struct {
	name, contract string
	run            func(ctx context.Context, e *env) error
}

// env is what a check works with.
type env struct {
	rand    *rand.Rand
	ops     int
	create  func(size int64) backend.Backend
	storage func(size int64) func() backend.Backend
	fixed   func(content []byte) backend.Backend

	opened []backend.Backend
	lacks  string // the ability that the check looked for in vain
}

func (e *env) run(ctx context.Context, c check) error {
	if e.ops == 0 {
		e.ops = 300
	}
	err := c.run(ctx, e)
	for _, b := range e.opened {
		if closeErr := b.Close(); closeErr != nil && err == nil {
			err = fmt.Errorf("Close() = %v; want nil", closeErr)
		}
	}
	return err
}

// open makes an empty backend that is closed when the check ends.
func (e *env) open(size int64) backend.Backend { return e.keep(e.create(size)) }

func (e *env) keep(b backend.Backend) backend.Backend {
	e.opened = append(e.opened, b)
	return b
}

// bytes makes n random bytes, none of which is zero.
func (e *env) bytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + e.rand.IntN(255))
	}
	return p
}

// span picks a range in a region of size bytes, often one that touches a
// boundary at which implementations like to cut, and sometimes an empty one.
func (e *env) span(size, most int64) (off, n int64) {
	off = e.rand.Int64N(size + 1)
	if e.rand.IntN(2) == 0 {
		unit := int64(1) << (9 + e.rand.IntN(14))
		off = off/unit*unit + e.rand.Int64N(5) - 2
		off = min(max(off, 0), size)
	}
	n = e.rand.Int64N(min(most, size-off) + 1)
	if e.rand.IntN(8) == 0 {
		n = min(most, size-off)
	}
	return off, n
}
