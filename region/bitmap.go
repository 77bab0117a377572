package region

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// A Bitmap is one bit per chunk. All methods may be called concurrently; each
// sees or changes single bits atomically, so a walk over bits that change
// meanwhile sees each bit at some moment of the walk.
type Bitmap struct {
	n     ChunkIndex
	words []uint64
}

// NewBitmap makes n cleared bits.
func NewBitmap(n ChunkIndex) *Bitmap { return BitmapOn(n, make([]uint64, BitmapWords(n))) }

// BitmapWords is how many words [BitmapOn] needs for n bits.
func BitmapWords(n ChunkIndex) int { return int((n + 63) / 64) }

// BitmapOn makes a bitmap of n bits on words that the caller provides, such as
// a mapped file, and keeps what they say. Bits behind n are cleared.
func BitmapOn(n ChunkIndex, words []uint64) *Bitmap {
	words = words[:BitmapWords(n)]
	if tail := n % 64; tail != 0 {
		words[len(words)-1] &= 1<<tail - 1
	}
	return &Bitmap{n, words}
}

// Len is the number of bits.
func (b *Bitmap) Len() ChunkIndex { return b.n }

// Test reports whether bit i is set.
func (b *Bitmap) Test(i ChunkIndex) bool {
	return atomic.LoadUint64(&b.words[i/64])&(1<<(i%64)) != 0
}

// Set sets bit i and reports whether this call changed it.
func (b *Bitmap) Set(i ChunkIndex) bool {
	m := uint64(1) << (i % 64)
	// A load is much cheaper than a locked read-modify-write, and most bits that
	// are set were set before.
	if atomic.LoadUint64(&b.words[i/64])&m != 0 {
		return false
	}
	return atomic.OrUint64(&b.words[i/64], m)&m == 0
}

// Clear clears bit i and reports whether this call changed it.
func (b *Bitmap) Clear(i ChunkIndex) bool {
	m := uint64(1) << (i % 64)
	return atomic.AndUint64(&b.words[i/64], ^m)&m != 0
}

// Count is the number of set bits. It walks the bitmap.
func (b *Bitmap) Count() ChunkIndex {
	var n int
	for k := range b.words {
		n += bits.OnesCount64(atomic.LoadUint64(&b.words[k]))
	}
	return ChunkIndex(n)
}

// NextSet is the first set bit at or behind i, or Len if there is none.
func (b *Bitmap) NextSet(i ChunkIndex) ChunkIndex { return b.next(i, 0) }

// NextClear is the first cleared bit at or behind i, or Len if there is none.
func (b *Bitmap) NextClear(i ChunkIndex) ChunkIndex { return b.next(i, ^uint64(0)) }

// next finds the first bit at or behind i that differs from those of invert.
func (b *Bitmap) next(i ChunkIndex, invert uint64) ChunkIndex {
	if i >= b.n {
		return b.n
	}
	k := int(i / 64)
	w := (atomic.LoadUint64(&b.words[k]) ^ invert) &^ (1<<(i%64) - 1)
	for w == 0 {
		if k++; k == len(b.words) {
			return b.n
		}
		w = atomic.LoadUint64(&b.words[k]) ^ invert
	}
	return min(b.n, ChunkIndex(k)*64+ChunkIndex(bits.TrailingZeros64(w)))
}

// Runs yields the maximal runs [first, end) of set bits in ascending order.
func (b *Bitmap) Runs() iter.Seq2[ChunkIndex, ChunkIndex] {
	return func(yield func(first, end ChunkIndex) bool) {
		for first := b.NextSet(0); first < b.n; {
			end := b.NextClear(first)
			if !yield(first, end) {
				return
			}
			first = b.NextSet(end)
		}
	}
}
