// Package region holds the nouns that every other package speaks: byte ranges,
// chunk indexes, the geometry that relates the two, and bitmaps over chunks.
//
// A region is a fixed-size span of bytes with one identity and, at any time, at
// most one writer. Its bytes are addressed by offset and length, both int64; a
// range is half-open, [Off, Off+Len). For transfer and dirty tracking a region
// is cut into chunks of one size, of which the last may be shorter. Chunks are
// counted by [ChunkIndex], a type of its own, so that an index is never taken
// for an offset.
//
// The package imports the standard library only and does no I/O.
package region
