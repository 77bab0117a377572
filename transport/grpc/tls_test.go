package grpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/telemap/telemap/region"
)

// authority makes certificates that the returned pool trusts.
func authority(t *testing.T) (*x509.CertPool, func(name string) tls.Certificate) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	caKey, ca := key(), template("test authority")
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, func(name string) tls.Certificate {
		k := key()
		der, err := x509.CreateCertificate(rand.Reader, template(name), ca, &k.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
	}
}

func TestTLS(t *testing.T) {
	ctx := within(t)
	pool, issue := authority(t)
	_, foreign := authority(t)
	r := serve(t, only(memory(t, 16)), ServerOptions{TLS: &tls.Config{
		Certificates: []tls.Certificate{issue("server")}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	good := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{issue("client")}}
	s := dial(t, r.addr, Options{TLS: good})
	if _, err := open(t, s, "").WriteAt(ctx, []byte("x"), 0); err != nil {
		t.Errorf("WriteAt = %v", err)
	}
	for name, c := range map[string]*tls.Config{
		"no certificate":      {RootCAs: pool},
		"foreign certificate": {RootCAs: pool, Certificates: []tls.Certificate{foreign("client")}},
		"unknown server":      {Certificates: good.Certificates},
		"TLS 1.2":             {RootCAs: pool, Certificates: good.Certificates, MaxVersion: tls.VersionTLS12},
		"plain text":          nil,
	} {
		if s, err := Dial(ctx, r.addr, Options{TLS: c}); !errors.Is(err, region.ErrUnavailable) {
			t.Errorf("Dial with %s = %v; want ErrUnavailable", name, err)
			if err == nil {
				s.Close()
			}
		}
	}
	if good.MinVersion != 0 {
		t.Error("Dial changed the caller's TLS configuration")
	}
}

// A pretended listener says that it listens somewhere.
type pretended struct {
	net.Listener
	addr   net.Addr
	closed bool
}

func (p *pretended) Addr() net.Addr            { return p.addr }
func (p *pretended) Accept() (net.Conn, error) { return nil, errors.New("accepting") }
func (p *pretended) Close() error              { p.closed = true; return nil }

func TestServeBeyondLoopbackNeedsClientCertificates(t *testing.T) {
	_, issue := authority(t)
	certs := []tls.Certificate{issue("server")}
	for name, c := range map[string]struct {
		ip  net.IP
		tls *tls.Config
		ok  bool
	}{
		"everywhere, plain":         {net.IPv4zero, nil, false},
		"elsewhere, plain":          {net.IPv4(192, 0, 2, 1), nil, false},
		"v6, plain":                 {net.IPv6unspecified, nil, false},
		"elsewhere, any client":     {net.IPv4(192, 0, 2, 1), &tls.Config{Certificates: certs}, false},
		"elsewhere, known clients":  {net.IPv4(192, 0, 2, 1), &tls.Config{Certificates: certs, ClientAuth: tls.RequireAndVerifyClientCert}, true},
		"loopback, plain":           {net.IPv4(127, 0, 0, 1), nil, true},
		"loopback of IPv6, plain":   {net.IPv6loopback, nil, true},
		"loopback, TLS, any client": {net.IPv4(127, 0, 0, 1), &tls.Config{Certificates: certs}, true},
	} {
		l := &pretended{addr: &net.TCPAddr{IP: c.ip, Port: 1}}
		err := NewServer(only(memory(t, 1)), ServerOptions{TLS: c.tls}).Serve(context.Background(), l)
		if served := err != nil && errors.Unwrap(err) != nil; served != c.ok || !l.closed {
			t.Errorf("%s: Serve() = %v, listener closed: %v", name, err, l.closed)
		}
	}
}
