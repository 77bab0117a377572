// Command telemap shows remote resources as local files and serves them.
//
// Run telemap --help, or telemap COMMAND --help, for what it does and examples.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes, as the help of the root command tells them.
const (
	exitFailure   = 1
	exitUsage     = 2
	exitInterrupt = 130 // 128 + SIGINT: stopped at once by a second signal
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := onSignal(context.Background(), func() { os.Exit(exitInterrupt) })
	defer stop()
	cmd := newRoot()
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if c, _, unknown := cmd.Find(os.Args[1:]); unknown != nil {
		err = &usageError{c.CommandPath(), err} // there is no such command
	}
	fmt.Fprintln(os.Stderr, "telemap:", err)
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(os.Stderr, "See '%s --help'.\n", usage.command)
		return exitUsage
	}
	return exitFailure
}

// sameSignal is how soon after the first a signal is taken for its echo.
const sameSignal = 200 * time.Millisecond

// onSignal returns a context that the first SIGINT or SIGTERM cancels; the
// second calls now.
func onSignal(parent context.Context, now func()) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		var first time.Time
		for {
			select {
			case <-signals:
				// One Ctrl-C often arrives twice: from the terminal and from a
				// parent that passes it on.
				if !first.IsZero() && time.Since(first) > sameSignal {
					now()
				}
				if first.IsZero() {
					first = time.Now()
				}
				cancel()
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// A usageError says that the command line itself is wrong.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
