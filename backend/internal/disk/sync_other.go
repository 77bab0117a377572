//go:build !linux

package disk

import "os"

// Datasync is fsync.
func Datasync(f *os.File) error { return f.Sync() }
