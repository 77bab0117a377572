package tcp

import (
	"context"
	"net"
	"testing"

	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/transporttest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestConformance(t *testing.T) {
	for name, network := range map[string]string{"tcp": "tcp", "unix": "unix"} {
		t.Run(name, func(t *testing.T) {
			transporttest.Run(t, func(t *testing.T, cat transport.Catalog) transport.Session {
				addr := serve(t, network, NewServer(cat, ServerOptions{Logger: testkit.Logger(t)}))
				return dial(t, addr, Options{Logger: testkit.Logger(t)})
			})
		})
	}
}

// serve runs s until the test ends and returns its address.
func serve(t testing.TB, network string, s *Server) string {
	t.Helper()
	at := "127.0.0.1:0"
	if network == "unix" {
		at = t.TempDir() + "/s"
	}
	l, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if network == "unix" {
		return "unix:" + at
	}
	return l.Addr().String()
}

func dial(t testing.TB, addr string, o Options) *Session {
	t.Helper()
	s, err := Dial(context.Background(), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
