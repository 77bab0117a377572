package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FUSEMount says how a FUSE file system is mounted; see mount.fuse3(8).
type FUSEMount struct {
	Source   string // shown as the mounted device
	Subtype  string // the file system type is "fuse." and this
	MaxRead  int    // largest READ in bytes
	ReadOnly bool
	// AllowOther lets processes of other users in. Without root it needs
	// user_allow_other in /etc/fuse.conf.
	AllowOther bool
}

// MountFUSE mounts a FUSE file system on path and returns the descriptor of
// /dev/fuse that serves it, closed on exec. The root of the file system is what
// path is: a directory or a regular file. The kernel checks the permission bits.
//
// It calls mount(2) where that is permitted and else the setuid helper
// fusermount3 or fusermount, which ctx bounds.
func MountFUSE(ctx context.Context, path string, o FUSEMount) (int, error) {
	fd, err := mountFUSE(path, o)
	if err == nil || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fd, err
	}
	fd, helperErr := fusermountMount(ctx, path, o)
	if helperErr != nil {
		return -1, fmt.Errorf("%w; and without root: %w", err, helperErr)
	}
	return fd, nil
}

func mountFUSE(path string, o FUSEMount) (int, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return -1, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, st.Mode&unix.S_IFMT, os.Geteuid(), os.Getegid(), o.MaxRead)
	if o.AllowOther {
		data += ",allow_other"
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(o.Source, path, "fuse."+o.Subtype, flags, data); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "mount", Path: path, Err: err}
	}
	return fd, nil
}

// fusermountMount asks the helper to mount. It sends the descriptor over the
// socket whose number it finds in _FUSE_COMMFD.
func fusermountMount(ctx context.Context, path string, o FUSEMount) (int, error) {
	helper, err := fusermount()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	remote := os.NewFile(uintptr(pair[1]), "fusermount")
	defer remote.Close()

	opts := []string{"nosuid", "nodev", "default_permissions",
		"fsname=" + o.Source, "subtype=" + o.Subtype, "max_read=" + strconv.Itoa(o.MaxRead)}
	if o.AllowOther {
		opts = append(opts, "allow_other")
	}
	if o.ReadOnly {
		opts = append(opts, "ro")
	}
	cmd := exec.CommandContext(ctx, helper, "-o", strings.Join(opts, ","), "--", path)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3", "LC_ALL=C")
	cmd.ExtraFiles = []*os.File{remote}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return -1, helperError(helper, err, stderr.String())
	}
	// The helper has exited: what it sent is there, and nothing else comes.
	remote.Close()
	var one [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], one[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("%s sent no descriptor", helper)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%s sent no descriptor", helper)
	}
	return fds[0], nil
}

// UnmountFUSE takes the topmost mount at path away. With detach it does so even
// if the file system is in use, which then lives on until its last user is gone;
// without, that is [unix.EBUSY]. It blocks while the kernel writes unwritten
// pages back.
func UnmountFUSE(path string, detach bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if detach {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(path, flags)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "umount", Path: path, Err: err}
	}
	helper, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", path}
	if detach {
		args = []string{"-u", "-z", "--", path}
	}
	cmd := exec.Command(helper, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if strings.Contains(stderr.String(), "busy") {
			err = unix.EBUSY
		}
		return helperError(helper, err, stderr.String())
	}
	return nil
}

// AbortFUSE cuts the connection of the FUSE file system with that minor device
// number: its server sees ENODEV, and whoever waits for it gets ECONNABORTED.
// It goes through the control file system, for root even where that is not
// mounted. A connection that is no more is not an error.
func AbortFUSE(minor uint32) error {
	const control = "/sys/fs/fuse/connections"
	file := strconv.FormatUint(uint64(minor), 10) + "/abort"
	dir, err := unix.Open(control, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(dir)
		if err = writeAt(dir, file); err == nil {
			return nil
		}
	}
	if !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "abort", Path: control + "/" + file, Err: err}
	}
	// Not there: the connection is gone or the control file system not mounted.
	// A mount of our own that has no place in the tree tells which.
	fsfd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return abortError(err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return abortError(err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return abortError(err)
	}
	defer unix.Close(mnt)
	if err := writeAt(mnt, file); err != nil && !errors.Is(err, unix.ENOENT) {
		return abortError(err)
	}
	return nil
}

func abortError(err error) error {
	return fmt.Errorf("abort a FUSE connection (mount fusectl on /sys/fs/fuse/connections to allow it): %w", err)
}

func writeAt(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("1"))
	return err
}

// Hung reports whether a descriptor has an error or hang-up condition, such as
// /dev/fuse after the file system was unmounted or aborted. It does not block.
func Hung(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount", "/bin/fusermount3", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("neither fusermount3 nor fusermount is in PATH: install fuse3")
}

func helperError(helper string, err error, stderr string) error {
	if text := strings.TrimSpace(stderr); text != "" {
		return fmt.Errorf("%s: %w: %s", helper, err, text)
	}
	return fmt.Errorf("%s: %w", helper, err)
}
