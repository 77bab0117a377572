package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/telemap/telemap/internal/linux"
)

// short bounds each probe that waits for something.
const short = 300 * time.Millisecond

func run(ctx context.Context, r *Report) {
	r.Kernel, _, _ = linux.ProbeKernel()
	r.UID = os.Geteuid()
	for name, c := range map[string]int{
		"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
		"CAP_IPC_LOCK": unix.CAP_IPC_LOCK, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_SYS_MODULE": unix.CAP_SYS_MODULE,
	} {
		if has, err := linux.ProbeCapability(c); err == nil && has {
			r.Capabilities = append(r.Capabilities, name)
		}
	}
	slices.Sort(r.Capabilities)
	admin := slices.Contains(r.Capabilities, "CAP_SYS_ADMIN")
	r.add(ctx, "cap-sys-admin", func() Entry {
		switch ids := strings.Fields(setting("/proc/self/uid_map")); {
		case !admin:
			return no("not in effect", "run as root, or give the program CAP_SYS_ADMIN")
		case len(ids) == 3 && ids[2] != "4294967295":
			return no("in effect in a user namespace only", "run outside of it")
		}
		return yes("may mount and attach devices")
	})
	r.fuse(ctx, admin)
	r.userfaultfd(ctx)
	r.dirty(ctx)
	r.block(ctx)
	r.add(ctx, "io_uring", ioUring)
	r.memory(ctx)
	r.process(ctx)
}

func yes(format string, args ...any) Entry {
	return Entry{Available: true, Detail: fmt.Sprintf(format, args...)}
}

func no(detail, hint string) Entry { return Entry{Detail: detail, Hint: hint} }

// setting reads a one-line file of /proc or /sys; "" if it cannot.
func setting(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (r *Report) fuse(ctx context.Context, admin bool) {
	device := linux.ProbeOpen("/dev/fuse")
	var init linux.ProbeFUSE
	protocol, mount, helper := no("only CAP_SYS_ADMIN may ask", ""), no("mount(2) needs CAP_SYS_ADMIN", ""), fusermount()
	if admin && device == nil && ctx.Err() == nil {
		// A superblock that can be made can be mounted.
		var err error
		switch init, err = linux.ProbeFUSEInit(short); {
		case err == nil:
			protocol, mount = yes("version %d.%d", init.Major, init.Minor), yes("mount(2) is permitted")
		case errors.Is(err, unix.ENOSYS): // before Linux 5.2
			protocol, mount = no(err.Error(), ""), yes("not tried, but this process has CAP_SYS_ADMIN")
		default:
			protocol, mount = no(err.Error(), ""), no(err.Error(), "")
		}
	}
	r.add(ctx, "fuse", func() Entry {
		switch {
		case errors.Is(device, fs.ErrNotExist):
			return no("there is no /dev/fuse", "modprobe fuse; in a container, pass it --device /dev/fuse")
		case device != nil:
			return no(fmt.Sprintf("/dev/fuse: %v", device), "allow this user to open /dev/fuse")
		case !mount.Available && !helper.Available:
			return no("/dev/fuse can be opened, but nothing may mount", "install fuse3, which brings fusermount3")
		}
		return yes("/dev/fuse can be opened and mounted")
	})
	r.add(ctx, "fuse/mount", func() Entry { return mount })
	r.add(ctx, "fuse/fusermount", func() Entry { return helper })
	r.add(ctx, "fuse/protocol", func() Entry { return protocol })
	offered := func(flag uint64) (is, known bool) { return init.Flags&flag != 0, init.Major != 0 }
	r.add(ctx, "fuse/large-requests", func() Entry {
		pages := 256 // the kernel's limit before it could be set, FUSE_MAX_MAX_PAGES
		if n, err := strconv.Atoi(setting("/proc/sys/fs/fuse/max_pages_limit")); err == nil {
			pages = n
		}
		if is, known := offered(linux.ProbeFUSEMaxPages); known && !is {
			return no("requests of 32 pages at most", "use Linux 4.20 or later")
		}
		return yes("up to %d KiB", pages*os.Getpagesize()>>10)
	})
	r.add(ctx, "fuse/passthrough", func() Entry {
		switch is, known := offered(linux.ProbeFUSEPassthrough); {
		case !known:
			return no("unknown: only CAP_SYS_ADMIN may ask", "")
		case !is:
			return no("the kernel does not offer it", "use Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH")
		}
		return yes("the kernel offers it; using it needs CAP_SYS_ADMIN")
	})
	r.add(ctx, "fuse/io_uring", func() Entry {
		is, known := offered(linux.ProbeFUSEOverIoUring)
		switch param := setting("/sys/module/fuse/parameters/enable_uring"); {
		case known && is:
			return yes("the kernel offers it")
		case param == "":
			return no("the kernel does not have it", "use Linux 6.14 or later with CONFIG_FUSE_IO_URING")
		case param == "N":
			return no("switched off", "echo Y > /sys/module/fuse/parameters/enable_uring")
		case known:
			return no("the kernel does not offer it", "")
		}
		return no("switched on, but only CAP_SYS_ADMIN may ask whether it is offered", "")
	})
}

func fusermount() Entry {
	for _, name := range []string{"fusermount3", "fusermount"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if os.Geteuid() != 0 && (info.Mode()&fs.ModeSetuid == 0 || !ok || owner.Uid != 0) {
			return no(path+" is not setuid root", "chown root "+path+" && chmod u+s "+path)
		}
		if os.Geteuid() != 0 && noNewPrivs() {
			return no(path+" gains no rights here: no_new_privs is set", "allow privilege escalation in the container's settings")
		}
		return yes("%s", path)
	}
	return no("not installed", "apt-get install fuse3")
}

// noNewPrivs reports whether setuid programs gain nothing when this process
// starts them.
func noNewPrivs() bool {
	for line := range strings.Lines(setting("/proc/self/status")) {
		if v, ok := strings.CutPrefix(line, "NoNewPrivs:"); ok {
			return strings.TrimSpace(v) == "1"
		}
	}
	return false
}

func (r *Report) userfaultfd(ctx context.Context) {
	const hint = "sysctl vm.unprivileged_userfaultfd=1, or let this user open /dev/userfaultfd"
	var how string
	var has uint64
	r.add(ctx, "userfaultfd", func() Entry {
		fd, h, err := linux.ProbeUffdOpen()
		switch {
		case errors.Is(err, unix.ENOSYS):
			return no("the kernel does not have it", "use a kernel with CONFIG_USERFAULTFD")
		case err != nil:
			return no(err.Error(), hint+"; in a container, its seccomp profile must allow it")
		}
		defer unix.Close(fd)
		if has, err = linux.ProbeUffdEnable(fd, 0); err != nil {
			return no(fmt.Sprintf("UFFDIO_API: %v", err), "")
		}
		how = h
		return yes("by %s; vm.unprivileged_userfaultfd=%s", how, setting("/proc/sys/vm/unprivileged_userfaultfd"))
	})
	r.add(ctx, "userfaultfd/any-fault", func() Entry {
		switch how {
		case "":
			return no("no userfaultfd", "")
		case linux.ProbeUffdUserOnly:
			return no("faults of system calls are not served", hint)
		}
		return yes("faults of user mode and of system calls")
	})
	for bit, name := range linux.ProbeUffdFeatures {
		r.add(ctx, "userfaultfd/"+name, func() Entry {
			switch {
			case how == "":
				return no("no userfaultfd", "")
			case has&(1<<bit) == 0:
				return no("the kernel does not have it", "use a later kernel")
			}
			fd, _, err := linux.ProbeUffdOpen()
			if err != nil {
				return no(err.Error(), "")
			}
			defer unix.Close(fd)
			if _, err := linux.ProbeUffdEnable(fd, 1<<bit); err != nil {
				e := no(fmt.Sprintf("cannot be enabled: %v", err), "")
				if errors.Is(err, unix.EPERM) {
					e.Hint = "run with CAP_SYS_PTRACE"
				}
				return e
			}
			return yes("")
		})
	}
	if newer := bits.Len64(has) - len(linux.ProbeUffdFeatures); newer > 0 {
		r.add(ctx, "userfaultfd/newer", func() Entry { return yes("features unknown to this telemap: %#x", has) })
	}
}

func (r *Report) dirty(ctx context.Context) {
	r.add(ctx, "pagemap-scan", func() Entry {
		if err := linux.ProbePagemapScan(); err != nil {
			return no(err.Error(), "use Linux 6.7 or later")
		}
		return yes("PAGEMAP_SCAN finds a page")
	})
	r.add(ctx, "dirty-tracking", func() Entry {
		if err := linux.ProbeDirtyTracking(); err != nil {
			return no(err.Error(), "use Linux 6.7 or later, with userfaultfd permitted")
		}
		return yes("asynchronous write-protection and PAGEMAP_SCAN find a written page")
	})
	r.add(ctx, "soft-dirty", func() Entry {
		is, err := linux.ProbeSoftDirty()
		switch {
		case err != nil:
			return no(err.Error(), "")
		case !is:
			return no("a page reads as clean after a write to it", "telemap does without; it needs CONFIG_MEM_SOFT_DIRTY")
		}
		return yes("a written page reads as dirty; telemap does without")
	})
}

func (r *Report) block(ctx context.Context) {
	device := func(path, module, hint string) (Entry, bool) {
		err := linux.ProbeOpen(path)
		switch _, loadable := linux.ProbeModule(module); {
		case err == nil:
			return Entry{}, true
		case !errors.Is(err, fs.ErrNotExist):
			return no(fmt.Sprintf("%s: %v", path, err), "run as root, or allow this user to open it"), false
		case loadable:
			return no("its module is not loaded", "modprobe "+module), false
		}
		return no("the kernel does not have it", hint), false
	}
	r.add(ctx, "ublk", func() Entry {
		e, ok := device("/dev/ublk-control", "ublk_drv", "use Linux 6.0 or later with CONFIG_BLK_DEV_UBLK")
		if ok {
			return yes("/dev/ublk-control can be opened")
		}
		return e
	})
	r.add(ctx, "nbd", func() Entry {
		_, err := os.Stat("/sys/block/nbd0")
		loaded, loadable := linux.ProbeModule("nbd")
		switch {
		case err != nil && !loaded && loadable:
			return no("its module is not loaded", "modprobe nbd")
		case err != nil && !loaded:
			return no("the kernel does not have it", "use a kernel with CONFIG_BLK_DEV_NBD")
		}
		// With the module there the question cannot load it.
		if _, err := linux.ProbeNetlinkFamily("nbd", short); err != nil {
			return no(fmt.Sprintf("netlink family nbd: %v", err), "use Linux 4.12 or later")
		}
		devices, _ := filepath.Glob("/sys/block/nbd*")
		return yes("netlink family nbd, %d devices", len(devices))
	})
	r.add(ctx, "loop", func() Entry {
		e, ok := device("/dev/loop-control", "loop", "use a kernel with CONFIG_BLK_DEV_LOOP")
		if !ok {
			return e
		}
		devices, _ := filepath.Glob("/sys/block/loop*")
		for _, d := range devices {
			if _, err := os.Stat(d + "/loop/backing_file"); errors.Is(err, fs.ErrNotExist) {
				path := "/dev/" + filepath.Base(d)
				if err := linux.ProbeOpen(path); err != nil {
					return no(fmt.Sprintf("%s: %v", path, err), "run as root, or allow this user to open it")
				}
				return yes("%s is free", path)
			}
		}
		return yes("no device is free, one can be added")
	})
}

func ioUring() Entry {
	features, err := linux.ProbeIoUring()
	switch off := setting("/proc/sys/kernel/io_uring_disabled"); {
	case err == nil:
		return yes("io_uring_setup works, features %#x", features)
	case errors.Is(err, unix.ENOSYS):
		return no("the kernel does not have it, or hides it", "in a container, its seccomp profile must allow io_uring_setup")
	case off != "" && off != "0":
		return no("kernel.io_uring_disabled="+off, "sysctl kernel.io_uring_disabled=0")
	}
	return no(fmt.Sprintf("io_uring_setup: %v", err), "in a container, its seccomp profile must allow it")
}

func (r *Report) memory(ctx context.Context) {
	r.add(ctx, "memfd", func() Entry {
		if err := linux.ProbeMemfd(); err != nil {
			return no(err.Error(), "use a kernel with CONFIG_MEMFD_CREATE")
		}
		return yes("")
	})
	r.add(ctx, "huge-pages/transparent", func() Entry {
		modes := setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
		_, rest, _ := strings.Cut(modes, "[")
		mode, _, _ := strings.Cut(rest, "]")
		switch mode {
		case "always", "within_size", "advise", "force":
			return yes("shmem_enabled is %s", mode)
		case "":
			return no("the kernel does not have them", "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE")
		}
		return no("shmem_enabled is "+mode, "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled")
	})
	r.add(ctx, "huge-pages/reserved", func() Entry {
		sizes, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
		if len(sizes) == 0 {
			return no("the kernel does not have them", "use a kernel with CONFIG_HUGETLBFS")
		}
		var found []string
		for _, d := range sizes {
			size := strings.TrimPrefix(filepath.Base(d), "hugepages-")
			found = append(found, fmt.Sprintf("%s: %s free of %s", size, setting(d+"/free_hugepages"), setting(d+"/nr_hugepages")))
		}
		detail := strings.Join(found, ", ")
		size := defaultHugePage()
		if size == 0 {
			return no(detail, "")
		}
		if err := linux.ProbeHugeMemfd(size); err != nil {
			return no(fmt.Sprintf("%s; memfd with MFD_HUGETLB: %v", detail, err), "sysctl vm.nr_hugepages=N")
		}
		return yes("%s; a memfd can be mapped", detail)
	})
}

// defaultHugePage is the size in bytes of what MFD_HUGETLB gives.
func defaultHugePage() int {
	for line := range strings.Lines(setting("/proc/meminfo")) {
		if v, ok := strings.CutPrefix(line, "Hugepagesize:"); ok {
			kb, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			return kb << 10
		}
	}
	return 0
}

func (r *Report) process(ctx context.Context) {
	r.add(ctx, "user-namespaces", func() Entry { return userNamespaces(ctx) })
	r.add(ctx, "limit/locked-memory", func() Entry {
		soft, hard, err := linux.ProbeLimit(unix.RLIMIT_MEMLOCK)
		if err != nil {
			return no(err.Error(), "")
		}
		e := Entry{Available: soft > 64<<10, Detail: fmt.Sprintf("%s, at most %s", size(soft), size(hard))}
		if !e.Available {
			e.Hint = "ulimit -l"
		}
		return e
	})
	r.add(ctx, "limit/open-files", func() Entry {
		soft, hard, err := linux.ProbeLimit(unix.RLIMIT_NOFILE)
		if err != nil {
			return no(err.Error(), "")
		}
		e := Entry{Available: soft >= 1024, Detail: fmt.Sprintf("%d, at most %d", soft, hard)}
		if !e.Available {
			e.Hint = "ulimit -n 1024"
		}
		return e
	})
	r.add(ctx, "cgroup", cgroup)
}

func size(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// userNamespaces starts a program that does nothing in a namespace of its own.
func userNamespaces(ctx context.Context) Entry {
	var limits []string
	for _, name := range []string{
		"user/max_user_namespaces", "kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns",
	} {
		if v := setting("/proc/sys/" + name); v != "" {
			limits = append(limits, strings.ReplaceAll(name, "/", ".")+"="+v)
		}
	}
	detail := strings.Join(limits, ", ")
	path, err := exec.LookPath("true")
	if err != nil {
		return no("not tried, there is no program to try it with: "+detail, "")
	}
	ctx, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	c := exec.CommandContext(ctx, path)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	if err := c.Run(); err != nil {
		return no(fmt.Sprintf("%v; %s", err, detail), "telemap does without; see the settings named")
	}
	return yes("%s", detail)
}

// cgroup finds the group of this process and its limit of memory, in either
// version of the interface.
func cgroup() Entry {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return no(err.Error(), "")
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case slices.Contains(strings.Split(f[1], ","), "memory"):
			return yes("version 1, memory group %s, limit %s", f[2], limit(setting("/sys/fs/cgroup/memory"+f[2]+"/memory.limit_in_bytes")))
		case f[1] == "" && setting("/sys/fs/cgroup/cgroup.controllers") != "":
			return yes("version 2, group %s, memory limit %s", f[2], limit(setting("/sys/fs/cgroup"+f[2]+"/memory.max")))
		}
	}
	return no("no memory controller", "")
}

// limit reads a cgroup's limit of memory; version 1 writes none as 2^63 less a page.
func limit(s string) string {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case s == "":
		return "unknown"
	case err != nil || n > 1<<62:
		return "none"
	}
	return size(n)
}
