package telemap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/dir"
	"github.com/telemap/telemap/backend/file"
	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/backend/remote"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/grpc"
	"github.com/telemap/telemap/transport/tcp"
)

// schemes are the backends that telemap brings along.
func schemes() map[string]OpenFunc {
	return map[string]OpenFunc{
		"mem":       openMem,
		"file":      openFile,
		"dir":       openDir,
		"tcp":       openTCP,
		"tcp+unix":  openTCP,
		"grpc":      openGRPC,
		"grpc+unix": openGRPC,
		"r3map":     openR3map,
	}
}

func openMem(_ context.Context, u *url.URL, o Opener) (backend.Backend, error) {
	size, err := o.Create, error(nil)
	if u.Opaque != "" {
		if size, err = ParseSize(u.Opaque); err != nil {
			return nil, err
		}
	}
	if size <= 0 {
		return nil, errors.New("memory needs a size, as in mem:512MiB")
	}
	if q := (query{values: u.Query()}); q.done() != nil {
		return nil, q.done()
	}
	return mem.New(size), nil
}

// localPath is the path in file:relative, file:/absolute or file:///absolute.
func localPath(u *url.URL) (string, error) {
	if u.Host != "" && u.Host != "localhost" {
		return "", fmt.Errorf("host %q: paths start with a slash, as in %s:///path", u.Host, u.Scheme)
	}
	if u.Opaque != "" {
		return url.PathUnescape(u.Opaque)
	}
	if u.Path == "" {
		return "", fmt.Errorf("it has no path, as in %s:///path", u.Scheme)
	}
	return u.Path, nil
}

func openFile(_ context.Context, u *url.URL, o Opener) (backend.Backend, error) {
	path, err := localPath(u)
	if err != nil {
		return nil, err
	}
	q := query{values: u.Query()}
	size := q.size("size")
	if err := q.done(); err != nil {
		return nil, err
	}
	if size == 0 {
		size = o.Create
	}
	return file.Open(path, file.Options{ReadOnly: o.ReadOnly, Size: size})
}

func openDir(_ context.Context, u *url.URL, o Opener) (backend.Backend, error) {
	path, err := localPath(u)
	if err != nil {
		return nil, err
	}
	q := query{values: u.Query()}
	do := dir.Options{ReadOnly: o.ReadOnly, Size: q.size("size"), ChunkSize: q.size("chunk")}
	if err := q.done(); err != nil {
		return nil, err
	}
	if do.Size == 0 {
		do.Size = o.Create
	}
	return dir.Open(path, do)
}

// peer takes a network URL apart: where the server is, which region is meant, and
// how to trust it.
func (o Opener) peer(u *url.URL, q *query) (addr, region string, conf *tls.Config, err error) {
	region = strings.Trim(u.Path, "/")
	if strings.HasSuffix(u.Scheme, "+unix") {
		socket := q.get("socket")
		if socket == "" {
			return "", "", nil, fmt.Errorf("a unix socket is named by a parameter, as in %s:///region?socket=/run/telemap.sock", u.Scheme)
		}
		addr = "unix:" + socket
	} else {
		if u.Hostname() == "" || u.Port() == "" {
			return "", "", nil, fmt.Errorf("it needs a host and a port, as in %s://host:7070/region", u.Scheme)
		}
		addr = u.Host
	}
	conf, err = o.clientTLS(q)
	return addr, region, conf, err
}

// clientTLS is the TLS configuration that the URL's parameters ask for, else
// the opener's.
func (o Opener) clientTLS(q *query) (*tls.Config, error) {
	on, ca, cert, key, name := q.get("tls"), q.get("ca"), q.get("cert"), q.get("key"), q.get("servername")
	switch {
	case on == "0":
		return nil, nil
	case on == "" && ca == "" && cert == "" && key == "" && name == "":
		return o.TLS, nil
	case on != "" && on != "1":
		return nil, fmt.Errorf("tls=%s: use 1 or 0", on)
	case (cert == "") != (key == ""):
		return nil, errors.New("a client certificate needs both cert and key")
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("load ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("load ca: no certificate in %s", ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("load cert and key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func openTCP(ctx context.Context, u *url.URL, o Opener) (backend.Backend, error) {
	q := query{values: u.Query()}
	addr, region, conf, err := o.peer(u, &q)
	if err = errors.Join(err, q.done()); err != nil {
		return nil, err
	}
	s, err := tcp.Dial(ctx, addr, tcp.Options{TLS: conf, RetryBudget: o.RetryBudget, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	return openRemote(ctx, s, region, u)
}

func openGRPC(ctx context.Context, u *url.URL, o Opener) (backend.Backend, error) {
	q := query{values: u.Query()}
	addr, region, conf, err := o.peer(u, &q)
	if err = errors.Join(err, q.done()); err != nil {
		return nil, err
	}
	s, err := grpc.Dial(ctx, addr, grpc.Options{TLS: conf, RetryBudget: o.RetryBudget, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	return openRemote(ctx, s, region, u)
}

func openR3map(ctx context.Context, u *url.URL, o Opener) (backend.Backend, error) {
	q := query{values: u.Query()}
	size := q.size("size")
	addr, region, conf, err := o.peer(u, &q)
	if err = errors.Join(err, q.done()); err != nil {
		return nil, err
	}
	if size <= 0 {
		return nil, errors.New("r3map's protocol does not tell the size: add ?size=")
	}
	if region != "" {
		return nil, errors.New("r3map's protocol knows no region names: leave the path away")
	}
	return grpc.DialR3map(ctx, addr, size, grpc.Options{TLS: conf, RetryBudget: o.RetryBudget, Logger: o.Logger})
}

func openRemote(ctx context.Context, s transport.Session, region string, u *url.URL) (backend.Backend, error) {
	b, err := remote.Open(ctx, s, region, Redact(u.String()))
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return b, nil
}
