package file

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
)

// Errors that callers act on.
var (
	// ErrBusy is returned by Open if a file system is mounted at the path, and by
	// Close if the file is in use; see [BusyError].
	ErrBusy = errors.New("in use")
	// ErrUnmounted is what Err returns when somebody else has unmounted the file.
	ErrUnmounted = errors.New("unmounted from outside")
	// ErrAborted is returned if users of the file were cut off: what they had
	// written through mappings and not synced is lost.
	ErrAborted = errors.New("connection was cut while in use")
)

// DefaultName is what the file is called inside a directory.
const DefaultName = "region"

// Options tune a view. The zero value is a good start.
type Options struct {
	// Name is the file's name if the path is a directory. It has no slash. Empty
	// means DefaultName.
	Name string
	// ReadOnly makes every attempt to write fail with EROFS.
	ReadOnly bool
	// Mode is the permission bits of the file. Zero means 0644. A read-only file
	// has none for writing.
	Mode fs.FileMode
	// AllowOther lets processes of other users in as far as Mode allows. Without
	// root it needs user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Direct keeps read(2) and write(2) out of the kernel's page cache, so that
	// bytes which other views wrote are seen at once. It is faster for large reads
	// of data that is read once, and slower for all others.
	Direct bool
	// ReadAhead is how many bytes the kernel reads ahead of a sequential reader, and
	// around the first touches of a mapping, in requests of up to 1 MiB. Zero means
	// 2 MiB, where sequential reading is fastest (BenchmarkReadAhead). A mapping that
	// is touched at random, such as the memory of a virtual machine, waits less with
	// 128 KiB. Without root the kernel allows no more than that.
	ReadAhead int64
	// Logger is told of failures and of stale mounts. Nil discards.
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Name == "." || o.Name == ".." || strings.ContainsAny(o.Name, "/\x00") {
		return o, fmt.Errorf("name %q: a file's name without a slash is needed", o.Name)
	}
	if o.Mode == 0 {
		o.Mode = 0o644
	}
	if o.Mode&^fs.ModePerm != 0 {
		return o, fmt.Errorf("mode %v: only permission bits are allowed", o.Mode)
	}
	if o.ReadOnly {
		o.Mode &^= 0o222
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = 2 << 20
	}
	if o.ReadAhead < 4<<10 {
		return o, fmt.Errorf("read-ahead of %d bytes: at least 4096 are needed", o.ReadAhead)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// BusyError says who keeps a view from closing. It is an [ErrBusy].
type BusyError struct {
	Path string
	// PIDs are the processes that have the file open or mapped, as far as they can
	// be seen. None are seen if the kernel uses the file, as for a loop device.
	PIDs []int
}

func (e *BusyError) Error() string {
	who := "no process in sight; perhaps by a loop device"
	if len(e.PIDs) > 0 {
		who = "by process " + strings.Trim(strings.ReplaceAll(fmt.Sprint(e.PIDs), " ", ", "), "[]")
	}
	return fmt.Sprintf("unmount %s: still in use, %s: close the file there and try again, or detach it", e.Path, who)
}

func (e *BusyError) Unwrap() error { return ErrBusy }

// Stats counts what a view has done since it was opened.
type Stats struct {
	// Reads, Writes, Syncs and Zeros count requests of the kernel, which differ
	// from those of programs: it caches, reads ahead and joins.
	Reads, Writes, Syncs, Zeros int64
	// ReadBytes and WrittenBytes went through those requests, without errors.
	ReadBytes, WrittenBytes int64
	// Viewed counts the reads answered from the source's own memory.
	Viewed int64
	// ReadErrors, WriteErrors, SyncErrors and ZeroErrors count requests that
	// failed, Interrupts those that a signal ended.
	ReadErrors, WriteErrors, SyncErrors, ZeroErrors, Interrupts int64
	// Panics counts requests in which the source panicked.
	Panics int64
	// Opens counts open(2) calls and Open the files open now; one that is mapped
	// stays open.
	Opens, Open int64
}
