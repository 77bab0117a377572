package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/chunked"
	"github.com/telemap/telemap/backend/internal/disk"
	"github.com/telemap/telemap/region"
)

var (
	_ backend.Backend    = (*Store)(nil)
	_ chunked.Store      = (*chunks)(nil)
	_ chunked.Deleter    = (*chunks)(nil)
	_ chunked.PartWriter = (*chunks)(nil)
	_ chunked.Lister     = (*chunks)(nil)
)

// DefaultChunkSize is larger than elsewhere: part of a file can be read and
// written, so small chunks would only mean more files.
const DefaultChunkSize = 1 << 20

// Options says how to open a directory. The zero value opens an existing one.
type Options struct {
	// Size is the region's length in bytes. If the directory does not exist or is
	// empty, it becomes a region of that many zeros. If it holds a region, Size
	// is that region's or zero.
	Size int64
	// ChunkSize is the most bytes in a file, a power of two from
	// region.MinChunkSize to region.MaxChunkSize. Zero means DefaultChunkSize for
	// a new region and what the manifest says for an existing one.
	ChunkSize int64
	// MaxOpenFiles is how many files are open at a time. Zero means 256.
	MaxOpenFiles int
	// Workers is how many files one operation reads or writes at a time. Zero
	// means 4.
	Workers int
	// ReadOnly refuses writes and creates nothing.
	ReadOnly bool
}

// A Store is a region in a directory. Make one with [Open].
type Store struct{ *chunked.Backend }

// Open opens the region in the directory at path, or makes one there.
func Open(path string, o Options) (*Store, error) {
	s, err := open(path, o)
	if err != nil {
		return nil, &backend.OpError{Op: "open", Name: path, Err: disk.Err(err)}
	}
	return s, nil
}

func open(path string, o Options) (*Store, error) {
	if o.MaxOpenFiles == 0 {
		o.MaxOpenFiles = 256
	}
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.MaxOpenFiles < 0 || o.Workers < 0 || o.Size < 0 || o.ChunkSize < 0 {
		return nil, errors.New("an option is negative: leave it zero for the default")
	}
	m, g, err := load(path)
	if errors.Is(err, fs.ErrNotExist) {
		if o.Size == 0 || o.ReadOnly {
			return nil, fmt.Errorf("%w: there is no %s: give a size to create one", backend.ErrNotFound, manifestName)
		}
		m = manifest{Format: manifestFormat, Version: manifestVersion, Size: o.Size, ChunkSize: o.ChunkSize}
		if m.ChunkSize == 0 {
			m.ChunkSize = DefaultChunkSize
		}
		if g, err = m.geometry(); err == nil {
			err = create(path, m)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case o.Size != 0 && o.Size != m.Size:
		return nil, fmt.Errorf("its region has %d bytes, not %d: leave the size out or give the right one", m.Size, o.Size)
	case o.ChunkSize != 0 && o.ChunkSize != m.ChunkSize:
		return nil, fmt.Errorf("its chunks have %d bytes, not %d: leave the chunk size out or give the right one", m.ChunkSize, o.ChunkSize)
	}
	c, err := newChunks(filepath.Join(path, chunksName), g, o)
	if err != nil {
		return nil, err
	}
	return &Store{chunked.New(c, g, chunked.Options{Name: path, Workers: o.Workers, ReadOnly: o.ReadOnly})}, nil
}

// perDir is how many chunk files a directory holds.
const perDir = 4096

// chunks is the store below package chunked, which never changes one chunk
// twice at a time.
type chunks struct {
	root     string
	g        region.Geometry
	readOnly bool
	files    *files

	// stored says which chunks have a file. It is set after the file was made
	// and cleared before it is removed.
	stored *region.Bitmap
	// dirty says which files were written, and dirs in which directories files
	// came or went, since they were last synced; root whether a directory did.
	// Writers write, then set; Sync clears, then syncs.
	dirty, dirs *region.Bitmap
	rootDirty   atomic.Bool

	syncing chan struct{} // holds a value while a Sync runs
	// evicting is read-locked while a file is synced to be closed.
	evicting sync.RWMutex
	failed   atomic.Pointer[error] // what the first failed sync said
}

// newChunks finds the chunks below root.
func newChunks(root string, g region.Geometry, o Options) (*chunks, error) {
	c := &chunks{
		root: root, g: g, readOnly: o.ReadOnly,
		stored:  region.NewBitmap(g.Chunks()),
		dirty:   region.NewBitmap(g.Chunks()),
		dirs:    region.NewBitmap((g.Chunks()-1)/perDir + 1),
		syncing: make(chan struct{}, 1),
	}
	c.files = newFiles(o.MaxOpenFiles, c.openFile, c.evict)
	return c, c.scan()
}

func (c *chunks) dir(i region.ChunkIndex) string {
	return filepath.Join(c.root, fmt.Sprintf("%05x", i/perDir))
}

func (c *chunks) path(i region.ChunkIndex) string {
	return filepath.Join(c.dir(i), fmt.Sprintf("%08x", i))
}

// scan finds which chunks have a file. Names that are none of ours are ignored.
func (c *chunks) scan() error {
	dirs, err := os.ReadDir(c.root)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		k, ok := parse(d.Name(), 5)
		if !ok || !d.IsDir() {
			continue
		}
		f, err := os.Open(filepath.Join(c.root, d.Name()))
		if err != nil {
			return err
		}
		names, err := f.Readdirnames(-1)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		for _, name := range names {
			if i, ok := parse(name, 8); ok && i/perDir == k && i < c.g.Chunks() {
				c.stored.Set(i)
			}
		}
	}
	return nil
}

// parse is the number that name says in so many hexadecimal digits.
func parse(name string, digits int) (region.ChunkIndex, bool) {
	n, err := strconv.ParseUint(name, 16, 32)
	return region.ChunkIndex(n), err == nil && len(name) == digits && strings.ToLower(name) == name
}

// openFile opens the file of chunk i.
func (c *chunks) openFile(i region.ChunkIndex, create bool) (*os.File, error) {
	switch {
	case c.readOnly:
		return os.Open(c.path(i))
	case !create:
		return os.OpenFile(c.path(i), os.O_RDWR, 0)
	}
	f, err := os.OpenFile(c.path(i), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(c.dir(i), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		c.rootDirty.Store(true)
		f, err = os.OpenFile(c.path(i), os.O_RDWR|os.O_CREATE, 0o600)
	}
	return f, err
}

// evict closes a file to make room for another.
func (c *chunks) evict(f *os.File, unsynced bool) {
	c.evicting.RLock()
	defer c.evicting.RUnlock()
	var err error
	if unsynced {
		err = disk.Datasync(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		c.failed.CompareAndSwap(nil, &err)
	}
}

// ReadChunk reads from the chunk's file and never creates one.
func (c *chunks) ReadChunk(ctx context.Context, i region.ChunkIndex, p []byte, off int64) (int, error) {
	h, err := c.useStored(ctx, i)
	if h == nil {
		return 0, disk.Err(err)
	}
	n, err := h.f.ReadAt(p, off)
	if err == io.EOF {
		err = nil // what is missing are zeros
	}
	if doneErr := c.files.done(h); err == nil {
		err = doneErr
	}
	return n, err
}

// useStored returns the open file of chunk i, for the caller to use until done,
// or nil if there is none.
func (c *chunks) useStored(ctx context.Context, i region.ChunkIndex) (*handle, error) {
	for try := 1; c.stored.Test(i); try++ {
		h, err := c.files.use(ctx, i, false)
		if errors.Is(err, fs.ErrNotExist) && try < 10 {
			continue // deleted just now, and perhaps written again
		}
		return h, err
	}
	return nil, nil
}

// WriteChunk writes the chunk's file in place.
func (c *chunks) WriteChunk(ctx context.Context, i region.ChunkIndex, p []byte) error {
	return c.WritePart(ctx, i, p, 0)
}

// WritePart writes the chunk's file in place.
func (c *chunks) WritePart(ctx context.Context, i region.ChunkIndex, p []byte, off int64) error {
	h, err := c.files.use(ctx, i, true)
	if err != nil {
		return disk.Err(err)
	}
	_, err = h.f.WriteAt(p, off)
	// All of this also if the write failed: it may have written something.
	c.files.setUnsynced(h, true)
	c.dirty.Set(i)
	if c.stored.Set(i) {
		c.dirs.Set(i / perDir)
	}
	return disk.Err(errors.Join(err, c.files.done(h)))
}

// DeleteChunk removes the chunk's file.
func (c *chunks) DeleteChunk(ctx context.Context, i region.ChunkIndex) error {
	if !c.stored.Test(i) {
		return nil
	}
	return disk.Err(c.files.remove(ctx, i, func() error {
		c.stored.Clear(i)
		if err := os.Remove(c.path(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.stored.Set(i)
			return err
		}
		c.dirs.Set(i / perDir)
		return nil
	}))
}

// NextChunks is the next run of chunks that have a file.
func (c *chunks) NextChunks(_ context.Context, i region.ChunkIndex) (first, end region.ChunkIndex, err error) {
	first = c.stored.NextSet(i)
	if first == c.stored.Len() {
		return first, first, nil
	}
	return first, max(first+1, c.stored.NextClear(first)), nil
}

// Sync syncs every file and directory that was changed since it was last synced.
func (c *chunks) Sync(ctx context.Context) error {
	select {
	case c.syncing <- struct{}{}:
		defer func() { <-c.syncing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.failed.Load(); err != nil {
		return disk.Err(*err)
	}
	err := c.syncFiles(ctx)
	if err == nil {
		err = c.syncDirs(ctx)
	}
	// A file that is being evicted may just have been told of an error that the
	// one opened here in its place is not told of.
	c.evicting.Lock()
	failed := c.failed.Load()
	c.evicting.Unlock()
	if failed != nil {
		err = *failed
	}
	return disk.Err(err)
}

// syncFiles gives up only when ctx is done, leaving the rest dirty.
func (c *chunks) syncFiles(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(8)
	for i := c.dirty.NextSet(0); i < c.dirty.Len() && ctx.Err() == nil; i = c.dirty.NextSet(i + 1) {
		g.Go(func() error {
			c.dirty.Clear(i)
			h, err := c.useStored(ctx, i)
			if err != nil {
				c.dirty.Set(i)
				return err
			}
			if h == nil {
				return nil // deleted since
			}
			c.files.setUnsynced(h, false)
			err = errors.Join(disk.Datasync(h.f), c.files.done(h))
			if err != nil {
				c.failed.CompareAndSwap(nil, &err)
			}
			return err
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

func (c *chunks) syncDirs(ctx context.Context) error {
	for k := c.dirs.NextSet(0); k < c.dirs.Len(); k = c.dirs.NextSet(k + 1) {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.dirs.Clear(k)
		if err := disk.SyncDir(c.dir(k * perDir)); err != nil {
			c.failed.CompareAndSwap(nil, &err)
			return err
		}
	}
	if c.rootDirty.Swap(false) {
		if err := disk.SyncDir(c.root); err != nil {
			c.failed.CompareAndSwap(nil, &err)
			return err
		}
	}
	return nil
}

// Close closes the files.
func (c *chunks) Close() error { return c.files.closeAll() }
