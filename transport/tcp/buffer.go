package tcp

import (
	"math/bits"
	"net"
	"sync"
)

// pools hold buffers by the power of two of their capacity.
var pools [32]sync.Pool

const minBuffer = 9 // log2

// getBuffer returns a buffer of n bytes whose contents are anything.
func getBuffer(n int) *[]byte {
	k := max(minBuffer, bits.Len(uint(max(n, 1)-1)))
	if b, _ := pools[k].Get().(*[]byte); b != nil {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<k)
	return &b
}

func putBuffer(b *[]byte) {
	if k := bits.Len(uint(cap(*b))) - 1; k >= minBuffer && k < len(pools) {
		pools[k].Put(b)
	}
}

// A frame is what writing one takes, kept so that it is not allocated each time.
type frame struct {
	head [headerLen]byte
	vec  [2][]byte
	bufs net.Buffers
}

var frames = sync.Pool{New: func() any { return new(frame) }}

// write writes a frame with one system call where the connection allows that.
func (f *frame) write(c net.Conn, h *header, body []byte) error {
	h.put(&f.head)
	if len(body) == 0 {
		_, err := c.Write(f.head[:])
		return err
	}
	f.vec = [2][]byte{f.head[:], body}
	f.bufs = f.vec[:]
	_, err := f.bufs.WriteTo(c)
	f.vec = [2][]byte{}
	return err
}
