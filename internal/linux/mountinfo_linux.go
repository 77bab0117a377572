package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Mount is one line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
type Mount struct {
	ID, Parent   int
	Major, Minor uint32
	Point        string // where it is mounted, seen from this process' root
	Type, Source string // such as "fuse.telemap" and "telemap"
}

// Mounts lists the mounts that this process sees.
func Mounts() ([]Mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []Mount
	for line := range strings.Lines(string(b)) {
		m, err := parseMount(line)
		if err != nil {
			return nil, fmt.Errorf("read /proc/self/mountinfo: %w", err)
		}
		all = append(all, m)
	}
	return all, nil
}

// MountAt is the mount that a path lookup of point ends in, if point is a mount
// point at all. Point is absolute and without symbolic links.
func MountAt(point string) (Mount, bool, error) {
	all, err := Mounts()
	if err != nil {
		return Mount{}, false, err
	}
	covered := map[int]bool{}
	for _, m := range all {
		if m.Point == point {
			covered[m.Parent] = true
		}
	}
	for _, m := range all {
		// Of mounts stacked on one point the last to come is nobody's parent there.
		if m.Point == point && !covered[m.ID] {
			return m, true, nil
		}
	}
	return Mount{}, false, nil
}

func parseMount(line string) (Mount, error) {
	head, tail, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	h, t := strings.Split(head, " "), strings.Split(tail, " ")
	if !ok || len(h) < 6 || len(t) < 2 {
		return Mount{}, fmt.Errorf("line of unknown form: %q", line)
	}
	var m Mount
	if _, err := fmt.Sscanf(h[0]+" "+h[1]+" "+h[2], "%d %d %d:%d", &m.ID, &m.Parent, &m.Major, &m.Minor); err != nil {
		return Mount{}, fmt.Errorf("line of unknown form: %q", line)
	}
	m.Point, m.Type, m.Source = unescape(h[4]), unescape(t[0]), unescape(t[1])
	return m, nil
}

// unescape undoes the \ooo that the kernel writes for blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, `\`)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		if len(after) >= 3 {
			if c, err := strconv.ParseUint(after[:3], 8, 8); err == nil {
				b.WriteByte(byte(c))
				s = after[3:]
				continue
			}
		}
		b.WriteByte('\\')
		s = after
	}
}

// Device is the device number of the file system that path is on. It asks only
// the kernel, never the server of a FUSE file system.
func Device(path string) (major, minor uint32, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path,
		unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return st.Dev_major, st.Dev_minor, err
}

// SetReadAhead sets how many bytes the kernel reads ahead on the file system
// with that device number. It needs root.
func SetReadAhead(major, minor uint32, bytes int64) error {
	name := filepath.Join("/sys/class/bdi", fmt.Sprintf("%d:%d", major, minor), "read_ahead_kb")
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.FormatInt(bytes>>10, 10))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
