package tcp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/telemap/telemap/region"
)

func TestDialToSilentServerEnds(t *testing.T) {
	addr := fake(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	_, err := Dial(within(t), addr, Options{DialTimeout: 30 * time.Millisecond})
	wantErr(t, "Dial", err, context.DeadlineExceeded, addr, "handshake")
}

func TestDialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(within(t))
	addr := fake(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, helloLen))
		cancel()
		io.Copy(io.Discard, c)
	})
	_, err := Dial(ctx, addr, Options{})
	wantErr(t, "Dial", err, context.Canceled)
}

func TestServerDropsSilentPeer(t *testing.T) {
	l := new(logs)
	s := start(t, NewServer(only(newHooked(100)), ServerOptions{HandshakeTimeout: 30 * time.Millisecond, Logger: l.logger()}))
	rawConnect(t, s.addr).closed()
	slow := rawConnect(t, s.addr)
	hung := make(chan struct{})
	go func() { slow.closed(); close(hung) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	b := hello{version: version, payload: maxPayload}.encode()
	for i := 0; ; i++ { // a byte at a time, the whole would take 640 ms
		select {
		case <-hung:
			if i >= helloLen-10 {
				t.Errorf("the server waited for %d bytes of a hello", i)
			}
			return
		case <-tick.C:
			if i < helloLen-1 {
				slow.Write(b[i : i+1])
			}
		}
	}
}

func TestVersionsThatDiffer(t *testing.T) {
	s := start(t, NewServer(only(newHooked(100)), ServerOptions{}))
	c := rawConnect(t, s.addr)
	c.Write(hello{version: 7, payload: maxPayload}.encode())
	_, err := readWelcome(c)
	wantErr(t, "the server's answer to version 7", err, ErrVersion, "1", "7")
	c.closed()

	addr := fake(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, helloLen))
		c.Write(welcome{version: 7, payload: maxPayload, inflight: maxInFlight}.encode())
	})
	_, err = Dial(within(t), addr, Options{})
	wantErr(t, "Dial of a server of version 7", err, ErrVersion, "1", "7")
}

func TestServerTellsWhatStrangersSpeak(t *testing.T) {
	l := new(logs)
	s := start(t, NewServer(only(newHooked(100)), ServerOptions{Logger: l.logger()}))
	for said, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n" + strings.Repeat("x", 100): "HTTP",
		"\x16\x03\x01\x02\x00" + strings.Repeat("\x00", 600):                     "speaks TLS",
		strings.Repeat("\xff", 64):                                               "does not speak telemap",
	} {
		c := rawConnect(t, s.addr)
		c.Write([]byte(said))
		c.closed()
		until(t, "the log says "+want, func() bool { return l.has(want) })
	}
	if n := NewServer(nil, ServerOptions{}).Stats().Refused; n != 0 {
		t.Errorf("Refused = %d before anything", n)
	}
}

func TestClientTellsWhatStrangersSpeak(t *testing.T) {
	for _, c := range []struct{ says, want string }{
		{"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"},
		{"\x15\x03\x01\x00\x02\x02\x46", "TLS"},
		{strings.Repeat("SSH-2.0-x\r\n", 10), "does not speak telemap"},
		{"", "hung up"},
	} {
		addr := fake(t, func(conn net.Conn) {
			io.ReadFull(conn, make([]byte, helloLen))
			io.WriteString(conn, c.says)
		})
		_, err := Dial(within(t), addr, Options{})
		wantErr(t, "Dial", err, ErrProtocol, c.want, addr)
	}
}

func TestRefusalIsCleanText(t *testing.T) {
	addr := fake(t, func(c net.Conn) {
		io.ReadFull(c, make([]byte, helloLen))
		c.Write(welcome{version: version, status: unavailable, text: "go\x1b[2J away\nnow\u202e"}.encode())
	})
	_, err := Dial(within(t), addr, Options{})
	wantErr(t, "Dial", err, region.ErrUnavailable, "go?[2J away?now?")
}

func TestServersThatTakeTooLittle(t *testing.T) {
	for _, w := range []welcome{
		{version: version, payload: 1 << 20, inflight: maxInFlight},
		{version: version, payload: 1, inflight: maxInFlight},
		{version: version, payload: maxPayload, inflight: 1},
	} {
		addr := fake(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, helloLen))
			c.Write(w.encode())
		})
		_, err := Dial(within(t), addr, Options{})
		wantErr(t, "Dial", err, ErrProtocol)
	}
}

func TestMaxConns(t *testing.T) {
	srv := NewServer(only(newHooked(100)), ServerOptions{MaxConns: 2})
	s := start(t, srv)
	a, b := rawDial(t, s.addr), rawDial(t, s.addr)
	_, err := Dial(within(t), s.addr, Options{})
	wantErr(t, "Dial of a full server", err, region.ErrUnavailable, "as many connections")
	if n := srv.Stats(); n.Refused != 1 || n.Connections != 2 {
		t.Errorf("Stats() = %+v; want 1 refused, 2 connections", n)
	}
	a.Close()
	until(t, "the connection has left", func() bool { return srv.Stats().Connections == 1 })
	// A session that wants two connections works with the one that it gets.
	r := open(t, dial(t, s.addr, Options{Conns: 2}), "r")
	for range 20 {
		if _, err := r.ReadAt(within(t), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
}

// authority makes certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "host"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"host"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	l := new(logs)
	plain := start(t, NewServer(only(newHooked(5000)), ServerOptions{}))
	one := start(t, NewServer(only(newHooked(5000)), ServerOptions{
		TLS: &tls.Config{Certificates: []tls.Certificate{ca.issue()}, MinVersion: tls.VersionTLS12}, Logger: l.logger(),
	}))
	both := start(t, NewServer(only(newHooked(5000)), ServerOptions{
		TLS: &tls.Config{Certificates: []tls.Certificate{ca.issue()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool},
	}))
	try := func(addr string, c *tls.Config) error {
		s, err := Dial(within(t), addr, Options{TLS: c, RetryBudget: 100 * time.Millisecond})
		if err != nil {
			return err
		}
		defer s.Close()
		r, _, err := s.Open(within(t), "r")
		if err != nil {
			return err
		}
		if _, err := r.WriteAt(within(t), make([]byte, 4000), 100); err != nil {
			return err
		}
		_, err = r.ReadAt(within(t), make([]byte, 4000), 100)
		return err
	}
	if err := try(one.addr, &tls.Config{RootCAs: ca.pool}); err != nil {
		t.Errorf("TLS: %v", err)
	}
	if err := try(both.addr, &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.issue()}}); err != nil {
		t.Errorf("mutual TLS: %v", err)
	}
	if err := try(both.addr, &tls.Config{RootCAs: ca.pool}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the client's certificate: %v; want an error that says so", err)
	}
	if err := try(both.addr, &tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{other.issue()}}); err == nil {
		t.Error("with a client's certificate of a stranger: nil; want an error")
	}
	err := try(one.addr, &tls.Config{RootCAs: other.pool})
	if unknown := (x509.UnknownAuthorityError{}); !errors.As(err, &unknown) {
		t.Errorf("with another authority: %v; want %T", err, unknown)
	}
	wantErr(t, "TLS to a plain server", try(plain.addr, &tls.Config{RootCAs: ca.pool}), ErrProtocol, "does not speak TLS")
	wantErr(t, "plain to a TLS server", try(one.addr, nil), ErrProtocol, "TLS")

	// A peer that insists on TLS 1.2, whatever the options say.
	_, err = tls.Dial("tcp", one.addr, &tls.Config{RootCAs: ca.pool, MaxVersion: tls.VersionTLS12})
	if err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("TLS 1.2 to the server: %v; want a version error", err)
	}
	until(t, "the log names the version", func() bool { return l.has("unsupported versions") })
	old := &tls.Config{Certificates: []tls.Certificate{ca.issue()}, MaxVersion: tls.VersionTLS12}
	addr := fake(t, func(c net.Conn) { tls.Server(c, old).Handshake() })
	if err := try(addr, &tls.Config{RootCAs: ca.pool, MinVersion: tls.VersionTLS10}); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("a server of TLS 1.2: %v; want a version error", err)
	}
}

func TestTLSOverUnixSocketNamesNoHost(t *testing.T) {
	ca := newAuthority(t)
	addr := serve(t, "unix", NewServer(only(newHooked(100)), ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{ca.issue()}}}))
	dial(t, addr, Options{TLS: &tls.Config{RootCAs: ca.pool, ServerName: "host"}})
	_, err := Dial(within(t), addr, Options{TLS: &tls.Config{RootCAs: ca.pool}})
	if err == nil || !strings.Contains(err.Error(), "ServerName") {
		t.Errorf("Dial without a name to check = %v; want an error that asks for ServerName", err)
	}
}

func TestServeEndsDuringHandshakes(t *testing.T) {
	s := start(t, NewServer(only(newHooked(100)), ServerOptions{HandshakeTimeout: time.Hour}))
	rawConnect(t, s.addr).Write([]byte(magic))
	rawDial(t, s.addr) // so that the first one has been accepted
	ended := make(chan error, 1)
	go func() { ended <- s.stop() }()
	if err := await(t, "Serve with a handshake under way", ended); err != nil {
		t.Error(err)
	}
}

func TestGenerationsThatGoBackAreRefused(t *testing.T) {
	s := start(t, NewServer(only(newHooked(100)), ServerOptions{}))
	h := hello{version: version, payload: maxPayload, session: [16]byte{1}, generation: 5}
	first := rawConnect(t, s.addr)
	first.Write(h.encode())
	if _, err := readWelcome(first); err != nil {
		t.Fatal(err)
	}
	for _, g := range []uint64{5, 4, 0} {
		h.generation = g
		c := rawConnect(t, s.addr)
		c.Write(h.encode())
		if _, err := readWelcome(c); !errors.Is(err, region.ErrUnavailable) {
			t.Errorf("generation %d after 5 = %v; want %v", g, err, region.ErrUnavailable)
		}
	}
	first.ask(header{op: opPing, id: 3}, nil)
	h.generation = 6
	next := rawConnect(t, s.addr)
	next.Write(h.encode())
	if _, err := readWelcome(next); err != nil {
		t.Errorf("generation 6 after 5 = %v; want nil", err)
	}
	first.closed()
}

func TestHelloRoundTrip(t *testing.T) {
	h := hello{version: version, features: 3, payload: minPayload, session: [16]byte{1, 15: 2}, slot: 9, generation: 1 << 60}
	if got, err := decodeHello(h.encode()); err != nil || got != h {
		t.Errorf("decodeHello = %+v, %v; want %+v", got, err, h)
	}
	b := h.encode()
	binary.LittleEndian.PutUint32(b[12:], minPayload-1)
	if _, err := decodeHello(b); !errors.Is(err, ErrProtocol) {
		t.Errorf("a hello of too small a payload = %v; want %v", err, ErrProtocol)
	}
}
