package grpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that most messages use
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	mountv1 "github.com/telemap/telemap/transport/grpc/proto/r3map/mount/v1"
	telemapv1 "github.com/telemap/telemap/transport/grpc/proto/telemap/v1"
)

// buffers is where handlers take the bytes of a reply from; the codec gives
// them back once they are sent. Its sizes are finer than those of gRPC's own
// pool, which clears a whole MiB for 64 KiB.
var buffers = newBuffers()

func newBuffers() mem.BufferPool {
	p, err := mem.NewBinaryTieredBufferPool(12, 14, 16, 17, 18, 19, 20, 21, 22)
	if err != nil {
		return mem.DefaultBufferPool()
	}
	return p
}

// codec is gRPC's own for protocol buffers, but for the replies that carry a
// region's bytes: those it sends without copying them first, and reads straight
// to where they are wanted. BenchmarkRead shows what that gains.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// A payload stands for a ReadReply or ReadVecReply on the client: its bytes go
// to pieces, in order.
type payload struct {
	pieces  [][]byte
	n       int64 // bytes that came
	failure error // why they are not all
}

// An outgoing stands for a reply with bytes of a region on the server. Data is
// from buffers and is its last field, whose tag and length end head.
type outgoing struct {
	head, data []byte
	holding    *holding
}

// outgoingOf is out, or what stands for it.
func outgoingOf(out any, h *holding) any {
	o := &outgoing{holding: h}
	field := protowire.Number(1)
	switch m := out.(type) {
	case *telemapv1.ReadReply:
		o.data = m.Data
		if m.Failure != nil {
			if b, err := proto.Marshal(m.Failure); err == nil {
				o.head = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), b)
			}
		}
	case *telemapv1.ReadVecReply:
		o.data = m.Data
	case *mountv1.ReadAtReply:
		o.head = protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(m.N))
		o.data, field = m.P, 2
	default:
		h.release()
		return out
	}
	o.head = protowire.AppendVarint(protowire.AppendTag(o.head, field, protowire.BytesType), uint64(len(o.data)))
	return o
}

// A holding is a request's share of the bytes that may be in flight. It is given
// back when the request has failed, or when the reply was sent: gRPC then puts
// the buffer back, here. Replies that a connection loses as it breaks are never
// put back; those count until they are collected as garbage.
type holding struct{ share *share }

type share struct {
	of   *semaphore.Weighted
	n    int64
	over atomic.Bool
}

func newHolding(of *semaphore.Weighted) *holding {
	h := &holding{&share{of: of}}
	runtime.AddCleanup(h, (*share).release, h.share)
	return h
}

func (h *holding) acquire(ctx context.Context, n int64) error {
	if err := h.share.of.Acquire(ctx, n); err != nil {
		return err
	}
	h.share.n = n
	return nil
}

func (h *holding) release() { h.share.release() }

func (s *share) release() {
	if s.n > 0 && s.over.CompareAndSwap(false, true) {
		s.of.Release(s.n)
	}
}

// Get and Put make a holding a [mem.BufferPool].
func (h *holding) Get(n int) *[]byte { return buffers.Get(n) }

func (h *holding) Put(b *[]byte) {
	buffers.Put(b)
	h.release()
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	o, ok := v.(*outgoing)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	if mem.IsBelowBufferPoolingThreshold(len(o.data)) {
		o.holding.release()
		return mem.BufferSlice{mem.SliceBuffer(o.head), mem.SliceBuffer(o.data)}, nil
	}
	return mem.BufferSlice{mem.SliceBuffer(o.head), mem.NewBuffer(&o.data, o.holding)}, nil
}

func (c codec) Unmarshal(b mem.BufferSlice, v any) error {
	p, ok := v.(*payload)
	if !ok {
		return c.CodecV2.Unmarshal(b, v)
	}
	r := b.Reader()
	defer r.Close()
	for r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(r)
		if err != nil {
			return fmt.Errorf("reply: %w", err)
		}
		number, wire := protowire.DecodeTag(tag)
		skip := uint64(0)
		switch wire {
		case protowire.VarintType:
			_, err = binary.ReadUvarint(r)
		case protowire.Fixed64Type:
			skip = 8
		case protowire.Fixed32Type:
			skip = 4
		case protowire.BytesType:
			skip, err = binary.ReadUvarint(r)
			if err != nil || number > 2 {
				break
			}
			if skip > uint64(r.Remaining()) {
				return io.ErrUnexpectedEOF
			}
			if number == 1 {
				err = p.fill(r, int64(skip))
			} else {
				err = p.fail(r, int64(skip))
			}
			skip = 0
		default:
			return errors.New("reply: malformed message")
		}
		if err != nil {
			return fmt.Errorf("reply: %w", err)
		}
		if skip > uint64(r.Remaining()) {
			return io.ErrUnexpectedEOF
		}
		if _, err := r.Discard(int(skip)); err != nil {
			return err
		}
	}
	return nil
}

// fill reads n bytes into the pieces.
func (p *payload) fill(r io.Reader, n int64) error {
	p.n = 0
	for _, piece := range p.pieces {
		k := min(n-p.n, int64(len(piece)))
		if _, err := io.ReadFull(r, piece[:k]); err != nil {
			return err
		}
		p.n += k
	}
	if p.n < n {
		return fmt.Errorf("%d bytes came, %d were asked for", n, p.n)
	}
	return nil
}

func (p *payload) fail(r io.Reader, n int64) error {
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	var f telemapv1.Failure
	if err := proto.Unmarshal(b, &f); err != nil {
		return err
	}
	p.failure = failureFrom(&f)
	return nil
}

// done is how many of n bytes came, and the failure if they are fewer.
func (p *payload) done(n int64) (int, error) {
	switch {
	case p.n == n:
		return int(n), nil
	case p.failure != nil:
		return int(p.n), p.failure
	}
	return 0, fmt.Errorf("the server sent %d of %d bytes", p.n, n)
}
