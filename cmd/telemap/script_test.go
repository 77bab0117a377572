package main

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/telemap/telemap/internal/testkit"
)

var update = flag.Bool("update", false, "rewrite the golden texts in the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"telemap": main})
}

// Each script in testdata/script shows one thing that the command does.
func TestScripts(t *testing.T) {
	p := testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(2 * time.Minute),
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "await": await},
		Condition:           condition,
	}
	testscript.Run(t, p)
}

// condition knows [fuse]: a region can be mounted here.
func condition(name string) (bool, error) {
	if name != "fuse" {
		return false, errors.New("unknown condition " + name)
	}
	return haveFUSE(), nil
}

// TestHaveFUSE fails where scripts that mount must not be skipped and would be.
func TestHaveFUSE(t *testing.T) {
	testkit.NeedFUSE(t)
}

func haveFUSE() bool {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	if os.Geteuid() == 0 {
		return true
	}
	_, err = exec.LookPath("fusermount3")
	return err == nil
}

// exits runs a program like exec and wants its exit code: exits CODE PROGRAM ARG...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// await waits for a file, which a program in the background makes: await FILE [TEXT].
// With TEXT the file must contain it.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: await FILE [TEXT]")
	}
	path, text := ts.MkAbs(args[0]), strings.Join(args[1:], " ")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if text == "" {
			if _, err := os.Stat(path); err == nil {
				return
			}
		} else if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), text) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s is not there after 30 seconds", strings.Join(args, " "))
		}
	}
}
