//go:build !linux

package pager

import (
	"errors"
	"fmt"
	"os"
)

var errNoCacheDir = fmt.Errorf("cache directories need Linux: %w", errors.ErrUnsupported)

func lockFile(*os.File) error                            { return errNoCacheDir }
func allocate(*os.File, int64) error                     { return errNoCacheDir }
func mapState(*os.File, int64) ([]byte, []uint64, error) { return nil, nil, errNoCacheDir }
func unmapState([]byte) error                            { return errNoCacheDir }
