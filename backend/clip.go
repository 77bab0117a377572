package backend

import "io"

// Clip is the part of p that a ReadAt from off can fill in a region of size
// bytes, and the error that comes with it when it succeeds: nil if that is all
// of p, [io.EOF] if the region ends first, [ErrOutOfRange] if off does not lie
// in the region. It is for implementations of [Backend].
func Clip(p []byte, off, size int64) ([]byte, error) {
	switch {
	case off < 0 || off > size:
		return nil, ErrOutOfRange
	case int64(len(p)) > size-off:
		return p[:size-off], io.EOF
	}
	return p, nil
}
