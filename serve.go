package telemap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/remote"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/grpc"
	"github.com/telemap/telemap/transport/tcp"
)

// ErrInsecure is returned by Listen for an address that other hosts can reach
// while peers would not have to identify themselves.
var ErrInsecure = errors.New("refusing to listen beyond this host without TLS and client certificates")

// A Server listens for peers. The zero value serves this host only.
type Server struct {
	// TLS turns TLS 1.3 on. Peers prove who they are if its ClientAuth asks for
	// certificates.
	TLS *tls.Config
	// Insecure allows addresses that other hosts can reach without both.
	Insecure bool
	// Logger is told of peers that misbehave. Nil discards.
	Logger *slog.Logger
}

// Export offers b to peers under name. It takes no ownership of b.
func Export(name string, b backend.Backend) transport.Export { return remote.Export(name, b) }

// A Listener is a server's place in the network.
type Listener struct {
	server Server
	scheme string
	l      net.Listener
	tcp    atomic.Pointer[tcp.Server] // once Serve runs, if that is the protocol
}

// Stats returns what the listener did, and whether its protocol counts that:
// gRPC's does not.
func (l *Listener) Stats() (s tcp.ServerStats, ok bool) {
	if t := l.tcp.Load(); t != nil {
		return t.Stats(), true
	}
	return tcp.ServerStats{}, false
}

// Listen listens as the zero [Server] does.
func Listen(ctx context.Context, rawURL string) (*Listener, error) {
	return Server{}.Listen(ctx, rawURL)
}

// Listen starts listening at tcp://host:port, grpc://host:port, tcp+unix:PATH or
// grpc+unix:PATH. Port 0 is any free one. Peers wait until Serve.
func (s Server) Listen(ctx context.Context, rawURL string) (*Listener, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme == "" || !strings.Contains(rawURL, ":") {
		return nil, fmt.Errorf("listen at %q: use a URL such as tcp://127.0.0.1:7070 or tcp+unix:/run/telemap.sock", rawURL)
	}
	network, addr := "tcp", u.Host
	switch u.Scheme {
	case "tcp", "grpc":
		if u.Port() == "" {
			return nil, fmt.Errorf("listen at %s: it needs a port, as in %s://127.0.0.1:7070", rawURL, u.Scheme)
		}
	case "tcp+unix", "grpc+unix":
		network, addr = "unix", u.Opaque+u.Path
		if addr == "" {
			return nil, fmt.Errorf("listen at %s: it needs a path, as in %s:/run/telemap.sock", rawURL, u.Scheme)
		}
		removeStaleSocket(ctx, addr)
	default:
		return nil, fmt.Errorf("listen at %s: %w %q; known are tcp, tcp+unix, grpc and grpc+unix", rawURL, ErrUnknownScheme, u.Scheme)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", rawURL, err)
	}
	if err := s.check(l.Addr()); err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", rawURL, err), l.Close())
	}
	return &Listener{server: s, scheme: u.Scheme, l: l}, nil
}

// removeStaleSocket removes a socket that a killed server left behind.
func removeStaleSocket(ctx context.Context, path string) {
	if st, err := os.Lstat(path); err != nil || st.Mode()&os.ModeSocket == 0 {
		return
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		c.Close() // somebody is there: Listen will say so
		return
	}
	// If it cannot be removed, Listen will say so as well.
	_ = os.Remove(path)
}

func (s Server) check(addr net.Addr) error {
	t, ok := addr.(*net.TCPAddr)
	if !ok || t.IP.IsLoopback() || s.Insecure {
		return nil
	}
	if s.TLS != nil && s.TLS.ClientAuth >= tls.RequireAndVerifyClientCert {
		return nil
	}
	return ErrInsecure
}

// Addr is where l listens.
func (l *Listener) Addr() net.Addr { return l.l.Addr() }

// URL is what a client on this host opens to get the region called name.
func (l *Listener) URL(name string) string {
	if strings.HasSuffix(l.scheme, "+unix") {
		q := url.Values{"socket": {l.l.Addr().String()}}
		return (&url.URL{Scheme: l.scheme, Path: "/" + name, RawQuery: q.Encode()}).String()
	}
	return (&url.URL{Scheme: l.scheme, Host: l.l.Addr().String(), Path: "/" + name}).String()
}

// Close stops listening. It is needed only if Serve is not called.
func (l *Listener) Close() error { return l.l.Close() }

// Serve answers peers about the exports until ctx ends; then it lets requests in
// flight finish for a while, closes l and returns nil. It closes no backend and
// syncs none.
func (l *Listener) Serve(ctx context.Context, exports ...transport.Export) error {
	return l.ServeCatalog(ctx, transport.Exports(exports))
}

// ServeCatalog is Serve for regions that come and go.
func (l *Listener) ServeCatalog(ctx context.Context, c transport.Catalog) error {
	if strings.HasPrefix(l.scheme, "grpc") {
		return grpc.NewServer(c, grpc.ServerOptions{TLS: l.server.TLS, Insecure: l.server.Insecure, Logger: l.server.Logger}).Serve(ctx, l.l)
	}
	t := tcp.NewServer(c, tcp.ServerOptions{TLS: l.server.TLS, Logger: l.server.Logger})
	l.tcp.Store(t)
	return t.Serve(ctx, l.l)
}
