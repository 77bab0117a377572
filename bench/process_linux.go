package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Bounds of waits for a process.
const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// A process is a program that runs beside the bench. It ends when its context
// does, or when the bench dies.
type process struct {
	name   string
	cmd    *exec.Cmd
	lines  chan string // of standard output; closed at its end
	stderr *tail
	done   chan struct{} // closed when the process is gone
	err    error         // how it ended; read after done
}

// start runs a program, killed when ctx ends.
func start(ctx context.Context, program string, args ...string) (*process, error) {
	p := &process{
		name:   strings.Join(append([]string{filepath.Base(program)}, args[:min(1, len(args))]...), " "),
		cmd:    exec.CommandContext(ctx, program, args...),
		lines:  make(chan string, 64),
		stderr: &tail{},
		done:   make(chan struct{}),
	}
	p.cmd.Stderr = p.stderr
	p.cmd.WaitDelay = time.Second
	// Its own group: a Ctrl-C at the terminal is for the bench, which stops its
	// processes in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		defer close(p.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case p.lines <- s.Text():
			default: // nobody reads: only the first lines matter
			}
		}
		close(p.lines)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// line is the next line that the process prints, which says that it is ready.
func (p *process) line(ctx context.Context) (string, error) {
	return p.lineWithin(ctx, readyTimeout)
}

func (p *process) lineWithin(ctx context.Context, d time.Duration) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("it said nothing for %v", d))
	defer cancel()
	select {
	case l, ok := <-p.lines:
		if !ok {
			<-p.done
			return "", p.failure(p.err)
		}
		return l, nil
	case <-ctx.Done():
		return "", p.failure(context.Cause(ctx))
	}
}

// stop asks the process to end and waits for it. It is an error if that takes
// too long or the process reports one.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.kill()
	}
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.kill()
		return p.failure(fmt.Errorf("it did not end within %v", stopTimeout))
	}
	if p.err != nil {
		return p.failure(p.err)
	}
	return nil
}

// kill ends the process at once, if it is still there, and waits for it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone
	<-p.done
}

func (p *process) failure(err error) error {
	if err == nil {
		err = errors.New("it ended early")
	}
	if msg := p.stderr.String(); msg != "" {
		return fmt.Errorf("%s: %w: %s", p.name, err, msg)
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// A tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 2048

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	t.buf = t.buf[max(0, len(t.buf)-tailSize):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
