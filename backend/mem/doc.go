// Package mem keeps a region in this process' memory.
//
//	b := mem.New(1 << 40) // takes memory as it is written
//	defer b.Close()
//
// Memory is taken when bytes are first written and given back by Zero, Discard
// and Close. On Linux it is an anonymous mapping outside the Go heap: the
// garbage collector neither scans it nor paces itself by it, a read is one copy,
// and a terabyte that nobody writes costs a few megabytes of bookkeeping.
//
// Nothing survives Close. Sync does nothing, since there is nothing to flush to.
//
// Concurrent writes that overlap leave some mixture of their bytes. The race
// detector does not see accesses to the mapping, so it neither reports such
// writes nor finds a caller's missing lock through them; it does see the buffers
// that callers pass in.
package mem
