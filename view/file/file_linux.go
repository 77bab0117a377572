package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/linux"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/view"
)

const (
	// source and fsType are how mounts of ours are told from others.
	source  = "telemap"
	subtype = "telemap"
	fsType  = "fuse." + subtype

	// maxRequest is the kernel's limit for one READ or WRITE since Linux 4.20.
	maxRequest = 1 << 20
	// maxBackground bounds the read-ahead and write-back requests in flight. The
	// kernel's default of 12 leaves a far source idle.
	maxBackground = 128

	// placeholderMode marks a file as made by us for a mount to sit on: no reader
	// takes it for an empty region, and no program makes such files.
	placeholderMode = 0o200
)

// A View is a region shown as a file.
type View struct {
	path  string
	fs    *fsys
	srv   *fuse.Server
	opts  Options
	log   *slog.Logger
	made  bool // the file under the mount is ours
	mount linux.Mount

	closing chan struct{} // holds a token while Close or Detach is at work
	aborted atomic.Bool

	done chan struct{}
	err  error // of Err, written before done closes
}

// Open shows src as a file and returns when the file can be used. ctx bounds the
// opening alone.
//
// A mount that a killed process left at the path is taken away, and logged. A
// file system that is alive there is [ErrBusy], and one of another kind is never
// touched.
func Open(ctx context.Context, src view.Source, path string, o Options) (*View, error) {
	v, err := open(ctx, src, path, o)
	if err != nil {
		return nil, fmt.Errorf("show region at %s: %w", path, err)
	}
	return v, nil
}

func open(ctx context.Context, src view.Source, path string, o Options) (_ *View, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	if src.Size() <= 0 {
		return nil, fmt.Errorf("the region has %d bytes: %w", src.Size(), region.ErrOutOfRange)
	}
	if path, err = resolve(path, o.Name); err != nil {
		return nil, err
	}
	if err := makeWay(ctx, path, o.Logger); err != nil {
		return nil, err
	}
	made, err := placeholder(path)
	if err != nil {
		return nil, err
	}
	v := &View{path: path, fs: newFS(src, o), opts: o, log: o.Logger.With("path", path), made: made,
		closing: make(chan struct{}, 1), done: make(chan struct{})}
	defer func() {
		if err != nil {
			v.removePlaceholder()
		}
	}()
	v.fs.fd, err = linux.MountFUSE(ctx, path, linux.FUSEMount{
		Source: source, Subtype: subtype, MaxRead: maxRequest, ReadOnly: o.ReadOnly, AllowOther: o.AllowOther,
	})
	if err != nil {
		return nil, err
	}
	// Not CAP_ASYNC_DIO: with it even a plain O_DIRECT read becomes a background
	// request, whose caller nothing can kill while the source is stalled.
	fo := &fuse.MountOptions{
		MaxWrite:                 maxRequest,
		MaxBackground:            maxBackground,
		DisableXAttrs:            true,
		ExplicitDataCacheControl: true, // our mtime says nothing about the cache
		DisableSplice:            true, // results are vectors or nothing
		PanicHandler:             v.fs.panicked,
		Logger:                   slog.NewLogLogger(v.log.Handler(), slog.LevelDebug),
	}
	if o.Direct {
		fo.ExtraCapabilities |= fuse.CAP_DIRECT_IO_ALLOW_MMAP
	}
	v.srv, err = fuse.NewServer(v.fs, fmt.Sprintf("/dev/fd/%d", v.fs.fd), fo)
	if err != nil {
		// NewServer has closed the descriptor, which ends the connection.
		return nil, errors.Join(err, linux.UnmountFUSE(path, true))
	}
	var found bool
	if v.mount, found, err = linux.MountAt(path); err != nil || !found {
		err = errors.Join(fmt.Errorf("find the new mount: %w", err), linux.UnmountFUSE(path, true))
	}
	go v.serve()
	if err != nil {
		<-v.done
		return nil, err
	}
	if err := linux.SetReadAhead(v.mount.Major, v.mount.Minor, o.ReadAhead); err != nil {
		v.log.Debug("read-ahead stays at the kernel's default", "err", err)
	}
	if err := primePoll(path); err != nil {
		return nil, errors.Join(err, v.Detach(ctx))
	}
	return v, nil
}

// resolve says where the mount goes: path without symbolic links, or name in it
// if it is a directory.
func resolve(path, name string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, filepath.Base(path))
	// Look before asking: a stale mount answers a stat with an error.
	if m, ok, err := linux.MountAt(path); err != nil || ok && m.Type == fsType {
		return path, err
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return "", fmt.Errorf("%w: a file system that is not telemap's is dead there; unmount it first (umount -l %s)", err, path)
	case errors.Is(err, os.ErrNotExist):
		return path, nil
	case err != nil:
		return "", err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	if st.IsDir() {
		path = filepath.Join(path, name)
	}
	return path, nil
}

// makeWay takes stale mounts of ours away from path and fails if any other mount is
// there.
func makeWay(ctx context.Context, path string, log *slog.Logger) error {
	for {
		m, ok, err := linux.MountAt(path)
		if err != nil || !ok {
			return err
		}
		if m.Type != fsType {
			return fmt.Errorf("%w: a file system of type %s is mounted on it; unmount it (umount %s) or choose another path", ErrBusy, m.Type, path)
		}
		switch err := probe(ctx, path); {
		case errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED):
			log.Warn("taking away the mount of a process that has died", "path", path)
			if err := linux.UnmountFUSE(path, true); err != nil {
				return fmt.Errorf("take away a stale mount: %w", err)
			}
		case ctx.Err() != nil:
			return fmt.Errorf("the process that shows a region there does not answer: %w", err)
		default:
			return fmt.Errorf("%w: a region is shown there already; close that one (umount %s) or choose another path", ErrBusy, path)
		}
	}
}

// probe opens path and reports how that went. A server that hangs costs a thread
// until it answers.
func probe(ctx context.Context, path string) error {
	answer := make(chan error, 1)
	go func() {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// placeholder makes sure that a regular file is at path and reports whether it is
// one that we, or a process of ours that has died, made for this.
func placeholder(path string) (made bool, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, placeholderMode)
	if err == nil {
		return true, f.Close()
	}
	if !errors.Is(err, os.ErrExist) {
		return false, err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	if !st.Mode().IsRegular() {
		return false, fmt.Errorf("%s is neither a regular file nor a directory (%v)", path, st.Mode())
	}
	return isPlaceholder(st), nil
}

func isPlaceholder(st os.FileInfo) bool {
	return st.Mode() == placeholderMode && st.Size() == 0
}

func (v *View) removePlaceholder() {
	if !v.made {
		return
	}
	if st, err := os.Lstat(v.path); err != nil || !isPlaceholder(st) {
		return // somebody has put something else there
	}
	if err := os.Remove(v.path); err != nil {
		v.log.Warn("the empty file under the mount stays", "err", err)
	}
}

// primePoll has the kernel learn that the file needs no poll(2). Go programs poll
// every file that they open, and one that serves the file itself would then wait
// for itself, holding the scheduler. It also shows that the mount works.
func primePoll(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		return nil // Options.Mode keeps even us out
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// serve answers the kernel until the file system is gone.
func (v *View) serve() {
	defer close(v.done)
	v.srv.Serve()
	if !v.fs.leaving.Load() {
		v.err = ErrUnmounted
		v.log.Warn("the file was unmounted from outside")
	}
	if ours, err := v.mounted(); err == nil && ours {
		// The connection was cut without an unmount.
		if err := linux.UnmountFUSE(v.path, true); err != nil {
			v.log.Warn("unmount after the connection was cut", "err", err)
		}
	}
	v.removePlaceholder()
}

// mounted reports whether the view is in the tree, where it can be unmounted.
func (v *View) mounted() (bool, error) {
	same := func(m linux.Mount) bool {
		return m.ID == v.mount.ID && m.Major == v.mount.Major && m.Minor == v.mount.Minor
	}
	top, ok, err := linux.MountAt(v.path)
	if err != nil || !ok || same(top) {
		return ok && same(top), err
	}
	all, err := linux.Mounts()
	if slices.ContainsFunc(all, same) {
		return true, fmt.Errorf("unmount %s: %w: a file system of type %s is mounted over it; unmount that first", v.path, ErrBusy, top.Type)
	}
	return false, err
}

// Path is where the file is, without symbolic links.
func (v *View) Path() string { return v.path }

// Done is closed when the file is gone, whoever unmounted it.
func (v *View) Done() <-chan struct{} { return v.done }

// Err says why the file is gone: nil if it is not or was closed by the owner,
// [ErrUnmounted] if somebody else did it.
func (v *View) Err() error {
	select {
	case <-v.done:
		return v.err
	default:
		return nil
	}
}

// Stats is a snapshot. Its counts are each right but not of one instant.
func (v *View) Stats() Stats {
	c := &v.fs.stats
	return Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Syncs: c.syncs.Load(), Zeros: c.zeros.Load(),
		ReadBytes: c.readBytes.Load(), WrittenBytes: c.writtenBytes.Load(), Viewed: c.viewed.Load(),
		ReadErrors: c.readErrors.Load(), WriteErrors: c.writeErrors.Load(), SyncErrors: c.syncErrors.Load(),
		ZeroErrors: c.zeroErrors.Load(), Interrupts: c.interrupts.Load(), Panics: c.panics.Load(),
		Opens: c.opens.Load(), Open: c.open.Load(),
	}
}

// Invalidate has the kernel forget the cached pages of [off, off+n), so that the
// next read asks the source. Pages that are dirty are written first. It is needed
// when the source's bytes were changed otherwise than through the file. It must
// not be called from a method of the source.
func (v *View) Invalidate(off, n int64) error {
	if !region.Check(off, n, v.fs.size) {
		return fmt.Errorf("invalidate [%d,%d) of %s: %w", off, off+n, v.path, region.ErrOutOfRange)
	}
	if n == 0 {
		return nil // which the kernel would take for everything
	}
	v.fs.touch()
	switch st := v.srv.InodeNotify(fuse.FUSE_ROOT_ID, off, n); st {
	case fuse.OK, fuse.ENOENT: // the kernel has nothing of it
		return nil
	default:
		return fmt.Errorf("invalidate [%d,%d) of %s: %w", off, off+n, v.path, unix.Errno(st))
	}
}

// Close writes what is dirty in the kernel to the source and unmounts the file.
// It does not sync the source. If the file is in use, Close fails with a
// [BusyError] and the view goes on. If ctx ends while the kernel writes, the
// connection is cut, which loses the rest and is [ErrAborted]. An error of a
// write is returned, and the file is gone all the same. Closing what is gone is
// harmless.
func (v *View) Close(ctx context.Context) error {
	if !v.enter(ctx) {
		return fmt.Errorf("close %s: somebody else is closing it: %w", v.path, ctx.Err())
	}
	defer v.leave()
	v.fs.leaving.Store(true)
	for pause := time.Millisecond; ; pause *= 2 {
		err := v.unmount(ctx, false)
		if err == nil {
			return v.wait(ctx)
		}
		busy := errors.Is(err, unix.EBUSY)
		// A process that has just exited, or udev's glance at a new device, keeps
		// the file open for milliseconds.
		if busy && pause < 64*time.Millisecond && sleep(ctx, pause) {
			continue
		}
		v.fs.leaving.Store(false)
		if busy {
			return &BusyError{Path: v.path, PIDs: linux.Users(v.path, v.mount.Major, v.mount.Minor)}
		}
		return err
	}
}

// Detach is Close for a file in use: it takes the file out of the tree at once, so
// that nobody new can open it, and syncs it. Then it waits until the last user has
// closed it. When ctx ends, users are cut off, even those that cannot be killed
// because they wait for a page; Detach then returns [ErrAborted].
func (v *View) Detach(ctx context.Context) error {
	if !v.enter(ctx) {
		// Whoever waits for the users now has more patience than this caller.
		return v.wait(ctx)
	}
	defer v.leave()
	v.fs.leaving.Store(true)
	syncErr := v.sync(ctx)
	if err := v.unmount(ctx, true); err != nil {
		v.fs.leaving.Store(false)
		return errors.Join(err, syncErr)
	}
	return errors.Join(v.wait(ctx), syncErr)
}

// enter lets one Close or Detach work at a time. It reports false if ctx ends
// before it is this one's turn.
func (v *View) enter(ctx context.Context) bool {
	select {
	case v.closing <- struct{}{}:
		return true
	default:
	}
	select {
	case v.closing <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (v *View) leave() { <-v.closing }

// Sync returns nil once every write to the file that returned before the call is
// durable in the source, those in the kernel's page cache included. It is fsync(2)
// of the file, by this process.
func (v *View) Sync(ctx context.Context) error {
	if err := v.sync(ctx); err != nil {
		return err
	}
	return ctx.Err()
}

// sync writes the dirty pages of whoever has the file open, and syncs the source.
func (v *View) sync(ctx context.Context) error {
	if v.opts.ReadOnly || ctx.Err() != nil {
		return nil
	}
	if ours, err := v.mounted(); err != nil || !ours {
		return err
	}
	result := make(chan error, 1)
	go func() {
		fd, err := unix.Open(v.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- nil // Options.Mode keeps us out, or it is gone just now
			return
		}
		defer unix.Close(fd)
		result <- unix.Fsync(fd)
	}()
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("sync %s: %w", v.path, err)
		}
		return nil
	case <-ctx.Done():
		// The goroutine ends with the connection, which wait cuts now.
		return nil
	}
}

// unmount takes the view out of the tree, if it is still there.
func (v *View) unmount(ctx context.Context, detach bool) error {
	if ours, err := v.mounted(); err != nil || !ours {
		return err
	}
	result := make(chan error, 1)
	go func() { result <- linux.UnmountFUSE(v.path, detach) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	// umount(2) is waiting for the source to take dirty pages, or about to return,
	// perhaps to say that the file is in use: then nobody must be cut off.
	select {
	case err := <-result:
		return err
	case <-time.After(time.Second):
	}
	if err := v.abort(); err != nil {
		return err
	}
	return <-result
}

// wait returns when everything is gone. It cuts the connection when ctx ends.
func (v *View) wait(ctx context.Context) error {
	select {
	case <-v.done:
	case <-ctx.Done():
		if err := v.abort(); err != nil {
			return fmt.Errorf("%s is out of the tree but still in use: %w", v.path, err)
		}
		patience := time.NewTimer(30 * time.Second)
		defer patience.Stop()
		select {
		case <-v.done:
		case <-patience.C:
			return fmt.Errorf("close %s: an operation of the source does not return though its context has ended", v.path)
		}
	}
	var err error
	if v.aborted.Swap(false) {
		err = fmt.Errorf("close %s: %w", v.path, ErrAborted)
	}
	if lost := v.fs.lost.Swap(nil); lost != nil {
		err = errors.Join(err, fmt.Errorf("write mapped pages of %s: %w", v.path, *lost))
	}
	return err
}

func (v *View) abort() error {
	select {
	case <-v.done:
		return nil
	default:
	}
	v.aborted.Store(true)
	v.log.Warn("cutting the connection of a file that is still in use")
	return linux.AbortFUSE(v.mount.Minor)
}

// sleep reports false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
