package tcp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

// traffic is what a client that behaves may say.
func traffic(frames ...any) []byte {
	var b bytes.Buffer
	b.Write(hello{version: version, payload: maxPayload, session: [16]byte{1}, generation: 1}.encode())
	for i := 0; i < len(frames); i += 2 {
		h, body := frames[i].(header), frames[i+1].(string)
		h.id, h.length = uint64(i+1), uint32(len(body))
		var head [headerLen]byte
		h.put(&head)
		b.Write(head[:])
		b.WriteString(body)
	}
	return b.Bytes()
}

// FuzzServerConn lets a peer say anything to a server: it must survive, end and
// keep the region's bytes unless the peer writes.
func FuzzServerConn(f *testing.F) {
	f.Add(traffic())
	f.Add(traffic(header{op: opPing}, "", header{op: opList}, ""))
	f.Add(traffic(header{op: opOpen, handle: 1}, "r", header{op: opRead, handle: 1, off: 5, n: 10}, "", header{op: opWrite, handle: 1, off: 90}, "0123456789"))
	f.Add(traffic(header{op: opOpen, handle: 1}, "", header{op: opReadVec, handle: 1, n: 3},
		"\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00", header{op: opSync, handle: 1}, ""))
	f.Add(traffic(header{op: opOpen, handle: 1}, "r", header{op: opZero, handle: 1, off: 1, n: 99}, "", header{op: opDiscard, handle: 1, n: 100}, "",
		header{op: opNextData, handle: 1}, "", header{op: opCancel, off: 3}, "", header{op: opClose, handle: 1}, "", header{op: opRead, handle: 1, n: 1}, ""))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n" + strings.Repeat(" ", 60)))
	f.Fuzz(func(t *testing.T, said []byte) {
		r := newHooked(100)
		s := NewServer(only(r), ServerOptions{})
		a, b := net.Pipe()
		served := make(chan error, 1)
		go func() {
			err := s.serveConn(context.Background(), b)
			b.Close() // as Serve does
			served <- err
		}()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			io.Copy(io.Discard, a)
		}()
		a.SetDeadline(time.Now().Add(10 * time.Second))
		a.Write(said)
		a.Close()
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Fatal("the server goes on after its peer has left")
		}
		<-drained
		if n := s.Stats(); n.InFlight != 0 || len(s.slots) != 0 {
			t.Errorf("%+v and %d slots remain", n, len(s.slots))
		}
	})
}

// FuzzClientReply lets a server answer anything: the session must survive, and
// nothing of it may lie outside what was asked for.
func FuzzClientReply(f *testing.F) {
	reply := func(h header, body string) []byte {
		h.length = uint32(len(body))
		var b [headerLen]byte
		h.put(&b)
		return append(b[:], body...)
	}
	info := string(appendInfo(nil, transport.Info{Name: "r", Size: 100}))
	f.Add(reply(header{op: opOpen, id: 1}, info), reply(header{op: opRead, id: 2}, "0123456789"))
	f.Add(reply(header{op: opOpen, id: 1}, info), reply(header{op: opRead, id: 2, code: failed, n: 4}, "0123no more"))
	f.Add(reply(header{op: opOpen, id: 1}, info), reply(header{op: opRead, id: 2, code: outOfRange}, ""))
	f.Add(reply(header{op: opOpen, id: 1, code: notFound}, "no"), []byte{})
	f.Add(reply(header{op: opPing}, ""), reply(header{id: 99}, info))
	w := welcome{version: version, payload: maxPayload, inflight: maxInFlight}.encode()
	f.Fuzz(func(t *testing.T, first, second []byte) {
		a, b := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			defer b.Close()
			b.SetDeadline(time.Now().Add(50 * time.Millisecond)) // then it hangs up
			io.ReadFull(b, make([]byte, helloLen))
			b.Write(w)
			for _, answer := range [][]byte{first, second} {
				if _, _, err := receive(b); err != nil {
					return
				}
				b.Write(answer)
			}
			receive(b) // hangs up on the next, or when the client does
		}()
		s, err := newSession("pipe", Options{Conns: 1, RetryBudget: 5 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		pipe := make(chan net.Conn, 1)
		pipe <- a
		s.dial = func(context.Context) (net.Conn, error) {
			select {
			case c := <-pipe:
				return c, nil
			default:
				return nil, errors.New("no more connections")
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.begin(ctx); err != nil {
			t.Fatal(err)
		}
		if r, info, err := s.Open(ctx, "r"); err == nil {
			if info.Size <= 0 || len(info.Name) > transport.MaxName {
				t.Errorf("Open = %+v", info)
			}
			p := bytes.Repeat([]byte{0xDB}, 30)
			n, err := r.ReadAt(ctx, p[10:20:20], 0)
			if n < 0 || n > 10 || n < 10 && err == nil {
				t.Errorf("ReadAt = %d, %v", n, err)
			}
			if !bytes.Equal(p[:10], p[20:]) || p[0] != 0xDB {
				t.Error("bytes beside the buffer were changed")
			}
		} else if ctx.Err() != nil {
			t.Errorf("Open hangs: %v", err)
		}
		s.Close()
		<-served
	})
}

// FuzzWire decodes whatever comes and encodes it again.
func FuzzWire(f *testing.F) {
	f.Add(hello{version: version, payload: maxPayload}.encode())
	f.Add(welcome{version: version, payload: maxPayload, text: "text"}.encode())
	f.Add(welcome{version: version, status: unavailable, text: "go away"}.encode())
	f.Add(appendInfo(appendInfo(nil, transport.Info{Name: "a", Size: 1}), transport.Info{Name: "b", Size: 1 << 40, ChunkSize: 4096, ReadOnly: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decodeHello(b); err == nil {
			if again, err := decodeHello(h.encode()); err != nil || again != h {
				t.Errorf("hello %+v became %+v, %v", h, again, err)
			}
		}
		w, err := readWelcome(bytes.NewReader(b))
		if err == nil {
			if again, err := readWelcome(bytes.NewReader(w.encode())); err != nil || again != w {
				t.Errorf("welcome %+v became %+v, %v", w, again, err)
			}
		} else if len(w.text) > 4*maxText {
			t.Errorf("a text of %d bytes", len(w.text))
		}
		for rest := b; len(rest) > 0; {
			in, behind, err := cutInfo(rest)
			if err != nil {
				if !errors.Is(err, ErrProtocol) {
					t.Errorf("cutInfo = %v; want %v", err, ErrProtocol)
				}
				break
			}
			again, none, err := cutInfo(appendInfo(nil, in))
			if err != nil || again != in || len(none) != 0 || len(behind) >= len(rest) {
				t.Errorf("info %+v became %+v, %v", in, again, err)
			}
			rest = behind
		}
		var head [headerLen]byte
		copy(head[:], b)
		var h, again header
		h.get(&head)
		h.put(&head)
		again.get(&head)
		if again != h {
			t.Errorf("header %+v became %+v", h, again)
		}
	})
}

func TestErrorsCrossTheWire(t *testing.T) {
	for _, s := range sentinels {
		for _, err := range []error{s.err, &remoteError{"wrapped", s.err}} {
			if got := decodeError(encodeError(err)); !errors.Is(got, s.err) || got.Error() != err.Error() {
				t.Errorf("%v arrives as %v", err, got)
			}
		}
	}
	if got := decodeError(code(999), ""); got == nil || got.Error() == "" {
		t.Errorf("an unknown code arrives as %v; want an error with text", got)
	}
	// The peer cannot end our contexts.
	if got := decodeError(encodeError(context.Canceled)); got == nil || errors.Is(got, context.Canceled) {
		t.Errorf("%v arrives as %v; want an error that is not that one", context.Canceled, got)
	}
	if c, text := encodeError(region.ErrFenced); c != fenced || text != "" {
		t.Errorf("%v travels as code %d, %q", region.ErrFenced, c, text)
	}
}
