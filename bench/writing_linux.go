package main

import (
	"bytes"
	"errors"
	"os"
	"time"
)

// writeLen is how much the writing rows write before they sync.
const writeLen = 64 << 20

// newContent is bytes to be written that were not written before.
func (s *site) newContent() []byte {
	s.mu.Lock()
	s.names++
	seed := byte(s.names)
	s.mu.Unlock()
	p := make([]byte, min(writeLen, s.size))
	fillRandom(p, seed)
	return p
}

// writeSync times writing to m by write(2), then fsync(2), open included, and
// looks in the file behind the server for what was written.
func (s *site) writeSync(m *mounted) (sample, error) {
	content := s.newContent()
	begin := time.Now()
	f, err := os.OpenFile(m.path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for off := 0; off < len(content); off += readBlock {
		if _, err := f.Write(content[off:min(off+readBlock, len(content))]); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	if !bytes.Equal(s.writable.data[:len(content)], content) {
		return nil, errors.New("fsync returned and the file behind the server has other bytes")
	}
	return throughput(int64(len(content)), took), f.Close()
}
