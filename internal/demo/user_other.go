//go:build !linux

package demo

import (
	"context"
	"os"
	"syscall"
	"time"
)

func dieWithParent() *syscall.SysProcAttr { return nil }

func (d *demo) use(ctx context.Context, url string, pull bool) (user, error) {
	return useLibrary(ctx, url, pull)
}

// fileUser is never made here.
type fileUser struct {
	user
	f    *os.File
	proc *process
	open time.Duration
}
