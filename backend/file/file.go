package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/internal/disk"
	"github.com/telemap/telemap/backend/internal/gate"
	"github.com/telemap/telemap/region"
)

var (
	_ backend.Backend    = (*Store)(nil)
	_ backend.Zeroer     = (*Store)(nil)
	_ backend.Discarder  = (*Store)(nil)
	_ backend.Extenter   = (*Store)(nil)
	_ backend.Filer      = (*Store)(nil)
	_ backend.ReadOnlyer = (*Store)(nil)
)

// Options says how to open a file. The zero value opens an existing one for
// reading and writing.
type Options struct {
	// ReadOnly refuses writes and opens the file for reading only.
	ReadOnly bool
	// Size is the region's length in bytes. If there is no file yet, or an empty
	// one, it is created with that many zeros, unless ReadOnly. A file of another
	// size is an error. Zero means that the file exists and says the size.
	Size int64
	// Mode is what a new file may be used for, before the umask. Zero means 0600.
	Mode fs.FileMode
}

// A Store is a region in a file. Make one with [Open].
type Store struct {
	path     string
	f        *os.File
	size     int64
	readOnly bool
	gate     gate.Gate

	// unnamed is set while the file was created but its directory not yet synced.
	unnamed atomic.Bool
	// cannot remembers which ways to make holes the file system has refused.
	cannot [2]atomic.Bool

	syncing sync.Mutex
	failed  error // what Sync failed with; guarded by syncing
}

// Open opens the regular file or block device at path. The file stays open
// until Close.
func Open(path string, o Options) (*Store, error) {
	s := &Store{path: path, readOnly: o.ReadOnly}
	if err := s.open(o); err != nil {
		if s.f != nil {
			_ = s.f.Close() // nothing was written that counts
		}
		return nil, s.fail("open", 0, 0, err)
	}
	return s, nil
}

func (s *Store) open(o Options) error {
	if o.Size < 0 {
		return fmt.Errorf("size is %d bytes: it must not be negative", o.Size)
	}
	// Asked before opening: opening a named pipe would wait for the other end.
	fi, err := os.Stat(s.path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && o.Size > 0 && !o.ReadOnly:
	case missing && o.Size == 0 && !o.ReadOnly:
		return fmt.Errorf("%w: give a size to create it", syscall.ENOENT)
	case err != nil:
		return err
	case fi.IsDir():
		return fmt.Errorf("%w: use a dir backend to store a region in a directory", syscall.EISDIR)
	case !fi.Mode().IsRegular() && !isBlockDevice(fi):
		return fmt.Errorf("it is neither a regular file nor a block device (mode %v)", fi.Mode())
	}
	flags := os.O_RDWR
	if o.ReadOnly {
		flags = os.O_RDONLY
	}
	if missing {
		flags |= os.O_CREATE
	}
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	if s.f, err = os.OpenFile(s.path, flags, o.Mode); err != nil {
		return err
	}
	// The end is the size of files and of block devices alike.
	if s.size, err = s.f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if s.size == 0 && o.Size > 0 && !o.ReadOnly && (missing || fi.Mode().IsRegular()) {
		if err := s.f.Truncate(o.Size); err != nil {
			return err
		}
		s.size = o.Size
		s.unnamed.Store(missing)
	}
	switch {
	case s.size == 0:
		return errors.New("it is empty, and a region has at least one byte: give a size to make it that long")
	case o.Size > 0 && o.Size != s.size:
		return fmt.Errorf("it has %d bytes, not %d: leave the size out or give the right one", s.size, o.Size)
	}
	return nil
}

func isBlockDevice(fi fs.FileInfo) bool {
	return fi.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// Size is the region's length in bytes: the file's when it was opened.
func (s *Store) Size() int64 { return s.size }

// ReadOnly says whether writes are refused.
func (s *Store) ReadOnly() bool { return s.readOnly }

// File is the file that holds the region.
func (s *Store) File() *os.File { return s.f }

// ReadAt reads from the file. It allocates nothing.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := s.enter(ctx); err != nil {
		return 0, s.fail("read", off, int64(len(p)), err)
	}
	defer s.gate.Leave()
	q, end := backend.Clip(p, off, s.size)
	n, err := 0, error(nil)
	if len(q) > 0 {
		if n, err = s.f.ReadAt(q, off); n == len(q) {
			err = nil
		} else if err == io.EOF {
			err = s.shorter()
		}
	}
	if err == nil {
		if err = end; err == nil || err == io.EOF {
			return n, err
		}
	}
	return n, s.fail("read", off, int64(len(p)), err)
}

func (s *Store) shorter() error {
	return fmt.Errorf("the file is shorter than the %d bytes it had when it was opened: %w", s.size, io.ErrUnexpectedEOF)
}

// WriteAt writes to the file. It allocates nothing.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := int64(len(p))
	if err := s.enterWrite(ctx, off, n); err != nil {
		return 0, s.fail("write", off, n, err)
	}
	defer s.gate.Leave()
	if n == 0 {
		return 0, nil
	}
	k, err := s.f.WriteAt(p, off)
	if err != nil {
		return k, s.fail("write", off, n, err)
	}
	return k, nil
}

// Zero makes a range read as zeros, by a hole or by marking its blocks unwritten
// where the file system can, else by writing zeros.
func (s *Store) Zero(ctx context.Context, off, n int64) error {
	return s.erase(ctx, "zero", off, n, zeroRange, punchHole)
}

// Discard gives a range's blocks back where the file system can, else zeroes it.
func (s *Store) Discard(ctx context.Context, off, n int64) error {
	return s.erase(ctx, "discard", off, n, punchHole, zeroRange)
}

// A way is how the file system can be asked for zeros.
type way int

const (
	punchHole way = iota
	zeroRange
)

func (s *Store) erase(ctx context.Context, op string, off, n int64, ways ...way) error {
	if err := s.enterWrite(ctx, off, n); err != nil {
		return s.fail(op, off, n, err)
	}
	defer s.gate.Leave()
	if n == 0 {
		return nil
	}
	for _, w := range ways {
		if s.cannot[w].Load() {
			continue
		}
		err := fallocate(s.f, w, off, n)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errors.ErrUnsupported):
			s.cannot[w].Store(true)
		case !errors.Is(err, syscall.EINVAL): // block devices want whole blocks
			return s.fail(op, off, n, err)
		}
	}
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return s.fail(op, off, end-off, err)
		}
		k, err := s.f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return s.fail(op, off, end-off, err)
		}
		off += int64(k)
	}
	return nil
}

var zeros [128 << 10]byte

// NextData asks the file system for the next extent. Where that is unknown, as
// on a block device, everything may be data.
func (s *Store) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := s.enter(ctx); err != nil {
		return region.Range{}, s.fail("seek", off, 0, err)
	}
	defer s.gate.Leave()
	switch {
	case off < 0 || off > s.size:
		return region.Range{}, s.fail("seek", off, 0, backend.ErrOutOfRange)
	case off == s.size:
		return region.Range{}, io.EOF
	}
	start, end, err := seekData(s.f, off)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return region.Range{Off: off, Len: s.size - off}, nil
	case err == nil && start < s.size:
		return region.Range{Off: start, Len: min(end, s.size) - start}, nil
	case err == nil || err == io.EOF:
		// A file that became shorter has no more data either, but not zeros.
		if now, err := s.f.Stat(); err != nil || now.Mode().IsRegular() && now.Size() < s.size {
			if err == nil {
				err = s.shorter()
			}
			return region.Range{}, s.fail("seek", off, 0, err)
		}
		return region.Range{}, io.EOF
	}
	return region.Range{}, s.fail("seek", off, 0, err)
}

// Sync makes what was written durable. After a failure it fails for good; see
// the package comment.
func (s *Store) Sync(ctx context.Context) error {
	if err := s.enter(ctx); err != nil {
		return s.fail("sync", 0, 0, err)
	}
	defer s.gate.Leave()
	if s.readOnly {
		return nil
	}
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if s.failed == nil {
		if s.failed = disk.Datasync(s.f); s.failed == nil && s.unnamed.Load() {
			if s.failed = disk.SyncDir(filepath.Dir(s.path)); s.failed == nil {
				s.unnamed.Store(false)
			}
		}
	}
	if s.failed != nil {
		return s.fail("sync", 0, 0, s.failed)
	}
	return nil
}

// Close waits for operations in flight and closes the file.
func (s *Store) Close() error {
	if !s.gate.Shut() {
		return nil
	}
	if err := s.f.Close(); err != nil {
		return s.fail("close", 0, 0, err)
	}
	return nil
}

// enter returns nil if the operation may go on; it must then leave the gate.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.gate.Enter() {
		return backend.ErrClosed
	}
	return nil
}

// enterWrite is enter for an operation that changes [off, off+n).
func (s *Store) enterWrite(ctx context.Context, off, n int64) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	switch {
	case s.readOnly:
		s.gate.Leave()
		return backend.ErrReadOnly
	case !region.Check(off, n, s.size):
		s.gate.Leave()
		return backend.ErrOutOfRange
	}
	return nil
}

func (s *Store) fail(op string, off, n int64, err error) error {
	// What package os adds, the path and the operation, is in the OpError.
	var p *fs.PathError
	if errors.As(err, &p) && error(p) == err {
		err = p.Err
	}
	if err = disk.Err(err); op == "open" && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", backend.ErrNotFound, err)
	}
	return &backend.OpError{Op: op, Name: s.path, Off: off, Len: max(n, 0), Err: err}
}
