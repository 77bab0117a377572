package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/pager"
	"github.com/telemap/telemap/view"
	"github.com/telemap/telemap/view/file"
)

// Options tune a [Mount]. The zero value is a good start.
type Options struct {
	// Name is the region's file name where the path is a directory. Empty means
	// [file.DefaultName].
	Name string

	// Direct puts the view straight on the backend. Pager is ignored but for its
	// hooks BeforeSync and BeforeClose.
	Direct bool

	// ReadOnly refuses writes. It is set if the backend refuses them.
	ReadOnly bool

	// Pager tunes a managed mount. Its ReadOnly and Logger are set from here.
	Pager pager.Options

	// Logger gets warnings about background work. Nil discards them.
	Logger *slog.Logger
}

// A Mount is a region shown as a file. Methods may be called concurrently.
type Mount struct {
	b     backend.Backend
	pager *pager.Pager // nil if direct
	view  *file.View
	hooks pager.Hooks

	mu     sync.Mutex // held through Close and Detach
	closed bool
	err    error // what closing returned
}

// Open mounts b at path. If path is a directory the region appears inside it
// under Options.Name; otherwise exactly there, whether or not the path exists.
// The mount owns b from then on and closes it; if Open fails, b stays the
// caller's. ctx bounds the opening alone.
func Open(ctx context.Context, b backend.Backend, path string, o Options) (*Mount, error) {
	o.ReadOnly = o.ReadOnly || backend.IsReadOnly(b)
	m := &Mount{b: b, hooks: o.Pager.Hooks}
	var src view.Source
	if o.Direct {
		src = direct(b, o.ReadOnly)
	} else {
		po := o.Pager
		po.ReadOnly, po.Logger = o.ReadOnly, o.Logger
		var err error
		if m.pager, err = pager.Open(ctx, b, po); err != nil {
			return nil, err
		}
		src = m.pager
	}
	v, err := file.Open(ctx, src, path, file.Options{Name: o.Name, ReadOnly: o.ReadOnly, Logger: o.Logger})
	if err != nil {
		if m.pager != nil {
			err = errors.Join(err, m.pager.Close(ctx))
		}
		return nil, err
	}
	m.view = v
	return m, nil
}

// Path is the file that programs open.
func (m *Mount) Path() string { return m.view.Path() }

// Size is the region's length in bytes.
func (m *Mount) Size() int64 { return m.b.Size() }

// Pager is the mount's pager; it is nil for a direct mount.
func (m *Mount) Pager() *pager.Pager { return m.pager }

// View is the mount's file view.
func (m *Mount) View() *file.View { return m.view }

// Done is closed when the file is no longer mounted: by Close, or because
// somebody unmounted it. Close is still to be called then.
func (m *Mount) Done() <-chan struct{} { return m.view.Done() }

// Sync returns nil once every write to the file that returned before the call is
// durable in the backend, those that the kernel holds in its page cache included.
func (m *Mount) Sync(ctx context.Context) error {
	if m.pager == nil && m.hooks.BeforeSync != nil {
		if err := m.hooks.BeforeSync(ctx); err != nil {
			return fmt.Errorf("before sync: %w", err)
		}
	}
	select {
	case <-m.view.Done(): // the kernel has handed on all it had
	default:
		return m.view.Sync(ctx)
	}
	if m.pager != nil {
		return m.pager.Sync(ctx)
	}
	return m.b.Sync(ctx)
}

// Close unmounts the file, makes every write durable and closes the backend. If
// programs still use the file it returns [file.ErrBusy] and the mount goes on.
// Otherwise it completes even if it returns an error, such as that of the last
// Sync; calling it again returns the same.
//
// When ctx ends, programs are cut off and what cannot be synced is lost, unless
// the pager has a directory, where it stays for the next mount.
func (m *Mount) Close(ctx context.Context) error { return m.close(ctx, m.view.Close) }

// Detach is Close for a file in use. It syncs and takes the file out of the tree,
// so that nobody new can open it, then waits for the last user until ctx ends.
func (m *Mount) Detach(ctx context.Context) error { return m.close(ctx, m.view.Detach) }

func (m *Mount) close(ctx context.Context, unmount func(context.Context) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return m.err
	}
	err := unmount(ctx)
	if errors.Is(err, file.ErrBusy) {
		return err
	}
	m.closed = true
	errs := []error{err}
	if m.pager != nil {
		errs = append(errs, m.pager.Close(ctx))
	} else {
		if h := m.hooks.BeforeClose; h != nil {
			if err := h(ctx); err != nil {
				errs = append(errs, fmt.Errorf("before close: %w", err))
			}
		}
		errs = append(errs, m.b.Sync(ctx))
	}
	m.err = errors.Join(append(errs, m.b.Close())...)
	return m.err
}
