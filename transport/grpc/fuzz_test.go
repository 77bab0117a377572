package grpc

import (
	"context"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	mountv1 "github.com/telemap/telemap/transport/grpc/proto/r3map/mount/v1"
	telemapv1 "github.com/telemap/telemap/transport/grpc/proto/telemap/v1"
)

// FuzzHandlers gives every handler arbitrary messages. None may panic, and a
// reply carries no more than the limit.
func FuzzHandlers(f *testing.F) {
	s := NewServer(only(memory(f, 1<<30)), ServerOptions{MaxPayload: 8 << 10})
	id, err := s.sessions.attach()
	if err != nil {
		f.Fatal(err)
	}
	service, r3map := regionService{s: s}, r3mapServer{s: s}
	stamp := stamp{id, 1}.message()
	for i, m := range []proto.Message{
		&telemapv1.OpenRequest{Name: "r"},
		&telemapv1.ReadRequest{Off: 1, Len: 100},
		&telemapv1.ReadVecRequest{Spans: []*telemapv1.Span{{Off: 1, Len: 5}, {Off: 1 << 20, Len: 0}}},
		&telemapv1.WriteRequest{Stamp: stamp, Off: 3, Data: []byte("bytes")},
		&telemapv1.SyncRequest{},
		&telemapv1.ZeroRequest{Stamp: stamp, Off: 1, Len: 10},
		&telemapv1.DiscardRequest{Stamp: stamp, Off: 1, Len: 10},
		&telemapv1.NextDataRequest{Off: 4},
		&mountv1.ReadAtArgs{Length: 5, Off: 1},
		&mountv1.WriteAtArgs{Off: 1, P: []byte("bytes")},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), b)
	}
	f.Add(byte(8), []byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}) // Length -1
	f.Fuzz(func(t *testing.T, which byte, b []byte) {
		call := func(m proto.Message, handle func(context.Context) (any, error)) {
			if proto.Unmarshal(b, m) != nil {
				return
			}
			out, err := s.unary(t.Context(), m, nil, func(ctx context.Context, _ any) (any, error) { return handle(ctx) })
			if err != nil {
				if _, ok := status.FromError(err); !ok {
					t.Errorf("%v is no status", err)
				}
				return
			}
			sent, err := newCodec().Marshal(out)
			if err != nil {
				t.Fatal(err)
			}
			if n := sent.Len(); n > 8<<10+overhead {
				t.Errorf("reply of %d bytes", n)
			}
			sent.Free()
			if !s.inFlight.TryAcquire(s.o.MaxInFlight) {
				t.Fatal("bytes in flight were not given back")
			}
			s.inFlight.Release(s.o.MaxInFlight)
		}
		switch which % 10 {
		case 0:
			m := &telemapv1.OpenRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.Open(ctx, m) })
		case 1:
			m := &telemapv1.ReadRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.Read(ctx, m) })
		case 2:
			m := &telemapv1.ReadVecRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.ReadVec(ctx, m) })
		case 3:
			m := &telemapv1.WriteRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.Write(ctx, m) })
		case 4:
			m := &telemapv1.SyncRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.Sync(ctx, m) })
		case 5:
			m := &telemapv1.ZeroRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.Zero(ctx, m) })
		case 6:
			m := &telemapv1.DiscardRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.Discard(ctx, m) })
		case 7:
			m := &telemapv1.NextDataRequest{}
			call(m, func(ctx context.Context) (any, error) { return service.NextData(ctx, m) })
		case 8:
			m := &mountv1.ReadAtArgs{}
			call(m, func(ctx context.Context) (any, error) { return r3map.ReadAt(ctx, m) })
		case 9:
			m := &mountv1.WriteAtArgs{}
			call(m, func(ctx context.Context) (any, error) { return r3map.WriteAt(ctx, m) })
		}
	})
}

// FuzzReply reads arbitrary replies, cut anywhere, and agrees with package proto
// on those that proto can read.
func FuzzReply(f *testing.F) {
	f.Add([]byte{0x0a, 3, 'a', 'b', 'c'}, 1)
	f.Add([]byte{0x08, 1, 0x0a, 0, 0x0a, 1, 'x', 0x15, 1, 2, 3, 4, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x22, 1, 'y'}, 5)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, 2)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		cut = max(0, min(cut, len(b)))
		a, z := make([]byte, 3), make([]byte, 5)
		p := payload{pieces: [][]byte{a, z}}
		err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:cut]), mem.SliceBuffer(b[cut:])}, &p)
		var want telemapv1.ReadReply
		if proto.Unmarshal(b, &want) != nil || err != nil {
			return
		}
		got := append(a, z...)[:p.n]
		if string(got) != string(want.Data) {
			t.Errorf("read %q; package proto reads %q", got, want.Data)
		}
	})
}
