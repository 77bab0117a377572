package region

import (
	"fmt"
	"math/bits"
)

// Limits of a chunk's size in bytes.
const (
	MinChunkSize     = 4 << 10
	MaxChunkSize     = 4 << 20
	DefaultChunkSize = 64 << 10
)

// A ChunkIndex counts chunks from the start of a region. It is not an offset.
type ChunkIndex int64

// A Geometry says how a region of some size is cut into chunks. The zero value
// is an empty region; make others with [NewGeometry].
type Geometry struct {
	size  int64
	shift uint
}

// NewGeometry cuts size bytes into chunks of chunkSize bytes, a power of two in
// [MinChunkSize, MaxChunkSize]; zero means DefaultChunkSize. Size must be
// positive and need not be a multiple of the chunk: the last chunk is shorter
// then, and a region may be smaller than one chunk.
func NewGeometry(size, chunkSize int64) (Geometry, error) {
	if chunkSize == 0 {
		chunkSize = DefaultChunkSize
	}
	if size <= 0 {
		return Geometry{}, fmt.Errorf("region size is %d bytes: it must be positive", size)
	}
	if chunkSize < MinChunkSize || chunkSize > MaxChunkSize || chunkSize&(chunkSize-1) != 0 {
		return Geometry{}, fmt.Errorf("chunk size is %d bytes: it must be a power of two from %d to %d",
			chunkSize, MinChunkSize, MaxChunkSize)
	}
	return Geometry{size, uint(bits.TrailingZeros64(uint64(chunkSize)))}, nil
}

// Size is the region's length in bytes.
func (g Geometry) Size() int64 { return g.size }

// ChunkSize is the length in bytes of every chunk but perhaps the last.
func (g Geometry) ChunkSize() int64 { return 1 << g.shift }

// Chunks is the number of chunks, the partial one at the end included.
func (g Geometry) Chunks() ChunkIndex { return ChunkIndex((g.size-1)>>g.shift) + 1 }

// Index is the chunk that holds the byte at off.
func (g Geometry) Index(off int64) ChunkIndex { return ChunkIndex(off >> g.shift) }

// Offset is where chunk i starts.
func (g Geometry) Offset(i ChunkIndex) int64 { return int64(i) << g.shift }

// Range is the bytes of chunk i, clipped to the region.
func (g Geometry) Range(i ChunkIndex) Range { return g.Span(i, i+1) }

// Span is the bytes of the chunks [first, end), clipped to the region.
func (g Geometry) Span(first, end ChunkIndex) Range {
	off := g.Offset(first)
	return Range{off, min(g.Offset(end), g.size) - off}
}

// Cover is the chunks [first, end) that r touches. It is empty if r is.
func (g Geometry) Cover(r Range) (first, end ChunkIndex) {
	first = g.Index(r.Off)
	if r.Len <= 0 {
		return first, first
	}
	return first, g.Index(r.End()-1) + 1
}
