package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"google.golang.org/grpc"

	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
	telemapv1 "github.com/telemap/telemap/transport/grpc/proto/telemap/v1"
)

// A Session is a client's relation to a telemap server. It implements
// [transport.Session].
type Session struct {
	c        *client
	payload  int64
	maxSpans int

	attaching sync.Mutex // held while a new identity is asked for
	mu        sync.Mutex
	stamp     stamp
	instances atomic.Int64 // of the server, or of its memory of us, that we met
}

var _ transport.Session = (*Session)(nil)

// A stamp is the session's identity at the server and the generation of its
// mutations there.
type stamp struct {
	session    sessionID
	generation uint64
}

func (s stamp) message() *telemapv1.Stamp {
	return &telemapv1.Stamp{Session: s.session[:], Generation: s.generation}
}

// Dial connects to the server at target, "host:port" or "unix:///path" (gRPC's
// other target names work too), and returns once it has answered. It does not
// wait for a server that is not there: the error wraps region.ErrUnavailable.
// The context bounds only the dialling.
func Dial(ctx context.Context, target string, o Options) (*Session, error) {
	c, err := newClient(target, &o)
	if err != nil {
		return nil, err
	}
	s := &Session{c: c}
	if err := s.attach(ctx, &o); err != nil {
		c.close()
		if errors.Is(err, errors.ErrUnsupported) {
			err = fmt.Errorf("%w (is it an r3map server? dial those as r3map)", err)
		}
		if errors.Is(err, errUnreachable) {
			err = fmt.Errorf("%w: %w", region.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("dial grpc %s: %w", target, err)
	}
	return s, nil
}

// attach asks for an identity. With o it also learns the server's limits.
func (s *Session) attach(ctx context.Context, o *Options) error {
	var reply telemapv1.AttachReply
	if err, _ := s.c.once(ctx, telemapv1.Region_Attach_FullMethodName, &telemapv1.AttachRequest{}, &reply); err != nil {
		return err
	}
	if len(reply.Session) != len(sessionID{}) || reply.MaxPayload < minPayload || reply.MaxSpans < 1 {
		return errors.New("the server's answer to attach makes no sense")
	}
	if o != nil {
		s.payload = min(o.MaxPayload, reply.MaxPayload)
		s.maxSpans = int(min(reply.MaxSpans, maxSpans))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stamp = stamp{sessionID(reply.Session), 1}
	s.instances.Add(1)
	return nil
}

func (s *Session) current() stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stamp
}

// raise starts a new generation, unless used is not of the current one any more.
func (s *Session) raise(used stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stamp == used {
		s.stamp.generation++
	}
}

// mutate makes a call that must not be overtaken by an earlier copy of itself,
// nor outlive its own failure and overwrite what a later call wrote. Whenever it
// is not known whether a request is over, the generation is raised: the server
// then lets the old ones end before it starts the new.
func (s *Session) mutate(ctx context.Context, method string, in func(*telemapv1.Stamp) any, out any) error {
	r := retry{c: s.c}
	for {
		used := s.current()
		err, answered := s.c.once(ctx, method, in(used.message()), out)
		switch {
		case err == nil:
			return nil
		case !answered:
			s.raise(used)
			err = r.again(ctx, err)
		case errors.Is(err, errStale) && s.current() != used:
			continue // refused because another call raised the generation meanwhile
		case errors.Is(err, errUnknown):
			if err = s.reattach(ctx, used); err != nil {
				err = r.again(ctx, err)
			}
		}
		if err != nil {
			return err
		}
	}
}

// reattach replaces an identity that the server has forgotten.
func (s *Session) reattach(ctx context.Context, forgotten stamp) error {
	s.attaching.Lock()
	defer s.attaching.Unlock()
	if s.current().session != forgotten.session {
		return nil // somebody else did
	}
	return s.attach(ctx, nil)
}

// Open implements [transport.Session]. The region is a backend.Backend and has
// the abilities Zero, Discard, NextData and ReadVec; what the other side's lacks,
// the server makes up for.
func (s *Session) Open(ctx context.Context, name string) (transport.Region, transport.Info, error) {
	if err := s.c.gate.enter(); err != nil {
		return nil, transport.Info{}, err
	}
	defer s.c.gate.leave()
	if len(name) > transport.MaxName || !utf8.ValidString(name) {
		return nil, transport.Info{}, fmt.Errorf("%q: %w", name, region.ErrNotFound)
	}
	var reply telemapv1.OpenReply
	if err := s.c.do(ctx, telemapv1.Region_Open_FullMethodName, &telemapv1.OpenRequest{Name: name}, &reply); err != nil {
		return nil, transport.Info{}, err
	}
	info, err := infoFrom(reply.Info)
	if err != nil {
		return nil, transport.Info{}, err
	}
	return &remote{s: s, info: info, witness: transport.NewWitness()}, info, nil
}

// infoFrom checks what a server says of a region.
func infoFrom(m *telemapv1.Info) (transport.Info, error) {
	i := transport.Info{Name: m.GetName(), Size: m.GetSize(), ReadOnly: m.GetReadOnly(), ChunkSize: m.GetChunkSize()}
	if i.Size < 1 || len(i.Name) > transport.MaxName || i.ChunkSize < 0 || i.ChunkSize&(i.ChunkSize-1) != 0 {
		return transport.Info{}, errors.New("the server describes a region that cannot be")
	}
	return i, nil
}

// maxRegions bounds what a server can make List collect.
const maxRegions = 1 << 20

// List implements [transport.Session].
func (s *Session) List(ctx context.Context) ([]transport.Info, error) {
	if err := s.c.gate.enter(); err != nil {
		return nil, err
	}
	defer s.c.gate.leave()
	r := retry{c: s.c}
	for {
		infos, err := s.list(ctx)
		if err == nil {
			return infos, nil
		}
		if err := r.again(ctx, err); err != nil {
			return nil, err
		}
	}
}

func (s *Session) list(ctx context.Context) ([]transport.Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // frees the stream when we leave before its end
	failed := func(err error) error {
		mapped, answered := fromStatus(err)
		switch {
		case answered:
			return mapped
		case s.c.gate.isShut():
			return region.ErrClosed
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return mapped
	}
	stream, err := s.c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, telemapv1.Region_List_FullMethodName)
	if err != nil {
		return nil, failed(err)
	}
	if err := stream.SendMsg(&telemapv1.ListRequest{}); err != nil && err != io.EOF {
		return nil, failed(err)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, failed(err)
	}
	infos := []transport.Info{}
	for {
		var reply telemapv1.ListReply
		switch err := stream.RecvMsg(&reply); {
		case err == io.EOF:
			return infos, nil
		case err != nil:
			return nil, failed(err)
		}
		for _, m := range reply.Regions {
			info, err := infoFrom(m)
			if err != nil {
				return nil, err
			}
			if len(infos) == maxRegions {
				return nil, fmt.Errorf("the server lists more than %d regions", maxRegions)
			}
			infos = append(infos, info)
		}
	}
}

// Close implements [transport.Session]. It returns once no call is in flight.
func (s *Session) Close() error { return s.c.close() }
