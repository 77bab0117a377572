package file

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/linux"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/view"
)

// Nothing changes an attribute without the kernel knowing, so it may cache them
// for good.
const attrTimeout = 365 * 24 * time.Hour

// fsys is a file system whose root is one regular file.
type fsys struct {
	fuse.RawFileSystem

	src    view.Source
	viewer view.Viewer   // nil if src is none
	ext    view.Extenter // nil if src is none
	size   int64
	log    *slog.Logger

	readOnly bool
	flags    uint32 // of every open file

	fd int // of /dev/fuse, valid while requests are handled

	attrMu   sync.Mutex
	mode     uint32
	uid, gid uint32
	mtime    atomic.Int64 // nanoseconds

	writers atomic.Int64 // files open for writing

	// leaving is set while Close unmounts; writes that then fail have nobody else
	// to report to.
	leaving atomic.Bool
	lost    atomic.Pointer[error]

	results sync.Pool // of *result
	stats   counters
}

type counters struct {
	reads, writes, syncs, zeros, readBytes, writtenBytes, viewed atomic.Int64
	readErrors, writeErrors, syncErrors, zeroErrors, interrupts  atomic.Int64
	panics, opens, open                                          atomic.Int64
}

func newFS(src view.Source, o Options) *fsys {
	f := &fsys{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		src:           src,
		size:          src.Size(),
		log:           o.Logger,
		readOnly:      o.ReadOnly,
		mode:          uint32(o.Mode),
		uid:           uint32(unix.Geteuid()),
		gid:           uint32(unix.Getegid()),
		// Without KEEP_CACHE every open would drop what earlier ones read.
		flags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PARALLEL_DIRECT_WRITES,
	}
	if o.Direct {
		f.flags |= fuse.FOPEN_DIRECT_IO
	}
	f.viewer, _ = src.(view.Viewer)
	f.ext, _ = src.(view.Extenter)
	f.mtime.Store(time.Now().UnixNano())
	f.results.New = func() any { return &result{pool: &f.results} }
	return f
}

func (f *fsys) String() string { return "telemap" }

// opCtx is the context of a request. The channel closes when a signal interrupts
// the caller and when the mount dies. A channel in an interface needs no
// allocation.
type opCtx <-chan struct{}

func (c opCtx) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c opCtx) Done() <-chan struct{}       { return c }
func (c opCtx) Value(any) any               { return nil }
func (c opCtx) Err() error {
	select {
	case <-c:
		return context.Canceled
	default:
		return nil
	}
}

// again does for a living caller what a signal has interrupted. It ends early
// only if the caller is killed or the mount dies.
func (f *fsys) again(tid uint32, op func(context.Context) error) error {
	gone := func() bool { return linux.Hung(f.fd) || linux.Dying(int(tid)) }
	if gone() {
		return context.Canceled
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		// The kernel tells of the first signal only: later ones must be looked for.
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if gone() {
					cancel()
				}
			}
		}
	})
	err := op(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Canceled
	}
	cancel()
	watch.Wait()
	return err
}

// status turns the outcome of an operation into the kernel's, and counts it.
func (f *fsys) status(cancel <-chan struct{}, op string, off, n int64, err error, failed *atomic.Int64) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	e := errno(err)
	if e == syscall.EINTR {
		if opCtx(cancel).Err() != nil {
			f.stats.interrupts.Add(1)
			return fuse.EINTR
		}
		// The source gave up for a reason of its own. Programs repeat what fails
		// with EINTR at once and for ever.
		e = syscall.EIO
	}
	failed.Add(1)
	f.log.Debug("request failed", "op", op, "off", off, "len", n, "errno", e, "err", err)
	return fuse.Status(e)
}

// Read answers from the source's memory if it can, else through buf.
func (f *fsys) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.stats.reads.Add(1)
	off := int64(in.Offset)
	if off < 0 {
		return nil, fuse.EINVAL
	}
	n := min(int64(len(buf)), f.size-off)
	if n <= 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	b, err := f.read(opCtx(cancel), buf[:n], off)
	// Only a direct read names its owner; the others fill the page cache, perhaps
	// for a page fault.
	direct := in.ReadFlags&fuse.READ_LOCKOWNER != 0
	if err != nil && !direct && opCtx(cancel).Err() != nil {
		tid := in.Pid
		err = f.again(tid, func(ctx context.Context) (err error) {
			b, err = f.read(ctx, buf[:n], off)
			return err
		})
	}
	if err != nil {
		return nil, f.status(cancel, "read", off, n, err, &f.stats.readErrors)
	}
	f.stats.readBytes.Add(n)
	r := f.results.Get().(*result)
	r.vec[0] = b
	return r, fuse.OK
}

// read returns the len(buf) bytes at off, in buf or in the source's memory.
func (f *fsys) read(ctx context.Context, buf []byte, off int64) ([]byte, error) {
	if f.viewer != nil {
		b, err := f.viewer.View(ctx, off, int64(len(buf)))
		if err != nil {
			return nil, err
		}
		if len(b) == len(buf) {
			f.stats.viewed.Add(1)
			return b, nil
		}
	}
	n, err := f.src.ReadAt(ctx, buf, off)
	if n == len(buf) {
		return buf, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return nil, err
}

// result hands bytes to the kernel by writev(2), without a copy. go-fuse knows
// it by its method Slices.
type result struct {
	vec  [1][]byte
	pool *sync.Pool
}

func (r *result) Size() int                              { return len(r.vec[0]) }
func (r *result) Bytes(buf []byte) ([]byte, fuse.Status) { return r.vec[0], fuse.OK }
func (r *result) Slices() ([][]byte, fuse.Status)        { return r.vec[:], fuse.OK }
func (r *result) Done()                                  { r.vec[0] = nil; r.pool.Put(r) }

func (f *fsys) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f.stats.writes.Add(1)
	if f.readOnly {
		return 0, fuse.EROFS
	}
	off := int64(in.Offset)
	if off < 0 {
		return 0, fuse.EINVAL
	}
	if len(data) == 0 {
		return 0, fuse.OK
	}
	if off >= f.size {
		return 0, fuse.Status(syscall.ENOSPC)
	}
	data = data[:min(int64(len(data)), f.size-off)]
	err := f.write(opCtx(cancel), data, off)
	if err != nil && opCtx(cancel).Err() != nil {
		err = f.again(in.Pid, func(ctx context.Context) error { return f.write(ctx, data, off) })
	}
	f.touch()
	if err != nil {
		if in.WriteFlags&fuse.WRITE_CACHE != 0 {
			// No program waits for this write: the next fsync gets a bare EIO.
			f.log.Error("write of a mapped page failed", "off", off, "len", len(data), "err", err)
			if f.leaving.Load() {
				f.lost.CompareAndSwap(nil, &err)
			}
		}
		return 0, f.status(cancel, "write", off, int64(len(data)), err, &f.stats.writeErrors)
	}
	f.stats.writtenBytes.Add(int64(len(data)))
	return uint32(len(data)), fuse.OK
}

func (f *fsys) write(ctx context.Context, p []byte, off int64) error {
	n, err := f.src.WriteAt(ctx, p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// Fsync comes when the kernel has written every dirty page.
func (f *fsys) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f.stats.syncs.Add(1)
	err := f.src.Sync(opCtx(cancel))
	if err != nil && opCtx(cancel).Err() != nil {
		err = f.again(in.Pid, f.src.Sync)
	}
	return f.status(cancel, "sync", 0, f.size, err, &f.stats.syncErrors)
}

// Flush comes at every close(2), when the kernel has written every dirty page.
func (f *fsys) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status { return fuse.OK }

func (f *fsys) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = f.flags
	if in.Flags&unix.O_ACCMODE == unix.O_RDONLY {
		// Who cannot write leaves nothing to flush at close.
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	} else {
		if f.readOnly {
			return fuse.EROFS
		}
		f.writers.Add(1)
		out.Fh = 1
	}
	f.stats.opens.Add(1)
	f.stats.open.Add(1)
	return fuse.OK
}

// Release comes when the last descriptor and the last mapping of an open file are
// gone, and the pages dirtied through them are written.
func (f *fsys) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	f.stats.open.Add(-1)
	if in.Fh == 1 {
		f.writers.Add(-1)
	}
}

func (f *fsys) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if f.readOnly {
		return fuse.EROFS
	}
	off, n := int64(in.Offset), int64(in.Length)
	if off < 0 || n <= 0 {
		return fuse.EINVAL
	}
	var op func(ctx context.Context, off, n int64) error
	switch in.Mode {
	case 0, unix.FALLOC_FL_KEEP_SIZE:
		if !region.Check(off, n, f.size) {
			return fuse.Status(syscall.ENOSPC)
		}
		return fuse.OK
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		op = f.discard
	case unix.FALLOC_FL_ZERO_RANGE:
		if !region.Check(off, n, f.size) {
			return fuse.Status(syscall.ENOSPC)
		}
		op = f.zero
	case unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		op = f.zero
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	f.stats.zeros.Add(1)
	if n = min(n, f.size-off); n <= 0 {
		return fuse.OK
	}
	err := op(opCtx(cancel), off, n)
	if err != nil && opCtx(cancel).Err() != nil {
		err = f.again(in.Pid, func(ctx context.Context) error { return op(ctx, off, n) })
	}
	f.touch()
	return f.status(cancel, "zero", off, n, err, &f.stats.zeroErrors)
}

func (f *fsys) discard(ctx context.Context, off, n int64) error {
	if d, ok := f.src.(view.Discarder); ok {
		return d.Discard(ctx, off, n)
	}
	return f.zero(ctx, off, n)
}

func (f *fsys) zero(ctx context.Context, off, n int64) error {
	if z, ok := f.src.(view.Zeroer); ok {
		return z.Zero(ctx, off, n)
	}
	zeros := make([]byte, min(n, 256<<10))
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if err := f.write(ctx, zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Lseek finds data and holes. While somebody may have dirty pages that the source
// has not seen, everything is data: a copy that skips holes would lose them.
func (f *fsys) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	off := int64(in.Offset)
	if off < 0 || off >= f.size {
		return fuse.Status(syscall.ENXIO)
	}
	sparse := f.ext != nil && f.writers.Load() == 0
	var err error
	switch in.Whence {
	case unix.SEEK_DATA:
		if sparse {
			var r region.Range
			if r, err = f.ext.NextData(opCtx(cancel), off); errors.Is(err, io.EOF) {
				return fuse.Status(syscall.ENXIO)
			}
			off = r.Off
		}
	case unix.SEEK_HOLE:
		if !sparse {
			off = f.size
			break
		}
		for off < f.size {
			var r region.Range
			if r, err = f.ext.NextData(opCtx(cancel), off); err != nil || r.Off > off {
				break
			}
			off = r.End() // a range may end early: there may be data right behind
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
	default:
		return fuse.EINVAL
	}
	out.Offset = uint64(off)
	return f.status(cancel, "seek", off, 0, err, &f.stats.readErrors)
}

func (f *fsys) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.attr(out)
	return fuse.OK
}

func (f *fsys) attr(out *fuse.AttrOut) {
	f.attrMu.Lock()
	defer f.attrMu.Unlock()
	t := f.mtime.Load()
	sec, nsec := uint64(t/1e9), uint32(t%1e9)
	out.Attr = fuse.Attr{
		Ino:   fuse.FUSE_ROOT_ID,
		Size:  uint64(f.size),
		Mode:  unix.S_IFREG | f.mode,
		Nlink: 1,
		Owner: fuse.Owner{Uid: f.uid, Gid: f.gid},
		// The buffer size of stdio and of cp. The kernel joins and reads ahead, so
		// larger would only cost programs memory.
		Blksize: 64 << 10,
		Blocks:  uint64((f.size + 511) / 512),
		Atime:   sec, Mtime: sec, Ctime: sec,
		Atimensec: nsec, Mtimensec: nsec, Ctimensec: nsec,
	}
	out.SetTimeout(attrTimeout)
}

func (f *fsys) touch() { f.mtime.Store(time.Now().UnixNano()) }

// SetAttr keeps the size and remembers the rest. The kernel has checked that the
// caller may.
func (f *fsys) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok && size != uint64(f.size) {
		// What truncate(2) gives where a file cannot change its size.
		return fuse.EPERM
	}
	f.attrMu.Lock()
	if mode, ok := in.GetMode(); ok {
		f.mode = mode & 0o777
		if f.readOnly {
			f.mode &^= 0o222
		}
	}
	if uid, ok := in.GetUID(); ok {
		f.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		f.gid = gid
	}
	if t, ok := in.GetMTime(); ok {
		f.mtime.Store(t.UnixNano())
	}
	f.attrMu.Unlock()
	f.attr(out)
	return fuse.OK
}

func (f *fsys) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const block = 4096
	*out = fuse.StatfsOut{
		Blocks: uint64((f.size + block - 1) / block),
		Bsize:  block, Frsize: block,
		Files: 1, NameLen: 255,
	}
	return fuse.OK
}

// panicked is what a request ends with when the source panicked.
func (f *fsys) panicked(reason any) fuse.Status {
	f.stats.panics.Add(1)
	f.log.Error("source panicked", "panic", reason, "stack", string(debug.Stack()))
	return fuse.EIO
}
