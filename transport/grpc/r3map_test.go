package grpc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// rawCodec passes messages as the bytes they are, so that these tests do not
// lean on our generated code.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (rawCodec) Unmarshal(b mem.BufferSlice, v any) error {
	*v.(*[]byte) = b.Materialize()
	return nil
}

const r3mapPrefix = "/com.pojtinger.felicitas.r3map.mount.v1.Backend/"

func rawConn(t testing.TB, addr string) func(method string, in ...byte) ([]byte, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func(method string, in ...byte) (out []byte, err error) {
		err = conn.Invoke(t.Context(), method, &in, &out)
		return out, err
	}
}

// The requests below are what r3map's own client puts on the wire.
func TestR3mapClientOnTheWire(t *testing.T) {
	b := memory(t, 10)
	call := rawConn(t, serve(t, only(b), ServerOptions{}).addr)

	// WriteAtArgs{Off: 6, P: "wxyz"} → WriteAtReply{Length: 4}
	out, err := call(r3mapPrefix+"WriteAt", 0x08, 6, 0x12, 4, 'w', 'x', 'y', 'z')
	if err != nil || !bytes.Equal(out, []byte{0x08, 4}) {
		t.Errorf("WriteAt = % x, %v; want 08 04", out, err)
	}
	// ReadAtArgs{Length: 3, Off: 6} → ReadAtReply{N: 3, P: "wxy"}
	out, err = call(r3mapPrefix+"ReadAt", 0x08, 3, 0x10, 6)
	if err != nil || !bytes.Equal(out, []byte{0x08, 3, 0x12, 3, 'w', 'x', 'y'}) {
		t.Errorf("ReadAt = % x, %v; want N=3 P=wxy", out, err)
	}
	// Across the end: N says what there was, P is as long as asked for.
	out, err = call(r3mapPrefix+"ReadAt", 0x08, 5, 0x10, 8)
	if err != nil || !bytes.Equal(out, []byte{0x08, 2, 0x12, 5, 'y', 'z', 0, 0, 0}) {
		t.Errorf("ReadAt across the end = % x, %v; want N=2 P=yz and zeros", out, err)
	}
	if out, err = call(r3mapPrefix + "Sync"); err != nil || len(out) != 0 {
		t.Errorf("Sync = % x, %v; want an empty reply", out, err)
	}
	// A read of no bytes at 0 is the empty message.
	if _, err = call(r3mapPrefix + "ReadAt"); err != nil {
		t.Errorf("ReadAt of nothing = %v", err)
	}
}

func TestR3mapServerRefusesBeforeAllocating(t *testing.T) {
	b := memory(t, 1<<30)
	call := rawConn(t, serve(t, only(b), ServerOptions{}).addr)
	args := func(length, off uint64) []byte {
		p := protowire.AppendVarint([]byte{0x08}, length)
		return protowire.AppendVarint(append(p, 0x10), off)
	}
	for name, c := range map[string]struct {
		method string
		in     []byte
		code   codes.Code
	}{
		"negative length":    {"ReadAt", args(^uint64(0), 0), codes.InvalidArgument}, // crashed r3map
		"most negative":      {"ReadAt", args(1<<31, 0), codes.InvalidArgument},
		"huge length":        {"ReadAt", args(1<<31-1, 0), codes.InvalidArgument},
		"above the limit":    {"ReadAt", args(4<<20+1, 0), codes.InvalidArgument},
		"negative offset":    {"ReadAt", args(1, ^uint64(0)), codes.OutOfRange},
		"behind the end":     {"ReadAt", args(1, 1<<30+1), codes.OutOfRange},
		"write behind":       {"WriteAt", append(protowire.AppendVarint([]byte{0x08}, 1<<30), 0x12, 1, 'x'), codes.OutOfRange},
		"write far behind":   {"WriteAt", append(protowire.AppendVarint([]byte{0x08}, 1<<63-1), 0x12, 1, 'x'), codes.OutOfRange},
		"write before":       {"WriteAt", append(protowire.AppendVarint([]byte{0x08}, ^uint64(0)), 0x12, 1, 'x'), codes.OutOfRange},
		"malformed":          {"ReadAt", []byte{0x12, 0xff}, codes.Internal},
		"unknown method":     {"Size", nil, codes.Unimplemented},
		"message over limit": {"WriteAt", append(protowire.AppendVarint([]byte{0x12}, 5<<20), make([]byte, 5<<20)...), codes.ResourceExhausted},
	} {
		if _, err := call(r3mapPrefix+c.method, c.in...); status.Code(err) != c.code {
			t.Errorf("%s = %v; want %v", name, err, c.code)
		}
	}
}

func TestR3mapRegionIsChosen(t *testing.T) {
	a, b := memory(t, 1), memory(t, 1)
	if _, err := b.WriteAt(t.Context(), []byte("b"), 0); err != nil {
		t.Fatal(err)
	}
	c := transport.Exports{
		{Region: a, Info: transport.Info{Name: "a", Size: 1}},
		{Region: b, Info: transport.Info{Name: "b", Size: 1, ReadOnly: true}},
	}
	if _, err := rawConn(t, serve(t, c, ServerOptions{}).addr)(r3mapPrefix+"ReadAt", 0x08, 1); status.Code(err) != codes.NotFound {
		t.Errorf("ReadAt without a chosen region = %v; want NotFound", err)
	}
	r, err := DialR3map(t.Context(), serve(t, c, ServerOptions{R3map: "b"}).addr, 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, 1)
	if _, err := r.ReadAt(t.Context(), p, 0); err != nil || p[0] != 'b' {
		t.Errorf("ReadAt = %q, %v; want b", p, err)
	}
	if _, err := r.WriteAt(t.Context(), p, 0); !errors.Is(err, region.ErrReadOnly) {
		t.Errorf("WriteAt = %v; want ErrReadOnly", err)
	}
}

// A rawServer answers what r3map's own server would, from hand-written bytes.
func rawServer(t *testing.T, answer func(method string, in []byte) ([]byte, error)) string {
	l := listen(t, "tcp", "127.0.0.1:0")
	g := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.WaitForHandlers(true),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			var in []byte
			if err := s.RecvMsg(&in); err != nil {
				return err
			}
			method, _ := grpc.MethodFromServerStream(s)
			out, err := answer(method, in)
			if err != nil {
				return err
			}
			return s.SendMsg(&out)
		}))
	done := make(chan struct{})
	go func() { g.Serve(l); close(done) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String()
}

func TestR3mapServerOnTheWire(t *testing.T) {
	replies := map[string]string{
		r3mapPrefix + "ReadAt":                             "\x12\x00", // Dial asks for nothing
		r3mapPrefix + "ReadAt\x08\x03\x10\x06":             "\x08\x03\x12\x03abc",
		r3mapPrefix + "ReadAt\x08\x02":                     "\x08\x01\x12\x02a\x00", // shorter than we were told
		r3mapPrefix + "ReadAt\x08\x01":                     "\x08\x01\x12\x09123456789",
		r3mapPrefix + "ReadAt\x08\x04":                     "\x08\x04\x12\x02ab", // N and P disagree
		r3mapPrefix + "WriteAt\x08\x05\x12\x02yz":          "\x08\x02",
		r3mapPrefix + "WriteAt\x12\x03xyz":                 "\x08\x02",
		r3mapPrefix + "Sync":                               "",
		r3mapPrefix + "WriteAt\x08\x01\x12\x01x":           "\x08\x01",
		r3mapPrefix + "ReadAt\x08\x01\x10\x09":             "error",
		r3mapPrefix + "WriteAt\x08\x09\x12\x01x":           "error",
		r3mapPrefix + "ReadAt\x08\xff\xff\xff\xff\xff\x01": "error",
	}
	addr := rawServer(t, func(method string, in []byte) ([]byte, error) {
		out, ok := replies[method+string(in)]
		if !ok {
			return nil, fmt.Errorf("unexpected %s % x", method, in)
		}
		if out == "error" {
			return nil, errors.New("EOF") // as r3map does: a status without details
		}
		return []byte(out), nil
	})
	ctx := within(t)
	r, err := DialR3map(ctx, addr, 10, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, 3)
	if n, err := r.ReadAt(ctx, p, 6); n != 3 || err != nil || string(p) != "abc" {
		t.Errorf("ReadAt(off=6) = %d, %v, %q; want abc", n, err, p)
	}
	if _, err := r.ReadAt(ctx, p[:2], 0); err == nil {
		t.Error("ReadAt took a short reply")
	}
	if _, err := r.ReadAt(ctx, p[:1], 0); err != nil || p[0] != '1' {
		t.Errorf("ReadAt with a long reply = %q, %v; want its first byte", p[:1], err)
	}
	if _, err := r.ReadAt(ctx, make([]byte, 4), 0); err == nil {
		t.Error("ReadAt took a reply with less than it says")
	}
	if n, err := r.WriteAt(ctx, []byte("yz"), 5); n != 2 || err != nil {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	if _, err := r.WriteAt(ctx, []byte("xyz"), 0); err == nil {
		t.Error("WriteAt took a short count")
	}
	if err := r.Sync(ctx); err != nil {
		t.Errorf("Sync = %v", err)
	}
	if _, err := r.ReadAt(ctx, p[:2], 9); err == nil || err == io.EOF {
		t.Errorf("ReadAt that the server fails = %v; want its error", err)
	}
	if _, err := r.ReadAt(ctx, p, 11); !errors.Is(err, region.ErrOutOfRange) {
		t.Errorf("ReadAt behind the end = %v; want ErrOutOfRange", err)
	}
	if _, err := r.WriteAt(ctx, p, 8); !errors.Is(err, region.ErrOutOfRange) {
		t.Errorf("WriteAt behind the end = %v; want ErrOutOfRange", err)
	}
	if _, err := Dial(ctx, addr, Options{}); err == nil {
		t.Error("Dial took an r3map server for a telemap server")
	}
	if _, err := DialR3map(ctx, addr, 0, Options{}); err == nil {
		t.Error("DialR3map without a size succeeded")
	}
}

func TestR3mapWriteIsNotRepeated(t *testing.T) {
	ctx := within(t)
	h := hold(t, memory(t, 16), true)
	p := newProxy(t, serve(t, only(h), ServerOptions{}).addr)
	r, err := DialR3map(ctx, p.addr(), 16, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan error, 1)
	go func() { _, err := r.WriteAt(ctx, []byte("old"), 0); done <- err }()
	wait(t, ctx, "write", h.entered)
	p.cut()
	if err := wait(t, ctx, "write", done); !errors.Is(err, region.ErrUnavailable) {
		t.Errorf("WriteAt across a lost connection = %v; want ErrUnavailable", err)
	}
	h.leave <- struct{}{}
	got := make([]byte, 3)
	if _, err := r.ReadAt(ctx, got, 4); err != nil {
		t.Errorf("ReadAt after a lost connection = %v", err)
	}
	if _, err := r.WriteAt(ctx, []byte("new"), 8); err != nil {
		t.Errorf("WriteAt after a lost connection = %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	begun := 0
	for _, line := range h.log {
		if line == "begin old" {
			begun++
		}
	}
	if begun != 1 {
		t.Errorf("the write was carried out %d times", begun)
	}
}
