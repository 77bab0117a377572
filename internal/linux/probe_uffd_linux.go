package linux

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a userfaultfd descriptor was had, best first.
const (
	ProbeUffdSyscall  = "system call"
	ProbeUffdDevice   = "/dev/userfaultfd"
	ProbeUffdUserOnly = "system call, faults of user mode only"
)

// Numbers of linux/userfaultfd.h, the same on amd64 and arm64.
const (
	probeUffdNew          = 0xAA00     // USERFAULTFD_IOC_NEW
	probeUffdAPI          = 0xC018AA3F // UFFDIO_API
	probeUffdRegister     = 0xC020AA00 // UFFDIO_REGISTER
	probeUffdWriteProtect = 0xC018AA06 // UFFDIO_WRITEPROTECT
	probeUffdUserModeOnly = 1          // UFFD_USER_MODE_ONLY
	probeUffdModeWP       = 2          // UFFDIO_REGISTER_MODE_WP
	probeUffdDoWP         = 1          // UFFDIO_WRITEPROTECT_MODE_WP
)

// ProbeUffdFeatures names the bits of uffdio_api.features; see ioctl_userfaultfd(2).
var ProbeUffdFeatures = []string{
	"PAGEFAULT_FLAG_WP", "EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE", "MISSING_HUGETLBFS", "MISSING_SHMEM",
	"EVENT_UNMAP", "SIGBUS", "THREAD_ID", "MINOR_HUGETLBFS", "MINOR_SHMEM", "EXACT_ADDRESS",
	"WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "POISON", "WP_ASYNC", "MOVE",
}

// Bits that ProbeDirtyTracking asks for.
const (
	probeWPShmem = 1 << 12
	probeWPAsync = 1 << 15
)

// ProbeUffdOpen opens a userfaultfd and says how. Without rights the kernel
// grants one that serves only faults of user mode.
func ProbeUffdOpen() (fd int, how string, err error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	if fd, err = probeUffd(flags); err == nil {
		return fd, ProbeUffdSyscall, nil
	}
	if errors.Is(err, unix.ENOSYS) {
		return -1, "", err
	}
	if dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(dev)
		if fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), probeUffdNew, flags); errno == 0 {
			return int(fd), ProbeUffdDevice, nil
		}
	}
	if fd, err := probeUffd(flags | probeUffdUserModeOnly); err == nil {
		return fd, ProbeUffdUserOnly, nil
	}
	return -1, "", err
}

func probeUffd(flags uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// ProbeUffdEnable tells a fresh descriptor which features will be used, and
// returns all that the kernel has.
func ProbeUffdEnable(fd int, features uint64) (has uint64, err error) {
	api := struct{ api, features, ioctls uint64 }{api: 0xAA, features: features}
	err = probeIoctl(fd, probeUffdAPI, unsafe.Pointer(&api))
	return api.features, err
}

func probeIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// probePages maps n pages: anonymous ones, or shared ones of a memfd.
func probePages(n int, shared bool) ([]byte, error) {
	size := n * os.Getpagesize()
	if !shared {
		return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	}
	fd, err := unix.MemfdCreate("telemap-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// probeTouch writes to a page by a system call, which fails where a plain store
// could stop this process for ever.
func probeTouch(page []byte) error {
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(zero)
	if n, err := unix.Read(zero, page[:1]); err != nil || n != 1 {
		return fmt.Errorf("write to a page: %d bytes, %w", n, err)
	}
	return nil
}

// Numbers of linux/fs.h since 6.7.
const (
	probePagemapScan = 0xC0606610 // PAGEMAP_SCAN
	probeIsWritten   = 1 << 1     // PAGE_IS_WRITTEN
	probeIsPresent   = 1 << 3     // PAGE_IS_PRESENT
)

// probeScan finds the pages of mem that have a category: the first run of them,
// counted in pages.
func probeScan(mem []byte, category uint64) (first, n int, err error) {
	f, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(f)
	found := new([4]struct{ start, end, categories uint64 })
	var pin runtime.Pinner // the kernel gets its address as a number
	pin.Pin(found)
	defer pin.Unpin()
	start := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	arg := struct {
		size, flags, start, end, walkEnd, vec, vecLen, maxPages   uint64
		inverted, categoryMask, categoryAnyOfMask, returnCategory uint64
	}{
		size: 96, start: start, end: start + uint64(len(mem)),
		vec: uint64(uintptr(unsafe.Pointer(found))), vecLen: uint64(len(found)),
		categoryMask: category, returnCategory: category,
	}
	runs, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f), probePagemapScan, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return 0, 0, errno
	}
	if runs == 0 {
		return 0, 0, nil
	}
	page := uint64(os.Getpagesize())
	return int((found[0].start - start) / page), int((found[0].end - found[0].start) / page), nil
}

// ProbePagemapScan tries the ioctl PAGEMAP_SCAN on a small mapping with one page
// in it.
func ProbePagemapScan() error {
	mem, err := probePages(8, false)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	if err := probeTouch(mem[3*os.Getpagesize():]); err != nil {
		return err
	}
	first, n, err := probeScan(mem, probeIsPresent)
	if err != nil {
		return err
	}
	if first != 3 || n != 1 {
		return fmt.Errorf("page 3 of 8 is present, PAGEMAP_SCAN finds %d from %d", n, first)
	}
	return nil
}

// ProbeDirtyTracking tries what finds written pages: it write-protects a small
// mapping of a memfd asynchronously, writes to one page, and looks for it with
// PAGEMAP_SCAN.
func ProbeDirtyTracking() error {
	fd, err := probeUffd(unix.O_CLOEXEC | unix.O_NONBLOCK | probeUffdUserModeOnly)
	if err != nil {
		return fmt.Errorf("userfaultfd: %w", err)
	}
	defer unix.Close(fd)
	if _, err := ProbeUffdEnable(fd, probeWPShmem|probeWPAsync); err != nil {
		return fmt.Errorf("UFFDIO_API with WP_ASYNC: %w", err)
	}
	mem, err := probePages(8, true)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	type span struct{ start, len uint64 }
	whole := span{uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))), uint64(len(mem))}
	register := struct {
		span
		mode, ioctls uint64
	}{span: whole, mode: probeUffdModeWP}
	if err := probeIoctl(fd, probeUffdRegister, unsafe.Pointer(&register)); err != nil {
		return fmt.Errorf("UFFDIO_REGISTER: %w", err)
	}
	protect := struct {
		span
		mode uint64
	}{span: whole, mode: probeUffdDoWP}
	if err := probeIoctl(fd, probeUffdWriteProtect, unsafe.Pointer(&protect)); err != nil {
		return fmt.Errorf("UFFDIO_WRITEPROTECT: %w", err)
	}
	if err := probeTouch(mem[5*os.Getpagesize():]); err != nil {
		return err
	}
	first, n, err := probeScan(mem, probeIsWritten)
	if err != nil {
		return fmt.Errorf("PAGEMAP_SCAN: %w", err)
	}
	if first != 5 || n != 1 {
		return fmt.Errorf("page 5 of 8 was written, PAGEMAP_SCAN finds %d from %d", n, first)
	}
	return nil
}

// ProbeSoftDirty writes to a page and looks whether its soft-dirty bit is set. A
// kernel without CONFIG_MEM_SOFT_DIRTY takes every request and always says clean.
func ProbeSoftDirty() (bool, error) {
	mem, err := probePages(1, false)
	if err != nil {
		return false, err
	}
	defer unix.Munmap(mem)
	if err := probeTouch(mem); err != nil {
		return false, err
	}
	f, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(f)
	var entry uint64
	at := int64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) / int64(os.Getpagesize()) * 8
	if n, err := unix.Pread(f, unsafe.Slice((*byte)(unsafe.Pointer(&entry)), 8), at); err != nil || n != 8 {
		return false, fmt.Errorf("read /proc/self/pagemap: %d bytes, %w", n, err)
	}
	return entry&(1<<55) != 0, nil
}
