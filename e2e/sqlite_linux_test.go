package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/telemap/telemap/internal/testkit"
)

// A database with a write-ahead log and mapped reads lives on a file system in a
// region. While one process writes, others always read a state that it committed,
// and all of it is there when the region is mounted anew.
func TestSQLite(t *testing.T) {
	needExt4(t)
	sqlite := testkit.NeedProgram(t, "sqlite3", "sqlite3")
	t.Parallel()
	for i, mode := range modes[:3] {
		t.Run(mode.name, func(t *testing.T) {
			if i > 0 {
				slow(t)
			}
			t.Parallel()
			s := serve(t, emptyFile(t, 48<<20))
			m := mount(t, s.url, mountPath(t), mode.flags(t)...)
			run(t, "mkfs.ext4", "-q", "-F", m.path)
			l := attach(t, m.path)
			db := database{t: t, sqlite: sqlite, file: filepath.Join(l.dir, "test.db")}

			// Every transaction moves an amount between accounts and makes an entry.
			db.do("CREATE TABLE account(id INTEGER PRIMARY KEY, amount INTEGER, filler BLOB);" +
				"CREATE TABLE entry(id INTEGER PRIMARY KEY, src INTEGER, dst INTEGER, note TEXT);" +
				"CREATE INDEX entry_note ON entry(note);" +
				"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) " +
				"INSERT INTO account SELECT i, 1000, randomblob(600) FROM n;")
			const transactions = 400
			var script strings.Builder
			for n := range transactions {
				src, dst := 1+n*7%2000, 1+n*31%2000
				fmt.Fprintf(&script, "BEGIN IMMEDIATE; UPDATE account SET amount=amount-5, filler=randomblob(600) WHERE id=%d;"+
					"UPDATE account SET amount=amount+5 WHERE id=%d; INSERT INTO entry VALUES(%d,%d,%d,hex(randomblob(200))); COMMIT;\n", src, dst, n, src, dst)
			}
			var group sync.WaitGroup
			written := make(chan struct{})
			group.Go(func() {
				defer close(written)
				db.do(script.String())
			})
			for range 3 {
				group.Go(func() {
					for done := false; !done; {
						select {
						case <-written:
							done = true // and read once more
						default:
						}
						if got := db.do("SELECT sum(amount), count(*) FROM account;"); got != "2000000|2000" {
							t.Errorf("a reader saw the accounts at %s, want 2000000|2000", got)
							return
						}
						if got := db.do("SELECT count(*)-ifnull(max(id)+1,0) FROM entry;"); got != "0" {
							t.Errorf("a reader missed %s entries", got)
							return
						}
					}
				})
			}
			group.Wait()
			if t.Failed() {
				return
			}
			db.check(transactions)
			dump := db.do(".dump")
			l.detach()
			m.unmount()

			m = mount(t, s.url, mountPath(t), mode.flags(t)...)
			run(t, "fsck.ext4", "-f", "-n", m.path)
			l = attach(t, m.path)
			db.file = filepath.Join(l.dir, "test.db")
			db.check(transactions)
			if got := db.do(".dump"); got != dump {
				t.Errorf("mounted anew the database dumps to %d bytes, want the same %d", len(got), len(dump))
			}
			l.detach()
			m.unmount()
		})
	}
}

// A database is a file that sqlite3 opens, one process per call of do.
type database struct {
	t            *testing.T
	sqlite, file string
}

// do runs SQL in a process of its own and returns what it prints. It may be called
// from any goroutine; when it fails so does the test.
func (d *database) do(sql string) string {
	const setup = ".timeout 30000\n.output /dev/null\nPRAGMA journal_mode=WAL;\nPRAGMA mmap_size=268435456;\n.output stdout\n"
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.sqlite, "-batch", "-bail", d.file)
	cmd.Stdin = strings.NewReader(setup + sql + "\n")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.t.Errorf("sqlite3 %.80q: %v: %s", sql, err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func (d *database) check(transactions int) {
	d.t.Helper()
	for sql, want := range map[string]string{
		"PRAGMA journal_mode;":                       "wal",
		"PRAGMA mmap_size;":                          "268435456",
		"PRAGMA integrity_check;":                    "ok",
		"SELECT count(*) FROM entry;":                fmt.Sprint(transactions),
		"SELECT sum(amount), count(*) FROM account;": "2000000|2000",
	} {
		if got := d.do(sql); got != want {
			d.t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
}

// After the mount was killed, which is a power cut for the file system on it, the
// next mount with the same cache has every transaction that was committed.
func TestSQLiteSurvivesAKilledMount(t *testing.T) {
	needExt4(t)
	sqlite := testkit.NeedProgram(t, "sqlite3", "sqlite3")
	slow(t)
	t.Parallel()
	rnd := testkit.Rand(t)
	s := serve(t, emptyFile(t, 24<<20))
	path, cache := mountPath(t), filepath.Join(t.TempDir(), "cache")
	open := func() (*mounted, *loop, *database) {
		m := mount(t, s.url, path, "--cache", cache, "--push-interval", "20ms")
		l := attach(t, m.path)
		return m, l, &database{t: t, sqlite: sqlite, file: filepath.Join(l.dir, "test.db")}
	}
	m := mount(t, s.url, path, "--cache", cache)
	run(t, "mkfs.ext4", "-q", "-F", m.path)
	m.unmount()
	m, l, db := open()
	db.do("CREATE TABLE entry(id INTEGER PRIMARY KEY, note TEXT);")
	committed := 0
	for round := range 5 {
		var script strings.Builder
		script.WriteString("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;\n.output stdout\n")
		for n := range 2000 {
			// A shell's echo, because what sqlite3 prints waits in a buffer.
			fmt.Fprintf(&script, "INSERT INTO entry VALUES(%d, hex(randomblob(500)));\n.shell echo committed\n", committed+n+1)
		}
		cmd := exec.CommandContext(t.Context(), sqlite, "-batch", "-bail", db.file)
		cmd.Stdin = strings.NewReader(script.String())
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		at := committed + 1 + rnd.IntN(60)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() != "committed" {
				continue // the journal mode
			}
			if committed++; committed == at {
				m.kill()
			}
		}
		_ = cmd.Wait() // it fails, as the disk does
		if committed < at {
			t.Fatalf("kill %d: the database took %d transactions and then no more, before the kill at %d", round, committed, at)
		}
		l.detach()

		m, l, db = open() // the file system replays its journal
		n, err := strconv.Atoi(db.do("SELECT count(*) FROM entry;"))
		if err != nil || n < committed || n > committed+1 {
			t.Fatalf("kill %d: the database has %d transactions, %d were committed (%v)", round, n, committed, err)
		}
		committed = n
		if got := db.do("PRAGMA integrity_check;"); got != "ok" {
			t.Fatalf("kill %d: %s", round, got)
		}
	}
	l.detach()
	m.unmount()
	run(t, "fsck.ext4", "-f", "-n", s.backend)
}
