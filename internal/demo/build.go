package demo

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// build fills the model and the server's file with real bytes.
func (d *demo) build(ctx context.Context, path string) error {
	size := d.o.Size
	var whole []byte
	var err error
	switch {
	case d.o.Input != "":
		if whole, err = os.ReadFile(d.o.Input); err != nil {
			return err
		}
		if size == 0 {
			size = int64(len(whole))
		}
		if size == 0 {
			return errors.New("the input is empty")
		}
	default:
		if size == 0 {
			size = defaultSize
		}
		if whole, err = goTree(ctx, size); err != nil || len(whole) == 0 {
			if whole, err = os.ReadFile(d.o.Program); err != nil {
				return err
			}
		}
	}
	d.model = make([]byte, size)
	for n := copy(d.model, whole); n < len(d.model) && len(whole) > 0; {
		n += copy(d.model[n:], whole)
	}
	return os.WriteFile(path, d.model, 0o600)
}

// goTree is the files of the Go installation one after the other, up to size
// bytes.
func goTree(ctx context.Context, size int64) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	var all []byte
	root := strings.TrimSpace(string(out))
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, size-int64(len(all))))
		all = append(all, b...)
		if err == nil && int64(len(all)) >= size {
			return filepath.SkipAll
		}
		return err
	})
	return all, err
}
