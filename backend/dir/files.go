package dir

import (
	"container/list"
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/telemap/telemap/region"
)

// files keeps some chunk files open. A file in use is never closed: users are
// counted, and only files without any may be closed to make room, the longest
// unused first.
type files struct {
	most int
	// openFile opens the file of a chunk; without create it makes none.
	openFile func(i region.ChunkIndex, create bool) (*os.File, error)
	// evict closes a file to make room. Unsynced says that it was written since
	// it was last synced.
	evict func(f *os.File, unsynced bool)

	// users admits most users at a time. Whoever was admitted finds room: at most
	// most-1 files are in use or being closed by others, and the rest may be
	// closed.
	users *semaphore.Weighted

	mu   sync.Mutex
	open map[region.ChunkIndex]*handle
	idle list.List // of *handle without users, the longest unused first
	n    int       // handles that hold a file or are about to
}

// A handle is an open chunk file.
type handle struct {
	i       region.ChunkIndex
	once    sync.Once
	victim  *handle // what once closes to make room
	f       *os.File
	err     error
	place   *list.Element // in files.idle; guarded by files.mu like those below
	users   int
	dropped bool // no longer in files.open
	// unsynced is whether the file was written since it was last synced.
	unsynced bool
}

func newFiles(most int, open func(region.ChunkIndex, bool) (*os.File, error), evict func(*os.File, bool)) *files {
	return &files{
		most: most, openFile: open, evict: evict,
		users: semaphore.NewWeighted(int64(most)), open: map[region.ChunkIndex]*handle{},
	}
}

// use returns the open file of chunk i, which stays open until done. It waits
// while as many files as may be open are in use.
func (fs *files) use(ctx context.Context, i region.ChunkIndex, create bool) (*handle, error) {
	if err := fs.users.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	for {
		h := fs.enter(i)
		mine := false
		h.once.Do(func() {
			mine = true
			if h.victim != nil {
				fs.evict(h.victim.f, h.victim.unsynced)
				h.victim = nil
			}
			h.f, h.err = fs.openFile(i, create)
		})
		if h.err == nil {
			return h, nil
		}
		err := h.err
		_ = fs.leave(h) // it has no file
		if create && !mine {
			continue // a reader, who does not create, was there first
		}
		fs.users.Release(1)
		return nil, err
	}
}

// done ends what use began.
func (fs *files) done(h *handle) error {
	err := fs.leave(h)
	fs.users.Release(1)
	return err
}

// setUnsynced says that h's file was written, or is about to be synced.
func (fs *files) setUnsynced(h *handle, unsynced bool) {
	fs.mu.Lock()
	h.unsynced = unsynced
	fs.mu.Unlock()
}

// enter counts the caller as a user of chunk i's handle, a new one if need be.
func (fs *files) enter(i region.ChunkIndex) *handle {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	h := fs.open[i]
	if h == nil {
		h = &handle{i: i}
		if fs.n == fs.most {
			h.victim = fs.idle.Front().Value.(*handle)
			fs.dropLocked(h.victim)
			fs.n--
		}
		fs.n++
		fs.open[i] = h
	}
	if h.place != nil {
		fs.idle.Remove(h.place)
		h.place = nil
	}
	h.users++
	return h
}

// leave is the opposite of enter. The last user of a dropped handle closes it.
func (fs *files) leave(h *handle) error {
	fs.mu.Lock()
	h.users--
	if h.err != nil {
		fs.dropLocked(h)
	}
	last := h.users == 0
	if last && !h.dropped {
		h.place = fs.idle.PushBack(h)
		last = false
	}
	fs.mu.Unlock()
	if !last {
		return nil
	}
	return fs.close(h)
}

// close closes a dropped handle without users.
func (fs *files) close(h *handle) error {
	var err error
	if h.f != nil {
		err = h.f.Close()
	}
	fs.mu.Lock()
	fs.n--
	fs.mu.Unlock()
	return err
}

// dropLocked makes sure that nobody else comes to use h.
func (fs *files) dropLocked(h *handle) {
	if h.place != nil {
		fs.idle.Remove(h.place)
		h.place = nil
	}
	if !h.dropped {
		h.dropped = true
		delete(fs.open, h.i)
	}
}

// remove calls rm, which deletes the file of chunk i, and then forgets that
// file; those who use it still read the deleted one. Forgetting it before would
// let somebody open it again.
func (fs *files) remove(ctx context.Context, i region.ChunkIndex, rm func() error) error {
	// A file that is being closed takes a place, for which someone must be admitted.
	if err := fs.users.Acquire(ctx, 1); err != nil {
		return err
	}
	defer fs.users.Release(1)
	if err := rm(); err != nil {
		return err
	}
	fs.mu.Lock()
	h := fs.open[i]
	unused := h != nil && h.users == 0
	if h != nil {
		fs.dropLocked(h)
	}
	fs.mu.Unlock()
	if unused {
		_ = fs.close(h) // nobody needs the bytes that the error would be about
	}
	return nil
}

// closeAll closes all files. None is in use.
func (fs *files) closeAll() error {
	fs.mu.Lock()
	var all []*handle
	for _, h := range fs.open {
		all = append(all, h)
	}
	for _, h := range all {
		fs.dropLocked(h)
	}
	fs.mu.Unlock()
	var errs []error
	for _, h := range all {
		errs = append(errs, fs.close(h))
	}
	return errors.Join(errs...)
}
