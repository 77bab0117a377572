package linux

import (
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMount(t *testing.T) {
	for line, want := range map[string]Mount{
		"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n":       {36, 35, 98, 0, "/mnt2", "ext3", "/dev/root"},
		`41 22 0:45 / /a\040b\134c\011 rw shared:7 master:1 - fuse.telemap telemap rw,user_id=0`: {41, 22, 0, 45, "/a b\\c\t", "fuse.telemap", "telemap"},
		`41 22 0:45 / /odd\9x\ rw - tmpfs  rw`:                                                   {41, 22, 0, 45, `/odd\9x\`, "tmpfs", ""},
	} {
		if got, err := parseMount(line); err != nil || got != want {
			t.Errorf("parseMount(%q) = %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "\n", "a b c - d e", "1 2 x:y / / rw - a b", "1 2 3:4 / / rw", "1 2 3:4 / / rw - a"} {
		if got, err := parseMount(line); err == nil {
			t.Errorf("parseMount(%q) = %+v; want an error", line, got)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`41 22 0:45 / /a\040b rw shared:7 - fuse.telemap telemap rw`)
	f.Fuzz(func(t *testing.T, line string) { _, _ = parseMount(line) })
}

func TestMountAt(t *testing.T) {
	m, ok, err := MountAt("/proc")
	if err != nil || !ok || m.Type != "proc" {
		t.Fatalf("MountAt(/proc) = %+v, %t, %v", m, ok, err)
	}
	major, minor, err := Device("/proc")
	if err != nil || major != m.Major || minor != m.Minor {
		t.Fatalf("Device(/proc) = %d:%d, %v; want %d:%d", major, minor, err, m.Major, m.Minor)
	}
	if m, ok, err := MountAt("/proc/self"); ok || err != nil {
		t.Fatalf("MountAt(/proc/self) = %+v, %t, %v; want none", m, ok, err)
	}
}

func TestDying(t *testing.T) {
	if Dying(os.Getpid()) {
		t.Error("Dying(self) = true")
	}
	if !Dying(math.MaxInt32) {
		t.Error("Dying(no such thread) = false")
	}
}

func TestHung(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	if Hung(p[1]) {
		t.Error("Hung(pipe with a reader) = true")
	}
	unix.Close(p[0])
	if !Hung(p[1]) {
		t.Error("Hung(pipe without a reader) = false")
	}
}

func TestAbortOfNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := AbortFUSE(math.MaxUint32); err != nil {
		t.Errorf("AbortFUSE of no connection: %v", err)
	}
}
