package dir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/telemap/telemap/backend/internal/disk"
	"github.com/telemap/telemap/region"
)

const (
	manifestName = "manifest.json"
	chunksName   = "chunks"
	tempPrefix   = ".manifest-"

	manifestFormat  = "telemap directory"
	manifestVersion = 1
	maxManifest     = 64 << 10

	// maxChunks bounds the memory for a bit per chunk to 128 MiB.
	maxChunks = 1 << 30
)

// manifest is what manifest.json holds. Fields unknown to this version are
// ignored; what must not be ignored comes with another version.
type manifest struct {
	Format    string `json:"format"`
	Version   int    `json:"version"`
	Size      int64  `json:"size"`
	ChunkSize int64  `json:"chunk_size"`
}

// geometry checks the numbers, which may come from anywhere.
func (m manifest) geometry() (region.Geometry, error) {
	g, err := region.NewGeometry(m.Size, m.ChunkSize)
	if err != nil {
		return g, err
	}
	if g.Chunks() > maxChunks {
		return g, fmt.Errorf("%d bytes are %d chunks of %d bytes, above %d: choose larger chunks", m.Size, g.Chunks(), g.ChunkSize(), maxChunks)
	}
	return g, nil
}

// decode reads a manifest.
func decode(b []byte) (manifest, region.Geometry, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return manifest{}, region.Geometry{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	switch {
	case m.Format != manifestFormat:
		return manifest{}, region.Geometry{}, fmt.Errorf("%s: format is %q, not %q", manifestName, m.Format, manifestFormat)
	case m.Version != manifestVersion:
		return manifest{}, region.Geometry{}, fmt.Errorf("%s: version is %d, and this telemap knows %d: use one that matches", manifestName, m.Version, manifestVersion)
	case m.ChunkSize == 0:
		return manifest{}, region.Geometry{}, fmt.Errorf("%s: chunk size is missing", manifestName)
	}
	g, err := m.geometry()
	if err != nil {
		return manifest{}, region.Geometry{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	return m, g, nil
}

// encode is the inverse of decode.
func encode(m manifest) ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// load reads the manifest of the directory at path. It is fs.ErrNotExist if
// there is none.
func load(path string) (manifest, region.Geometry, error) {
	f, err := os.Open(filepath.Join(path, manifestName))
	if err != nil {
		return manifest{}, region.Geometry{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return manifest{}, region.Geometry{}, err
	}
	return decode(b)
}

// create makes path a directory with manifest m. Whatever instant the process
// dies at, there is either no manifest or a whole one.
func create(path string, m manifest) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), tempPrefix): // of a create that crashed
			if err := os.Remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		case e.Name() == "lost+found", e.Name() == chunksName && isEmpty(filepath.Join(path, chunksName)):
		default:
			return fmt.Errorf("it holds %q but no %s: choose an empty directory", e.Name(), manifestName)
		}
	}
	if err := os.Mkdir(filepath.Join(path, chunksName), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	b, err := encode(m)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(path, tempPrefix) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(path, manifestName)); err != nil {
		return err
	}
	return errors.Join(disk.SyncDir(path), disk.SyncDir(filepath.Dir(path)))
}

func isEmpty(path string) bool {
	entries, err := os.ReadDir(path)
	return err == nil && len(entries) == 0
}
