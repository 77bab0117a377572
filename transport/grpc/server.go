package grpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
	mountv1 "github.com/telemap/telemap/transport/grpc/proto/r3map/mount/v1"
	telemapv1 "github.com/telemap/telemap/transport/grpc/proto/telemap/v1"
)

// ServerOptions tunes a server. The zero value serves plain text on loopback
// and unix sockets.
type ServerOptions struct {
	// TLS holds the server's certificate and says which clients it trusts.
	// Versions below 1.3 are refused. Without RequireAndVerifyClientCert, or
	// without TLS at all, Serve accepts no listener beyond loopback.
	TLS *tls.Config
	// Insecure lifts that: peers beyond this host need not say who they are.
	Insecure bool
	// R3map names the region that clients of r3map's protocol get. Empty means
	// the only region there is; with several, such clients are refused.
	R3map string
	// MaxPayload is the most bytes of a region that one message may carry, from
	// 4 KiB to 64 MiB. Zero means 4 MiB.
	MaxPayload int64
	// MaxInFlight is the most bytes that requests being carried out and replies
	// not yet sent may hold together; others wait. Zero means 256 MiB. It is at
	// least MaxPayload. Requests still being received count apart: at most 64 per
	// connection.
	MaxInFlight int64
	// Grace is how long requests may go on after Serve's context has ended. Zero
	// means 5 s.
	Grace time.Duration
	// Logger hears of panics in a region's methods and of nothing else. Nil
	// discards.
	Logger *slog.Logger
}

const (
	// maxSpans bounds one ReadVec.
	maxSpans = 1024
	// maxConns and maxStreams, requests of one connection, bound what peers can
	// keep open. 64 requests of the default size fill a link of 10 Gbit/s and
	// 50 ms.
	maxConns   = 256
	maxStreams = 64
	// listBatch is how many regions one message of List describes; 255-byte
	// names keep it well below gRPC's default limit.
	listBatch = 256
)

// A Server offers the regions of a catalog. Make it with [NewServer].
type Server struct {
	catalog  transport.Catalog
	o        ServerOptions
	sessions sessions
	inFlight *semaphore.Weighted
}

// NewServer makes a server. It does not close the catalog's regions.
func NewServer(c transport.Catalog, o ServerOptions) *Server {
	if o.MaxPayload == 0 {
		o.MaxPayload = 4 << 20
	}
	o.MaxPayload = min(max(o.MaxPayload, minPayload), maxPayload)
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 256 << 20
	}
	o.MaxInFlight = max(o.MaxInFlight, o.MaxPayload)
	if o.Grace <= 0 {
		o.Grace = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		catalog: c, o: o,
		sessions: sessions{max: maxSessions},
		inFlight: semaphore.NewWeighted(o.MaxInFlight),
	}
}

// Serve answers the connections of l until ctx ends, and then gives requests in
// flight the grace to finish before it cuts them off. It closes l and returns
// when no request is being carried out any more: nil if ctx ended it. It may be
// called several times, for several listeners.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if err := s.mayServe(l.Addr()); err != nil {
		l.Close()
		return err
	}
	g := s.grpcServer()
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		cut := time.AfterFunc(s.o.Grace, g.Stop)
		g.GracefulStop()
		cut.Stop()
	})
	err := g.Serve(netutil.LimitListener(l, maxConns))
	if stop() { // the listener failed
		g.Stop()
		return fmt.Errorf("serve grpc on %s: %w", l.Addr(), err)
	}
	<-done
	return nil
}

func (s *Server) mayServe(a net.Addr) error {
	tcp, ok := a.(*net.TCPAddr)
	switch {
	case !ok || tcp.IP.IsLoopback() || s.o.Insecure:
		return nil
	case s.o.TLS == nil:
		return fmt.Errorf("serve grpc on %s: give it TLS, or listen on loopback or a unix socket", a)
	case s.o.TLS.ClientAuth != tls.RequireAndVerifyClientCert && s.o.TLS.GetConfigForClient == nil:
		return fmt.Errorf("serve grpc on %s: TLS must require and verify client certificates, or anybody may read and write", a)
	}
	return nil
}

func (s *Server) grpcServer() *grpc.Server {
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(int(s.o.MaxPayload + overhead)),
		grpc.MaxSendMsgSize(int(s.o.MaxPayload + overhead)),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(2 * window),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}
	if s.o.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(tls13(s.o.TLS))))
	}
	g := grpc.NewServer(options...)
	telemapv1.RegisterRegionServer(g, regionService{s: s})
	r3map := mountv1.Backend_ServiceDesc
	r3map.ServiceName = r3mapService
	g.RegisterService(&r3map, r3mapServer{s: s})
	return g
}

// unary turns errors into statuses, and a panic of a region's method, which
// would take down every other region's clients too, into an error.
func (s *Server) unary(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (out any, err error) {
	h := newHolding(s.inFlight)
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, s.panicked(p)
		}
		if err != nil {
			h.release()
		}
	}()
	out, err = handle(context.WithValue(ctx, holdingKey{}, h), in)
	if err != nil {
		return nil, toStatus(ctx, err)
	}
	return outgoingOf(out, h), nil
}

func (s *Server) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(p)
		}
	}()
	return toStatus(stream.Context(), handle(srv, stream))
}

func (s *Server) panicked(p any) error {
	s.o.Logger.Error("grpc: a region's method panicked", "panic", p, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "the server's storage has a bug, see its log")
}

// lookup finds the region and its size.
func (s *Server) lookup(ctx context.Context, name string) (transport.Export, int64, error) {
	if len(name) > transport.MaxName {
		return transport.Export{}, 0, fmt.Errorf("name of %d bytes: %w", len(name), region.ErrBadRequest)
	}
	x, err := s.catalog.Lookup(ctx, name)
	if err != nil {
		return transport.Export{}, 0, err
	}
	return x, x.Region.Size(), nil
}

// holdingKey is where unary keeps the request's holding in its context.
type holdingKey struct{}

// hold waits until the request may hold n bytes, and refuses more than one
// message may carry.
func (s *Server) hold(ctx context.Context, n int64) error {
	if n < 0 || n > s.o.MaxPayload {
		return fmt.Errorf("%d bytes in one message, at most %d may be: %w", n, s.o.MaxPayload, region.ErrBadRequest)
	}
	return ctx.Value(holdingKey{}).(*holding).acquire(ctx, n)
}

// regionService is the service telemap.v1.Region.
type regionService struct {
	telemapv1.UnsafeRegionServer
	s *Server
}

func (r regionService) Attach(context.Context, *telemapv1.AttachRequest) (*telemapv1.AttachReply, error) {
	id, err := r.s.sessions.attach()
	if err != nil {
		return nil, err
	}
	return &telemapv1.AttachReply{Session: id[:], MaxPayload: r.s.o.MaxPayload, MaxSpans: maxSpans}, nil
}

func (r regionService) Open(ctx context.Context, in *telemapv1.OpenRequest) (*telemapv1.OpenReply, error) {
	x, size, err := r.s.lookup(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	x.Info.Size = size
	return &telemapv1.OpenReply{Info: infoTo(x.Info)}, nil
}

func infoTo(i transport.Info) *telemapv1.Info {
	return &telemapv1.Info{Name: i.Name, Size: i.Size, ReadOnly: i.ReadOnly, ChunkSize: i.ChunkSize}
}

func (r regionService) List(_ *telemapv1.ListRequest, stream grpc.ServerStreamingServer[telemapv1.ListReply]) error {
	infos, err := r.s.catalog.List(stream.Context())
	if err != nil {
		return err
	}
	for len(infos) > 0 {
		n := min(len(infos), listBatch)
		reply := &telemapv1.ListReply{}
		for _, i := range infos[:n] {
			reply.Regions = append(reply.Regions, infoTo(i))
		}
		if err := stream.Send(reply); err != nil {
			return err
		}
		infos = infos[n:]
	}
	return nil
}

func (r regionService) Read(ctx context.Context, in *telemapv1.ReadRequest) (*telemapv1.ReadReply, error) {
	x, size, err := r.s.lookup(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if !region.Check(in.Off, in.Len, size) {
		return nil, region.ErrOutOfRange
	}
	if err := r.s.hold(ctx, in.Len); err != nil {
		return nil, err
	}
	p := *buffers.Get(int(in.Len))
	n, err := counted(x.Region.ReadAt(ctx, p, in.Off))(len(p))
	if n == 0 && err != nil {
		buffers.Put(&p)
		return nil, err
	}
	reply := &telemapv1.ReadReply{Data: p[:n]}
	if err != nil {
		reply.Failure = failureTo(err)
	}
	return reply, nil
}

// counted makes sense of what a region's method answers when asked for some
// bytes that are all in the region: an error unless it did them all, and a count
// that can be.
func counted(n int, err error) func(want int) (int, error) {
	return func(want int) (int, error) {
		switch {
		case n < 0 || n > want:
			return 0, errors.Join(fmt.Errorf("the storage claims to have done %d of %d bytes", n, want), err)
		case n == want:
			return n, nil
		case err == nil:
			err = fmt.Errorf("the storage stopped after %d of %d bytes", n, want)
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("the storage ended after %d of %d bytes: %w", n, want, io.ErrUnexpectedEOF)
		}
		return n, err
	}
}

func (r regionService) ReadVec(ctx context.Context, in *telemapv1.ReadVecRequest) (*telemapv1.ReadVecReply, error) {
	x, size, err := r.s.lookup(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if len(in.Spans) > maxSpans {
		return nil, fmt.Errorf("%d spans, at most %d may be: %w", len(in.Spans), maxSpans, region.ErrBadRequest)
	}
	var n int64
	for _, sp := range in.Spans {
		if !region.Check(sp.Off, sp.Len, size) {
			return nil, region.ErrOutOfRange
		}
		if n += sp.Len; n > r.s.o.MaxPayload {
			break // the sum cannot overflow that way; hold refuses it
		}
	}
	if err := r.s.hold(ctx, n); err != nil {
		return nil, err
	}
	p := *buffers.Get(int(n))
	rest, v := p, make([]backend.Vec, len(in.Spans))
	for i, sp := range in.Spans {
		v[i] = backend.Vec{P: rest[:sp.Len:sp.Len], Off: sp.Off}
		rest = rest[sp.Len:]
	}
	if err := backend.ReadVec(ctx, x.Region, v); err != nil {
		return nil, err // p is not used again: some reads may still be filling it
	}
	return &telemapv1.ReadVecReply{Data: p}, nil
}

// mutate runs do as a mutation of the n bytes at off, in the order that stamp asks
// for; held of those bytes are in memory.
func (r regionService) mutate(ctx context.Context, stamp *telemapv1.Stamp, name string, off, n, held int64, do func(backend.Backend) error) error {
	x, size, err := r.s.lookup(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case !region.Check(off, n, size):
		return region.ErrOutOfRange
	case x.Info.ReadOnly:
		return region.ErrReadOnly
	}
	if err := r.s.hold(ctx, held); err != nil {
		return err
	}
	leave, err := r.s.sessions.enter(ctx, stamp.GetSession(), stamp.GetGeneration())
	if err != nil {
		return err
	}
	defer leave()
	return do(x.Region)
}

func (r regionService) Write(ctx context.Context, in *telemapv1.WriteRequest) (*telemapv1.WriteReply, error) {
	reply := &telemapv1.WriteReply{}
	size := int64(len(in.Data))
	err := r.mutate(ctx, in.Stamp, in.Name, in.Off, size, size, func(b backend.Backend) error {
		n, err := counted(b.WriteAt(ctx, in.Data, in.Off))(len(in.Data))
		if n > 0 && err != nil {
			reply.Written, reply.Failure = int64(n), failureTo(err)
			return nil
		}
		return err
	})
	return reply, err
}

func (r regionService) Sync(ctx context.Context, in *telemapv1.SyncRequest) (*telemapv1.SyncReply, error) {
	x, _, err := r.s.lookup(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if in.Stamp != nil {
		// A server that was started anew does not know the session, and says so.
		leave, err := r.s.sessions.enter(ctx, in.Stamp.GetSession(), in.Stamp.GetGeneration())
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	return &telemapv1.SyncReply{}, x.Region.Sync(ctx)
}

func (r regionService) Zero(ctx context.Context, in *telemapv1.ZeroRequest) (*telemapv1.ZeroReply, error) {
	return &telemapv1.ZeroReply{}, r.mutate(ctx, in.Stamp, in.Name, in.Off, in.Len, 0, func(b backend.Backend) error {
		return backend.Zero(ctx, b, in.Off, in.Len)
	})
}

func (r regionService) Discard(ctx context.Context, in *telemapv1.DiscardRequest) (*telemapv1.DiscardReply, error) {
	return &telemapv1.DiscardReply{}, r.mutate(ctx, in.Stamp, in.Name, in.Off, in.Len, 0, func(b backend.Backend) error {
		return backend.Discard(ctx, b, in.Off, in.Len)
	})
}

func (r regionService) NextData(ctx context.Context, in *telemapv1.NextDataRequest) (*telemapv1.NextDataReply, error) {
	x, size, err := r.s.lookup(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if !region.Check(in.Off, 0, size) {
		return nil, region.ErrOutOfRange
	}
	d, err := backend.NextData(ctx, x.Region, in.Off)
	if errors.Is(err, io.EOF) {
		return &telemapv1.NextDataReply{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &telemapv1.NextDataReply{Data: &telemapv1.Span{Off: d.Off, Len: d.Len}}, nil
}
