// Package transfer copies the bytes of one backend to another: many ranges at a
// time, holes by asking rather than reading, zeros by zeroing rather than
// writing.
package transfer
