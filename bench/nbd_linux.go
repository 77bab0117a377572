package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// nbdPrograms makes nbdkit and nbdfuse available or says why not, as a skip.
func (s *site) nbdPrograms() error {
	if !s.peer.done {
		s.peer.done, s.peer.err = true, installNBD(s.ctx)
	}
	return s.peer.err
}

func installNBD(ctx context.Context) error {
	if err := needFUSE(); err != nil {
		return err
	}
	missing := func() error {
		for _, program := range []string{"nbdkit", "nbdfuse"} {
			if _, err := exec.LookPath(program); err != nil {
				return skip(program + " is not installed")
			}
		}
		return nil
	}
	if missing() == nil || os.Geteuid() != 0 {
		return missing()
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return missing()
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	// Debian moved nbdfuse out of libnbd-bin; ask for both, then for the old one.
	for _, packages := range [][]string{{"nbdkit", "nbdfuse"}, {"nbdkit", "libnbd-bin"}} {
		install := exec.CommandContext(ctx, "apt-get", append([]string{"install", "-y", "--no-install-recommends"}, packages...)...)
		install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if install.Run() == nil && missing() == nil {
			return nil
		}
	}
	return missing()
}

// nbdkit is the socket at which nbdkit serves the file at path.
func (s *site) nbdkit(path string) (string, error) {
	srv, err := s.shared("nbdkit "+path, func() (*server, error) {
		if err := s.nbdPrograms(); err != nil {
			return nil, err
		}
		socket := s.fresh("nbd")
		p, err := s.start(s.ctx, "nbdkit", "-f", "-U", socket, "file", path)
		if err != nil {
			return nil, err
		}
		return &server{p, socket}, p.appears(s.ctx, func() bool { _, err := os.Stat(socket); return err == nil })
	})
	if err != nil {
		return "", err
	}
	return srv.addr, nil
}

// appears polls until there is true, often enough to time a start.
func (p *process) appears(ctx context.Context, there func() bool) error {
	deadline := time.Now().Add(readyTimeout)
	for !there() {
		select {
		case <-p.done:
			return p.failure(p.err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Microsecond):
		}
		if time.Now().After(deadline) {
			return p.failure(fmt.Errorf("not ready within %v", readyTimeout))
		}
	}
	return nil
}

// nbdfuse shows the file at path through nbdkit and nbdfuse.
func (s *site) nbdfuse(ctx context.Context, path string) (*mounted, error) {
	socket, err := s.nbdkit(path)
	if err != nil {
		return nil, err
	}
	dir := s.fresh("nbdfuse")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	s.mounted(dir, true)
	file := filepath.Join(dir, "disk")
	begin := time.Now()
	p, err := s.start(ctx, "nbdfuse", file, "nbd+unix:///?socket="+socket)
	if err != nil {
		return nil, err
	}
	err = p.appears(ctx, func() bool {
		st, err := os.Stat(file)
		return err == nil && st.Size() == s.size
	})
	if err != nil {
		p.kill()
		s.ended(p)
		return nil, err
	}
	m := &mounted{process: p, s: s, path: file, point: dir, ready: time.Since(begin)}
	m.close = m.closeNBD
	return m, nil
}

// closeNBD unmounts an nbdfuse mount; the process ends by that.
func (m *mounted) closeNBD() error {
	err := unix.Unmount(m.point, 0)
	if errors.Is(err, unix.EPERM) {
		err = exec.Command("fusermount3", "-u", m.point).Run()
	}
	if err != nil {
		err = errors.Join(err, detach(m.point))
	}
	select {
	case <-m.done:
	case <-time.After(stopTimeout):
		m.kill()
		err = errors.Join(err, errors.New("nbdfuse did not end after its unmount"))
	}
	m.s.ended(m.process)
	if err == nil {
		m.s.mounted(m.point, false)
	}
	return err
}
