package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/connectivity"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	mountv1 "github.com/telemap/telemap/transport/grpc/proto/r3map/mount/v1"
)

// r3mapService is the name that r3map's clients and servers know.
const r3mapService = "com.pojtinger.felicitas.r3map.mount.v1.Backend"

// r3mapServer serves one region to r3map's clients.
type r3mapServer struct {
	mountv1.UnsafeBackendServer
	s *Server
}

// ReadAt answers a read that reaches behind the end of the region with what
// there is: N is that count, P is as long as was asked for, zeros at its end.
// Clients of r3map copy all of P to where they have old bytes.
func (r r3mapServer) ReadAt(ctx context.Context, in *mountv1.ReadAtArgs) (*mountv1.ReadAtReply, error) {
	x, size, err := r.s.lookup(ctx, r.s.o.R3map)
	if err != nil {
		return nil, err
	}
	if in.Off < 0 || in.Off > size {
		return nil, region.ErrOutOfRange
	}
	if err := r.s.hold(ctx, int64(in.Length)); err != nil {
		return nil, err
	}
	p := *buffers.Get(int(in.Length))
	n := min(int64(in.Length), size-in.Off)
	clear(p[n:])
	if err := backend.ReadFull(ctx, x.Region, p[:n], in.Off); err != nil {
		buffers.Put(&p)
		return nil, err
	}
	return &mountv1.ReadAtReply{N: int32(n), P: p}, nil
}

func (r r3mapServer) WriteAt(ctx context.Context, in *mountv1.WriteAtArgs) (*mountv1.WriteAtReply, error) {
	x, size, err := r.s.lookup(ctx, r.s.o.R3map)
	if err != nil {
		return nil, err
	}
	n := int64(len(in.P))
	switch {
	case !region.Check(in.Off, n, size):
		return nil, region.ErrOutOfRange
	case x.Info.ReadOnly:
		return nil, region.ErrReadOnly
	}
	if err := r.s.hold(ctx, n); err != nil {
		return nil, err
	}
	if _, err := counted(x.Region.WriteAt(ctx, in.P, in.Off))(len(in.P)); err != nil {
		return nil, err
	}
	return &mountv1.WriteAtReply{Length: int32(n)}, nil
}

func (r r3mapServer) Sync(ctx context.Context, _ *mountv1.SyncArgs) (*mountv1.SyncReply, error) {
	x, _, err := r.s.lookup(ctx, r.s.o.R3map)
	if err != nil {
		return nil, err
	}
	return &mountv1.SyncReply{}, x.Region.Sync(ctx)
}

// R3map is a region behind an r3map server. It implements backend.Backend.
//
// Reads and Sync are tried again like those of a [Session]. Writes are not once
// they may have reached the server: this protocol cannot tell an old copy of a
// write from a new write, and an old copy that arrives late would overwrite what
// was written since. Such a write fails with region.ErrUnavailable.
type R3map struct {
	c       *client
	size    int64
	payload int64
}

var _ backend.Backend = (*R3map)(nil)

// DialR3map connects to the r3map server at target, as [Dial] does, and returns
// once it has answered. The protocol does not say how long a region is: size
// must be what the server was started with.
func DialR3map(ctx context.Context, target string, size int64, o Options) (*R3map, error) {
	if size < 1 {
		return nil, fmt.Errorf("dial r3map %s: size is %d bytes: give the server's, its protocol does not tell", target, size)
	}
	c, err := newClient(target, &o)
	if err != nil {
		return nil, err
	}
	// Any answer shows that it is there: some stores refuse to read no bytes.
	err, answered := c.once(ctx, r3mapMethod("ReadAt"), &mountv1.ReadAtArgs{}, &mountv1.ReadAtReply{})
	if err != nil && !answered && (c.conn.GetState() != connectivity.Ready || errors.Is(err, errors.ErrUnsupported) || ctx.Err() != nil) {
		c.close()
		if errors.Is(err, errUnreachable) {
			err = fmt.Errorf("%w: %w", region.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("dial r3map %s: %w", target, err)
	}
	return &R3map{c: c, size: size, payload: o.MaxPayload}, nil
}

func r3mapMethod(name string) string { return "/" + r3mapService + "/" + name }

func (r *R3map) enter(ctx context.Context) error {
	if err := r.c.gate.enter(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		r.c.gate.leave()
		return err
	}
	return nil
}

// ReadAt implements backend.Backend.
func (r *R3map) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.enter(ctx); err != nil {
		return 0, err
	}
	defer r.c.gate.leave()
	p, end := backend.Clip(p, off, r.size)
	if end != nil && end != io.EOF {
		return 0, end
	}
	n, err := inParts(ctx, p, off, r.payload, func(ctx context.Context, p []byte, off int64) (int, error) {
		var reply mountv1.ReadAtReply
		if err := r.c.do(ctx, r3mapMethod("ReadAt"), &mountv1.ReadAtArgs{Length: int32(len(p)), Off: off}, &reply); err != nil {
			return 0, err
		}
		if int(reply.N) != len(p) || len(reply.P) < len(p) {
			return 0, fmt.Errorf("the server sent %d of %d bytes at %d: is its region as long as ours, %d bytes?",
				min(int(reply.N), len(reply.P)), len(p), off, r.size)
		}
		return copy(p, reply.P), nil
	})
	if err == nil {
		err = end
	}
	return n, err
}

// WriteAt implements backend.Backend.
func (r *R3map) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := r.enter(ctx); err != nil {
		return 0, err
	}
	defer r.c.gate.leave()
	if !region.Check(off, int64(len(p)), r.size) {
		return 0, region.ErrOutOfRange
	}
	return inParts(ctx, p, off, r.payload, func(ctx context.Context, p []byte, off int64) (int, error) {
		if err := r.connected(ctx); err != nil {
			return 0, err
		}
		var reply mountv1.WriteAtReply
		err, _ := r.c.once(ctx, r3mapMethod("WriteAt"), &mountv1.WriteAtArgs{Off: off, P: p}, &reply)
		switch {
		case errors.Is(err, errUnreachable):
			return 0, fmt.Errorf("r3map %s: connection lost during a write, which may or may not have been done: %w: %w",
				r.c.target, region.ErrUnavailable, err)
		case err != nil:
			return 0, err
		case int(reply.Length) != len(p):
			return 0, fmt.Errorf("the server wrote %d of %d bytes", reply.Length, len(p))
		}
		return len(p), nil
	})
}

// connected waits for a lost server to come back before a write, which then
// happens once.
func (r *R3map) connected(ctx context.Context) error {
	if r.c.conn.GetState() == connectivity.Ready {
		return nil
	}
	again := retry{c: r.c}
	return again.again(ctx, errUnreachable)
}

// Sync implements backend.Backend.
func (r *R3map) Sync(ctx context.Context) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.c.gate.leave()
	return r.c.do(ctx, r3mapMethod("Sync"), &mountv1.SyncArgs{}, &mountv1.SyncReply{})
}

// Size implements backend.Backend: it is what DialR3map was told.
func (r *R3map) Size() int64 { return r.size }

// Close implements backend.Backend: it waits for calls in flight.
func (r *R3map) Close() error {
	if !r.c.gate.shut() {
		r.c.gate.wait()
		return nil
	}
	r.c.gate.wait()
	return r.c.conn.Close()
}
