package region

import "fmt"

// A Range is the half-open span of bytes [Off, Off+Len).
type Range struct {
	Off, Len int64
}

// End is the offset of the first byte behind r.
func (r Range) End() int64 { return r.Off + r.Len }

// Empty reports whether r spans no byte.
func (r Range) Empty() bool { return r.Len <= 0 }

// Contains reports whether every byte of s lies in r. An empty s lies in r if
// its offset does, the end included.
func (r Range) Contains(s Range) bool {
	return s.Off >= r.Off && s.Len >= 0 && s.Off <= r.End() && s.Len <= r.End()-s.Off
}

// Intersect is the part that r and s share; it is empty if there is none.
func (r Range) Intersect(s Range) Range {
	off, end := max(r.Off, s.Off), min(r.End(), s.End())
	if end <= off {
		return Range{}
	}
	return Range{off, end - off}
}

func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.Off, r.End()) }

// Check reports whether [off, off+n) lies in a region of size bytes. It is safe
// for any values, including those whose sum overflows.
func Check(off, n, size int64) bool {
	return off >= 0 && n >= 0 && off <= size && n <= size-off
}
