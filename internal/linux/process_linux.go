package linux

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dying reports whether the thread is gone or has been killed and cannot run
// again. A thread that cannot be looked at counts as dying.
func Dying(tid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return true
	}
	for line := range bytes.Lines(status) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":\t"))
		switch string(key) {
		case "State":
			if len(value) > 0 && (value[0] == 'Z' || value[0] == 'X') {
				return true
			}
		// The kernel turns every fatal signal into SIGKILL for each thread.
		case "SigPnd", "ShdPnd":
			set, err := strconv.ParseUint(string(value), 16, 64)
			if err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

// Users lists the processes that have path open or mapped, as far as this
// process may see. Device is that of the file system.
func Users(path string, major, minor uint32) []int {
	var pids []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	device := fmt.Sprintf("%02x:%02x", major, minor)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && (hasOpen(pid, path) || hasMapped(pid, device)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func hasOpen(pid int, path string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		// The name of what is open; a stat would ask the server.
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && target == path {
			return true
		}
	}
	return false
}

func hasMapped(pid int, device string) bool {
	maps, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(maps)) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == device {
			return true
		}
	}
	return false
}
