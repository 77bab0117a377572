package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// A server is a process that offers a region, up until the site closes.
type server struct {
	*process
	addr string // URL, socket path or host:port
}

// shared starts the server called name unless it runs already.
func (s *site) shared(name string, start func() (*server, error)) (*server, error) {
	o, ok := s.servers[name]
	if !ok {
		o.v, o.err = start()
		s.servers[name] = o
	}
	return o.v, o.err
}

// An event is a line that telemap prints with --json.
type event struct {
	Event string  `json:"event"`
	URL   string  `json:"url"`
	Path  string  `json:"path"`
	Open  float64 `json:"open_seconds"`
}

func (p *process) event(ctx context.Context, want string) (event, error) {
	l, err := p.line(ctx)
	if err != nil {
		return event{}, err
	}
	var e event
	if err := json.Unmarshal([]byte(l), &e); err != nil {
		return e, fmt.Errorf("%s printed %q: %w", p.name, l, err)
	}
	if e.Event != want {
		return e, fmt.Errorf("%s printed %q, want the event %s", p.name, l, want)
	}
	return e, nil
}

// serve offers backend over loopback TCP.
func (s *site) serve(backend string) (*server, error) {
	p, err := s.start(s.ctx, s.telemap, "serve", "region="+backend, "--listen", "tcp://127.0.0.1:0", "--json")
	if err != nil {
		return nil, err
	}
	e, err := p.event(s.ctx, "serving")
	return &server{p, e.URL}, err
}

// serveFile is the URL of the file at path, served from another process.
func (s *site) serveFile(path string) (string, error) {
	srv, err := s.shared("file "+path, func() (*server, error) { return s.serve("file:" + path) })
	if err != nil {
		return "", err
	}
	return srv.addr, nil
}

// serveMemory is the URL of a copy of the source in the memory of another process.
func (s *site) serveMemory() (string, error) {
	srv, err := s.shared("memory", func() (*server, error) {
		srv, err := s.serve(fmt.Sprintf("mem:%d", s.size))
		if err != nil {
			return nil, err
		}
		p, err := s.start(s.ctx, s.telemap, "cp", "--progress=false", s.source.path, srv.addr)
		if err != nil {
			return nil, err
		}
		defer s.ended(p)
		if <-p.done; p.err != nil {
			return nil, p.failure(p.err)
		}
		return srv, nil
	})
	if err != nil {
		return "", err
	}
	return srv.addr, nil
}

// A mounted is a region as a file, shown by a process.
type mounted struct {
	*process
	s     *site
	path  string        // the file
	point string        // what is mounted
	open  time.Duration // as the process says, zero if it does not
	ready time.Duration // from before the start of the process to a usable file
	close func() error
}

// mount shows a backend by telemap mount with flags. The process is killed when
// ctx ends, which lets everybody who waits for the file go.
func (s *site) mount(ctx context.Context, url string, flags ...string) (*mounted, error) {
	if err := needFUSE(); err != nil {
		return nil, err
	}
	path := s.fresh("mount")
	s.mounted(path, true)
	begin := time.Now()
	p, err := s.start(ctx, s.telemap, append([]string{"mount", url, path, "--json", "--log-level", "warn"}, flags...)...)
	if err != nil {
		return nil, err
	}
	e, err := p.event(ctx, "mounted")
	if err != nil {
		p.kill()
		s.ended(p)
		return nil, err
	}
	m := &mounted{process: p, s: s, path: e.Path, point: path, ready: time.Since(begin)}
	m.open = time.Duration(e.Open * float64(time.Second))
	m.close = m.closeTelemap
	return m, nil
}

// closeTelemap unmounts in order. What the process complains about is an error.
func (m *mounted) closeTelemap() error {
	err := m.stop()
	m.s.ended(m.process)
	if err == nil {
		m.s.mounted(m.point, false)
		return nil
	}
	return err // what it left is cleaned up at the end
}

// needFUSE is a skip where no file system can be mounted.
func needFUSE() error {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return skip("no /dev/fuse")
	}
	return nil
}

// with runs f on a mount and closes it.
func with(m *mounted, err error, f func(*mounted) (sample, error)) (sample, error) {
	if err != nil {
		return nil, err
	}
	smp, err := f(m)
	return smp, errors.Join(err, m.close())
}
