package demo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}

// use starts using the region at url: as a mounted file where that is possible.
func (d *demo) use(ctx context.Context, url string, pull bool) (user, error) {
	if d.o.FUSE != nil {
		return useLibrary(ctx, url, pull)
	}
	path := filepath.Join(d.dir, "mounted")
	args := []string{"mount", url, path, "--json"}
	if !pull {
		args = append(args, "--no-pull")
	}
	p, err := d.start(ctx, args...)
	if err != nil {
		return nil, err
	}
	l, err := p.next(ctx)
	if err != nil {
		return nil, errors.Join(err, ignoreDone(p.cmd.Process.Kill()))
	}
	f, err := os.OpenFile(l.Path, os.O_RDWR, 0)
	if err != nil {
		_, serr := p.stop()
		return nil, errors.Join(err, serr)
	}
	return &fileUser{f: f, proc: p, open: time.Duration(l.Open * float64(time.Second))}, nil
}

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// A fileUser uses a mounted file. Another process serves it, so this one may map
// it.
type fileUser struct {
	f    *os.File
	proc *process
	open time.Duration
}

func (u *fileUser) ReadAt(p []byte, off int64) (int, error)  { return u.f.ReadAt(p, off) }
func (u *fileUser) WriteAt(p []byte, off int64) (int, error) { return u.f.WriteAt(p, off) }
func (u *fileUser) Sync() error                              { return u.f.Sync() }

func (u *fileUser) Map(p []byte, off int64) (bool, error) {
	start := off &^ int64(os.Getpagesize()-1)
	mem, err := unix.Mmap(int(u.f.Fd()), start, int(off-start)+len(p), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return false, err
	}
	copy(mem[off-start:], p)
	return true, errors.Join(unix.Msync(mem, unix.MS_SYNC), unix.Munmap(mem))
}

func (u *fileUser) Close() (counts, error) {
	err := u.f.Close()
	l, serr := u.proc.stop()
	return l.Pager, errors.Join(err, serr)
}
