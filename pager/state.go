package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/telemap/telemap/region"
)

// ErrBusy is returned by Open when another pager has the cache directory open.
var ErrBusy = errors.New("in use by another mount")

// ErrForeign is returned by Open when the cache directory holds another region,
// another version's state, or something else altogether. Nothing in it is
// changed then.
var ErrForeign = errors.New("does not belong to this region")

// A cache directory holds two files and a lock. data is the local copy, a sparse file as
// long as the region. state is a header of one page, then one bit per chunk:
// set while the chunk's bytes in data may not be durable in the backend. The
// bits are changed through a shared mapping, so they survive the process. The
// file is allocated in full at the start, so that a full disk cannot raise
// SIGBUS later.
const (
	stateHeader  = 4096
	stateMagic   = "telemap cache\n\x00\x00"
	stateVersion = 1
	stateMaxName = 2048
)

// stateFile is the mapped state file of a cache directory.
type stateFile struct {
	lock  *os.File // held by flock(2) while open
	f     *os.File
	mem   []byte
	dirty *region.Bitmap // on mem
}

// header is what a state file starts with, in this order, little-endian,
// followed by the name and, at the end of the page, the CRC-32C of all before.
type header struct {
	Magic     [16]byte
	Version   uint32
	NameLen   uint32
	Size      int64
	ChunkSize int64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeHeader(name string, g region.Geometry) ([]byte, error) {
	if len(name) > stateMaxName {
		return nil, fmt.Errorf("the region's name has %d bytes, %d are allowed", len(name), stateMaxName)
	}
	h := header{Version: stateVersion, NameLen: uint32(len(name)), Size: g.Size(), ChunkSize: g.ChunkSize()}
	copy(h.Magic[:], stateMagic)
	var buf bytes.Buffer
	if err := binary.Write(&buf, binary.LittleEndian, h); err != nil {
		return nil, err
	}
	buf.WriteString(name)
	page := make([]byte, stateHeader)
	copy(page, buf.Bytes())
	binary.LittleEndian.PutUint32(page[stateHeader-4:], crc32.Checksum(page[:stateHeader-4], castagnoli))
	return page, nil
}

// checkHeader reports how page differs from what the region's own would be.
func checkHeader(page []byte, name string, g region.Geometry) error {
	var h header
	if len(page) < stateHeader || !bytes.HasPrefix(page, []byte(stateMagic)) {
		return fmt.Errorf("%w: its state file is not one of telemap's", ErrForeign)
	}
	if crc32.Checksum(page[:stateHeader-4], castagnoli) != binary.LittleEndian.Uint32(page[stateHeader-4:]) {
		return fmt.Errorf("%w: its state file is damaged (the header's checksum is wrong)", ErrForeign)
	}
	if err := binary.Read(bytes.NewReader(page), binary.LittleEndian, &h); err != nil {
		return err
	}
	if h.Version != stateVersion {
		return fmt.Errorf("%w: its format is version %d, this program knows version %d", ErrForeign, h.Version, stateVersion)
	}
	n := int(min(h.NameLen, stateMaxName))
	start := binary.Size(h)
	if got := string(page[start : start+n]); got != name {
		return fmt.Errorf("%w: it holds %q, not %q", ErrForeign, got, name)
	}
	if h.Size != g.Size() {
		return fmt.Errorf("%w: it holds %d bytes, the region has %d", ErrForeign, h.Size, g.Size())
	}
	if h.ChunkSize != g.ChunkSize() {
		return fmt.Errorf("%w: its chunks have %d bytes, not %d", ErrForeign, h.ChunkSize, g.ChunkSize())
	}
	return nil
}

// openStateDir opens or makes a cache directory for a region and locks it.
func openStateDir(dir, name string, g region.Geometry) (_ *stateFile, data *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	s := &stateFile{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, nil, err
	}
	if err := lockFile(s.lock); err != nil {
		return nil, nil, err
	}
	size := int64(stateHeader) + int64(region.BitmapWords(g.Chunks()))*8
	path := filepath.Join(dir, "state")
	s.f, err = os.OpenFile(path, os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		if err := initState(dir, path, name, g, size); err != nil {
			return nil, nil, err
		}
		s.f, err = os.OpenFile(path, os.O_RDWR, 0o600)
	}
	if err != nil {
		return nil, nil, err
	}
	page := make([]byte, stateHeader)
	if _, err := s.f.ReadAt(page, 0); err != nil {
		return nil, nil, fmt.Errorf("%w: its state file is too short to be telemap's", ErrForeign)
	}
	if err := checkHeader(page, name, g); err != nil {
		return nil, nil, err
	}
	if info, err := s.f.Stat(); err != nil {
		return nil, nil, err
	} else if info.Size() != size {
		return nil, nil, fmt.Errorf("%w: its state file is damaged (%d bytes, expected %d)", ErrForeign, info.Size(), size)
	}
	var words []uint64
	if s.mem, words, err = mapState(s.f, size); err != nil {
		return nil, nil, err
	}
	s.dirty = region.BitmapOn(g.Chunks(), words)
	data, err = openData(filepath.Join(dir, "data"), g, s.dirty.NextSet(0) < g.Chunks())
	if err != nil {
		return nil, nil, err
	}
	return s, data, nil
}

// openData opens the data file, or makes it unless the state says that there
// are writes in it.
func openData(path string, g region.Geometry, hasWrites bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	switch {
	case err == nil:
		info, err := f.Stat()
		if err == nil && info.Size() != g.Size() {
			err = fmt.Errorf("%w: its data file has %d bytes, expected %d", ErrForeign, info.Size(), g.Size())
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	case hasWrites:
		return nil, fmt.Errorf("%w: its state tells of writes but its data file is gone", ErrForeign)
	}
	// Under another name until it has its length, so that a half-made file is
	// never taken for a truncated one.
	tmp := path + ".new"
	if f, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	if err := errors.Join(diskError(f.Truncate(g.Size())), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// initState makes the state file of a new directory, whole or not at all.
func initState(dir, path, name string, g region.Geometry, size int64) error {
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		return fmt.Errorf("%w: it has a data file but no state", ErrForeign)
	}
	page, err := encodeHeader(name, g)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return diskError(err)
	}
	err = allocate(f, size)
	if err == nil {
		_, err = f.WriteAt(page, 0)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return diskError(err)
	}
	return os.Rename(tmp, path)
}

func (s *stateFile) close() error {
	var errs []error
	if s.mem != nil {
		errs = append(errs, unmapState(s.mem))
	}
	for _, f := range []*os.File{s.f, s.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
