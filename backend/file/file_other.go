//go:build !linux

package file

import (
	"errors"
	"os"
)

func fallocate(*os.File, way, int64, int64) error { return errors.ErrUnsupported }

func seekData(*os.File, int64) (start, end int64, err error) { return 0, 0, errors.ErrUnsupported }
