package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A site is where the bench works: its directories, its files in memory, the
// programs and the servers that stay up. Close leaves nothing behind.
type site struct {
	ctx     context.Context // of the whole run: it bounds the life of servers
	dir     string          // for sockets, mounts and the program
	shm     string          // in tmpfs, for the files that are served
	telemap string          // the program, built at the start
	size    int64           // of the regions

	source   *store // read by everybody, written by nobody
	writable *store // made when first needed

	peer onceValue[struct{}] // nbdkit and nbdfuse are there

	mu      sync.Mutex
	names   int
	servers map[string]onceValue[*server]
	live    map[*process]bool
	mounts  map[string]bool // paths to be unmounted at the end
}

// A store is a file in tmpfs full of random bytes, and a mapping of it.
type store struct {
	path string
	data []byte
}

type onceValue[T any] struct {
	done bool
	v    T
	err  error
}

// openSite makes a site in the temporary directory and in tmpfs at shm.
func openSite(ctx context.Context, shm string, size int64) (s *site, err error) {
	s = &site{ctx: ctx, size: size, servers: map[string]onceValue[*server]{}, live: map[*process]bool{}, mounts: map[string]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "telemap-bench-"); err != nil {
		return s, err
	}
	if s.shm, err = os.MkdirTemp(shm, "telemap-bench-"); err != nil {
		return s, err
	}
	s.telemap = filepath.Join(s.dir, "telemap")
	build := exec.CommandContext(ctx, "go", "build", "-o", s.telemap, "github.com/telemap/telemap/cmd/telemap")
	if out, err := build.CombinedOutput(); err != nil {
		return s, fmt.Errorf("build telemap: %w\n%s", err, out)
	}
	s.source, err = s.newStore("source", size)
	return s, err
}

func (s *site) newStore(name string, size int64) (*store, error) {
	st := &store{path: filepath.Join(s.shm, name)}
	f, err := os.Create(st.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Reserve first: running out of memory through a mapping would be a SIGBUS.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return nil, fmt.Errorf("reserve %d bytes in %s: %w", size, s.shm, err)
	}
	if st.data, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map %s: %w", st.path, err)
	}
	fillRandom(st.data, byte(len(name)))
	return st, nil
}

// writableStore is the store for rows that write.
func (s *site) writableStore() (*store, error) {
	if s.writable == nil {
		st, err := s.newStore("writable", s.size)
		if err != nil {
			return nil, err
		}
		s.writable = st
	}
	return s.writable, nil
}

// fresh is a path in the site's directory where nothing is yet.
func (s *site) fresh(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names++
	return filepath.Join(s.dir, prefix+strconv.Itoa(s.names))
}

// start runs a program that the site ends at its close at the latest.
func (s *site) start(ctx context.Context, program string, args ...string) (*process, error) {
	p, err := start(ctx, program, args...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.live[p] = true
	s.mu.Unlock()
	return p, nil
}

func (s *site) ended(p *process) {
	s.mu.Lock()
	delete(s.live, p)
	s.mu.Unlock()
}

func (s *site) mounted(path string, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is {
		s.mounts[path] = true
	} else {
		delete(s.mounts, path)
	}
}

// close ends every process, unmounts and removes everything. Nothing else may use
// the site meanwhile.
func (s *site) close() error {
	var errs []error
	// All of them before waiting for any: one may wait for a file that another
	// one serves.
	for p := range s.live {
		_ = p.cmd.Process.Kill() // it may be gone
	}
	for p := range s.live {
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
			errs = append(errs, p.failure(errors.New("it was killed and is still there")))
		}
	}
	for path := range s.mounts {
		// A mount whose process is gone answers nobody; take it out of the tree. It
		// may also never have come into being.
		if err := detach(path); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	for _, st := range []*store{s.source, s.writable} {
		if st != nil {
			errs = append(errs, unix.Munmap(st.data))
		}
	}
	for _, dir := range []string{s.dir, s.shm} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// detach takes a mount out of the tree, whoever still uses it.
func detach(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if exec.Command("fusermount3", "-u", "-z", path).Run() == nil {
		return nil
	}
	return err
}
