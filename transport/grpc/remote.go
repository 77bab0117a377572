package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
	telemapv1 "github.com/telemap/telemap/transport/grpc/proto/telemap/v1"
)

// A remote is a server's region.
type remote struct {
	s    *Session
	info transport.Info
	gate gate
	// witness tells of writes that a restart of the server swallowed.
	witness *transport.Witness
}

var (
	_ backend.Backend      = (*remote)(nil)
	_ backend.Zeroer       = (*remote)(nil)
	_ backend.Discarder    = (*remote)(nil)
	_ backend.Extenter     = (*remote)(nil)
	_ backend.VectorReader = (*remote)(nil)
)

func (r *remote) Size() int64 { return r.info.Size }

func (r *remote) Close() error {
	r.gate.shut()
	r.gate.wait()
	return nil
}

func (r *remote) enter(ctx context.Context) error {
	if err := r.gate.enter(); err != nil {
		return err
	}
	if err := r.s.c.gate.enter(); err != nil {
		r.gate.leave()
		return err
	}
	if err := ctx.Err(); err != nil {
		r.leave()
		return err
	}
	return nil
}

func (r *remote) leave() {
	r.s.c.gate.leave()
	r.gate.leave()
}

func (r *remote) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.enter(ctx); err != nil {
		return 0, err
	}
	defer r.leave()
	p, end := backend.Clip(p, off, r.info.Size)
	if end != nil && end != io.EOF {
		return 0, end
	}
	n, err := inParts(ctx, p, off, r.s.payload, r.readPart)
	if err == nil {
		err = end
	}
	return n, err
}

func (r *remote) readPart(ctx context.Context, p []byte, off int64) (int, error) {
	in := &telemapv1.ReadRequest{Name: r.info.Name, Off: off, Len: int64(len(p))}
	out := payload{pieces: [][]byte{p}}
	if err := r.s.c.do(ctx, telemapv1.Region_Read_FullMethodName, in, &out); err != nil {
		return 0, err
	}
	return out.done(int64(len(p)))
}

// inParts runs one, which says how much of a part it did, on parts of p of up to
// limit bytes, several at a time. It returns how many bytes from the start of p
// were done.
func inParts(ctx context.Context, p []byte, off, limit int64, one func(context.Context, []byte, int64) (int, error)) (int, error) {
	size := int64(len(p))
	if size == 0 {
		return 0, nil
	}
	if size <= limit {
		return one(ctx, p, off)
	}
	var (
		mu     sync.Mutex
		failed = size // where the first part that failed starts
		did    int    // of that part
		cause  error  // what went wrong first
	)
	g, part := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for at := int64(0); at < size && part.Err() == nil; at += limit {
		g.Go(func() error {
			n, err := one(part, p[at:min(at+limit, size)], off+at)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				if at < failed {
					failed, did = at, n
				}
				// The others are told to stop and then say so.
				if cause == nil || errors.Is(cause, context.Canceled) {
					cause = err
				}
			}
			return err
		})
	}
	if g.Wait() == nil {
		return len(p), nil
	}
	if ctx.Err() != nil {
		cause = ctx.Err()
	}
	// A part that was never started lies behind one that failed.
	return int(failed) + did, cause
}

func (r *remote) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.enterMutation(ctx, off, int64(len(p))); err != nil {
		return 0, err
	}
	defer r.leave()
	defer r.witness.Wrote(r.s.instances.Load())
	return inParts(ctx, p, off, r.s.payload, func(ctx context.Context, p []byte, off int64) (int, error) {
		var reply telemapv1.WriteReply
		err := r.s.mutate(ctx, telemapv1.Region_Write_FullMethodName, func(st *telemapv1.Stamp) any {
			return &telemapv1.WriteRequest{Stamp: st, Name: r.info.Name, Off: off, Data: p}
		}, &reply)
		switch {
		case err != nil:
			return 0, err
		case reply.Failure != nil:
			return int(max(0, min(reply.Written, int64(len(p))))), failureFrom(reply.Failure)
		}
		return len(p), nil
	})
}

// enterMutation is enter for what changes the n bytes at off.
func (r *remote) enterMutation(ctx context.Context, off, n int64) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	var err error
	switch {
	case !region.Check(off, n, r.info.Size):
		err = region.ErrOutOfRange
	case r.info.ReadOnly:
		err = region.ErrReadOnly
	}
	if err != nil {
		r.leave()
	}
	return err
}

func (r *remote) Sync(ctx context.Context) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.leave()
	err := r.witness.Sync(ctx, r.s.instances.Load, func() error {
		return r.s.mutate(ctx, telemapv1.Region_Sync_FullMethodName, func(st *telemapv1.Stamp) any {
			return &telemapv1.SyncRequest{Name: r.info.Name, Stamp: st}
		}, &telemapv1.SyncReply{})
	})
	if err == region.ErrLost {
		return fmt.Errorf("sync %q: the server restarted: %w", r.info.Name, err)
	}
	return err
}

// step is how much one request zeros or discards, so that a connection that
// breaks meanwhile does not bring a long operation back to its start.
const step = 1 << 30

// Zero implements backend.Zeroer.
func (r *remote) Zero(ctx context.Context, off, n int64) error {
	return r.inSteps(ctx, off, n, func(ctx context.Context, off, n int64) error {
		return r.s.mutate(ctx, telemapv1.Region_Zero_FullMethodName, func(st *telemapv1.Stamp) any {
			return &telemapv1.ZeroRequest{Stamp: st, Name: r.info.Name, Off: off, Len: n}
		}, &telemapv1.ZeroReply{})
	})
}

// Discard implements backend.Discarder.
func (r *remote) Discard(ctx context.Context, off, n int64) error {
	return r.inSteps(ctx, off, n, func(ctx context.Context, off, n int64) error {
		return r.s.mutate(ctx, telemapv1.Region_Discard_FullMethodName, func(st *telemapv1.Stamp) any {
			return &telemapv1.DiscardRequest{Stamp: st, Name: r.info.Name, Off: off, Len: n}
		}, &telemapv1.DiscardReply{})
	})
}

func (r *remote) inSteps(ctx context.Context, off, n int64, one func(ctx context.Context, off, n int64) error) error {
	if err := r.enterMutation(ctx, off, n); err != nil {
		return err
	}
	defer r.leave()
	defer r.witness.Wrote(r.s.instances.Load())
	for n > 0 {
		k := min(n, step)
		if err := one(ctx, off, k); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// NextData implements backend.Extenter.
func (r *remote) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := r.enter(ctx); err != nil {
		return region.Range{}, err
	}
	defer r.leave()
	if !region.Check(off, 0, r.info.Size) {
		return region.Range{}, region.ErrOutOfRange
	}
	var reply telemapv1.NextDataReply
	in := &telemapv1.NextDataRequest{Name: r.info.Name, Off: off}
	if err := r.s.c.do(ctx, telemapv1.Region_NextData_FullMethodName, in, &reply); err != nil {
		return region.Range{}, err
	}
	if reply.Data == nil {
		return region.Range{}, io.EOF
	}
	d := region.Range{Off: reply.Data.Off, Len: reply.Data.Len}
	if d.Off < off || d.Len < 1 || !region.Check(d.Off, d.Len, r.info.Size) {
		return region.Range{}, fmt.Errorf("the server says that %d bytes of data follow at %d, which cannot be", d.Len, d.Off)
	}
	return d, nil
}

// ReadVec implements backend.VectorReader.
func (r *remote) ReadVec(ctx context.Context, v []backend.Vec) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.leave()
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), r.info.Size) {
			return region.ErrOutOfRange
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for len(v) > 0 {
		// As many as fit in one message; one that alone does not is read in parts.
		var n int64
		k := 0
		for k < len(v) && k < r.s.maxSpans && (k == 0 || n+int64(len(v[k].P)) <= r.s.payload) {
			n += int64(len(v[k].P))
			k++
		}
		some := v[:k]
		v = v[k:]
		g.Go(func() error {
			if n > r.s.payload {
				_, err := inParts(ctx, some[0].P, some[0].Off, r.s.payload, r.readPart)
				return err
			}
			return r.readVec(ctx, some, n)
		})
	}
	return g.Wait()
}

func (r *remote) readVec(ctx context.Context, v []backend.Vec, n int64) error {
	in := &telemapv1.ReadVecRequest{Name: r.info.Name}
	out := payload{}
	for _, x := range v {
		in.Spans = append(in.Spans, &telemapv1.Span{Off: x.Off, Len: int64(len(x.P))})
		out.pieces = append(out.pieces, x.P)
	}
	if err := r.s.c.do(ctx, telemapv1.Region_ReadVec_FullMethodName, in, &out); err != nil {
		return err
	}
	_, err := out.done(n)
	return err
}
