package disk

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/telemap/telemap/backend"
)

func TestErr(t *testing.T) {
	for _, c := range []struct{ in, want error }{
		{syscall.ENOSPC, backend.ErrNoSpace},
		{&fs.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, backend.ErrNoSpace},
		{syscall.EROFS, backend.ErrReadOnly},
		{io.EOF, io.EOF},
		{nil, nil},
	} {
		if got := Err(c.in); !errors.Is(got, c.want) || !errors.Is(got, c.in) {
			t.Errorf("Err(%v) = %v; want both %v and %v", c.in, got, c.want, c.in)
		}
	}
}

func TestSync(t *testing.T) {
	dir := t.TempDir()
	if err := SyncDir(dir); err != nil {
		t.Errorf("SyncDir = %v", err)
	}
	if err := SyncDir(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncDir of a missing directory = %v; want %v", err, fs.ErrNotExist)
	}
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Datasync(f); err != nil {
		t.Errorf("Datasync = %v", err)
	}
	f.Close()
	if err := Datasync(f); err == nil {
		t.Error("Datasync of a closed file = nil")
	}
}
