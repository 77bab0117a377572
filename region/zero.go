package region

import "bytes"

// AllZero reports whether p holds only zeros. It runs at the speed of memory:
// if the first byte is zero and each byte equals its neighbour, all are zero.
func AllZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
