package transporttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// Run runs every check as a subtest. Setup serves cat and returns a session with
// its server; the suite closes the session, and what else has to go is for
// t.Cleanup. Each check gets a session of its own.
func Run(t *testing.T, setup func(t *testing.T, cat transport.Catalog) transport.Session) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			e := &env{rand: testkit.Rand(t), patience: 20 * time.Second}
			e.setup = func(cat transport.Catalog) transport.Session { return setup(t, cat) }
			if err := e.run(ctx, c); err != nil {
				t.Errorf("%v\nthe contract: %s", err, c.contract)
			}
		})
	}
	if err := goleak.Find(before); err != nil {
		t.Errorf("%v\nthe contract: Close leaves no goroutine behind.", err)
	}
}

// A check enforces one sentence of the contract. It returns what it saw instead
// of failing a test, so that it can itself be tested against wrong sessions.
type check struct {
	name, contract string
	run            func(ctx context.Context, e *env) error
}

// env is what a check works with.
type env struct {
	rand  *rand.Rand
	setup func(transport.Catalog) transport.Session
	// patience is how long a check waits for what has to happen.
	patience time.Duration

	sessions []transport.Session
}

func (e *env) run(ctx context.Context, c check) error {
	err := c.run(ctx, e)
	for _, s := range e.sessions {
		if closeErr := s.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("Close() of the session = %v; want nil", closeErr))
		}
	}
	return err
}

// dial makes a session that is closed when the check ends.
func (e *env) dial(cat transport.Catalog) transport.Session {
	s := e.setup(cat)
	e.sessions = append(e.sessions, s)
	return s
}

// open makes a session with a server that offers r only, and opens that.
func (e *env) open(ctx context.Context, r transport.Region) (transport.Session, transport.Region, error) {
	s := e.dial(transport.Exports{{Region: r, Info: transport.Info{Name: "r", Size: r.Size()}}})
	got, info, err := s.Open(ctx, "r")
	if err != nil {
		return nil, nil, fmt.Errorf("Open(r) = %w; want nil", err)
	}
	if info.Size != r.Size() || got.Size() != r.Size() {
		return nil, nil, fmt.Errorf("Open(r) says %d bytes, and its region %d; want %d", info.Size, got.Size(), r.Size())
	}
	return s, got, nil
}

// bytes makes n random bytes, none of which is zero.
func (e *env) bytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + e.rand.IntN(255))
	}
	return p
}

// span picks a range in a region of size bytes, often near a power of two, and
// sometimes an empty one.
func (e *env) span(size, most int64) (off, n int64) {
	off = e.rand.Int64N(size + 1)
	if e.rand.IntN(2) == 0 {
		unit := int64(1) << (9 + e.rand.IntN(14))
		off = min(max(off/unit*unit+e.rand.Int64N(5)-2, 0), size)
	}
	return off, e.rand.Int64N(min(most, size-off) + 1)
}

// sentinels are the errors that keep their identity on the way to a client.
var sentinels = []error{
	region.ErrClosed, region.ErrOutOfRange, region.ErrReadOnly, region.ErrNotFound, region.ErrFenced,
	region.ErrNoSpace, region.ErrUnavailable, region.ErrLost, region.ErrBadRequest, errors.ErrUnsupported,
}
