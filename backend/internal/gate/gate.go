// Package gate lets a Close wait for the operations in flight and turns later
// ones away.
package gate

import (
	"math"
	"sync"
	"sync/atomic"
)

// A Gate admits operations until it is shut. The zero value is open. Entering
// and leaving cost one atomic add each and allocate nothing.
type Gate struct {
	// state is how many are inside, plus shut once the gate is shut.
	state atomic.Int64

	mu      sync.Mutex
	empty   chan struct{} // made by the first Shut, closed when nobody is inside
	isEmpty bool
}

const shut = math.MinInt64

// Enter reports whether the operation may go on. If so, it must Leave.
func (g *Gate) Enter() bool {
	if g.state.Add(1) > 0 {
		return true
	}
	g.Leave()
	return false
}

// Leave ends what a successful Enter began.
func (g *Gate) Leave() {
	if g.state.Add(-1) == shut {
		g.mu.Lock()
		g.emptyLocked()
		g.mu.Unlock()
	}
}

func (g *Gate) emptyLocked() {
	if !g.isEmpty {
		g.isEmpty = true
		close(g.empty)
	}
}

// Shut turns later operations away, waits until those inside have left, and
// reports whether this call was the first. Every call waits.
func (g *Gate) Shut() bool {
	g.mu.Lock()
	first := g.empty == nil
	if first {
		g.empty = make(chan struct{})
		if g.state.Add(shut) == shut {
			g.emptyLocked()
		}
	}
	g.mu.Unlock()
	<-g.empty
	return first
}
