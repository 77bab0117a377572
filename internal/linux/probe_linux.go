package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ProbeKernel is the kernel's release and the machine, as uname(2) has them.
func ProbeKernel() (release, machine string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", err
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), nil
}

// ProbeCapability reports whether this process has a capability in effect, such
// as unix.CAP_SYS_ADMIN.
func ProbeCapability(c int) (bool, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return set&(1<<c) != 0, err
		}
	}
	return false, errors.New("/proc/self/status has no CapEff")
}

// ProbeOpen opens a file for reading and writing and closes it again.
func ProbeOpen(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// A ProbeFUSE is what the kernel offers to a FUSE server when it is mounted.
type ProbeFUSE struct {
	Major, Minor uint32
	Flags        uint64 // FUSE_* of linux/fuse.h
}

// Flags of ProbeFUSE.
const (
	ProbeFUSEMaxPages    = 1 << 22
	ProbeFUSEPassthrough = 1 << 37
	ProbeFUSEOverIoUring = 1 << 41
)

// ProbeFUSEInit reads the kernel's INIT request from a FUSE superblock that is
// never attached to the file tree. It needs CAP_SYS_ADMIN.
func ProbeFUSEInit(timeout time.Duration) (ProbeFUSE, error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return ProbeFUSE{}, fmt.Errorf("open /dev/fuse: %w", err)
	}
	sb, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		unix.Close(dev)
		return ProbeFUSE{}, fmt.Errorf("fsopen: %w", err)
	}
	// The device first: that aborts the connection, so that nothing waits for an
	// answer to INIT when the superblock goes.
	defer unix.Close(sb)
	defer unix.Close(dev)
	for _, o := range [][2]string{
		{"fd", strconv.Itoa(dev)}, {"rootmode", "40000"},
		{"user_id", strconv.Itoa(os.Geteuid())}, {"group_id", strconv.Itoa(os.Getegid())},
	} {
		if err := unix.FsconfigSetString(sb, o[0], o[1]); err != nil {
			return ProbeFUSE{}, fmt.Errorf("fsconfig %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(sb); err != nil {
		return ProbeFUSE{}, fmt.Errorf("create a FUSE superblock: %w", err)
	}
	if n, err := probePoll(dev, timeout); err != nil || n == 0 {
		return ProbeFUSE{}, fmt.Errorf("no INIT request came: %w", errors.Join(err, os.ErrDeadlineExceeded))
	}
	b := make([]byte, 64<<10) // the kernel wants room for its largest request
	n, err := unix.Read(dev, b)
	if err != nil {
		return ProbeFUSE{}, fmt.Errorf("read INIT: %w", err)
	}
	const header, opInit = 40, 26
	ne := binary.NativeEndian
	if n < header+16 || ne.Uint32(b[4:]) != opInit {
		return ProbeFUSE{}, fmt.Errorf("the first request is %d bytes of operation %d, not INIT", n, ne.Uint32(b[4:]))
	}
	in := b[header:n]
	f := ProbeFUSE{Major: ne.Uint32(in), Minor: ne.Uint32(in[4:]), Flags: uint64(ne.Uint32(in[12:]))}
	if len(in) >= 20 {
		f.Flags |= uint64(ne.Uint32(in[16:])) << 32
	}
	return f, nil
}

// probePoll waits until fd can be read.
func probePoll(fd int, timeout time.Duration) (int, error) {
	until := time.Now().Add(timeout)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(until).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// ProbeIoUring sets up an io_uring of one entry and returns its features, the
// IORING_FEAT_* of linux/io_uring.h.
func ProbeIoUring() (features uint32, err error) {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint32(params[20:]), unix.Close(int(fd))
}

// ProbeMemfd maps a sealable memfd of one page, written to.
func ProbeMemfd() error {
	fd, err := unix.MemfdCreate("telemap-probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte("x"), int64(os.Getpagesize()-1)); err != nil {
		return err
	}
	mem, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return unix.Munmap(mem)
}

// ProbeHugeMemfd maps one huge page of the default size, which reserves it, and
// does not touch it.
func ProbeHugeMemfd(size int) error {
	fd, err := unix.MemfdCreate("telemap-probe", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return err
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return unix.Munmap(mem)
}

// ProbeLimit is a soft and a hard limit of this process.
func ProbeLimit(resource int) (soft, hard uint64, err error) {
	var r unix.Rlimit
	err = unix.Getrlimit(resource, &r)
	return r.Cur, r.Max, err
}

// ProbeNetlinkFamily asks for a generic netlink family. The kernel loads the
// module of one it does not know: ask only where that has been done.
func ProbeNetlinkFamily(name string, timeout time.Duration) (id uint16, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ne := binary.NativeEndian
	value := append([]byte(name), 0)
	attr := 4 + len(value)
	m := make([]byte, 16+4+(attr+3)&^3)
	ne.PutUint32(m, uint32(len(m)))
	ne.PutUint16(m[4:], unix.GENL_ID_CTRL)
	ne.PutUint16(m[6:], unix.NLM_F_REQUEST)
	m[16], m[17] = unix.CTRL_CMD_GETFAMILY, 1
	ne.PutUint16(m[20:], uint16(attr))
	ne.PutUint16(m[22:], unix.CTRL_ATTR_FAMILY_NAME)
	copy(m[24:], value)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	if n, err := probePoll(fd, timeout); err != nil || n == 0 {
		return 0, errors.Join(err, os.ErrDeadlineExceeded)
	}
	b := make([]byte, 16<<10)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return 0, err
	}
	b = b[:n]
	if n >= 20 && ne.Uint16(b[4:]) == unix.NLMSG_ERROR {
		return 0, unix.Errno(-int32(ne.Uint32(b[16:])))
	}
	for rest := b[min(n, 20):]; len(rest) >= 4; {
		size := int(ne.Uint16(rest))
		if size < 4 || size > len(rest) {
			break
		}
		if ne.Uint16(rest[2:]) == unix.CTRL_ATTR_FAMILY_ID && size >= 6 {
			return ne.Uint16(rest[4:]), nil
		}
		rest = rest[min(len(rest), (size+3)&^3):]
	}
	return 0, fmt.Errorf("netlink did not describe family %s", name)
}

// ProbeModule reports whether a kernel module is there: built in, loaded, or in
// this kernel's directory of modules.
func ProbeModule(name string) (loaded, loadable bool) {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		return true, true
	}
	release, _, err := ProbeKernel()
	if err != nil {
		return false, false
	}
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		b, err := os.ReadFile("/lib/modules/" + release + "/" + list)
		if err == nil && bytes.Contains(b, []byte("/"+strings.ReplaceAll(name, "-", "_")+".ko")) {
			return list == "modules.builtin", true
		}
	}
	return false, false
}
