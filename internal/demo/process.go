package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// A process is one of telemap's commands, run for the demo. It speaks JSON lines.
type process struct {
	cmd   *exec.Cmd
	lines chan line
	errs  strings.Builder
}

// A line is what serve and mount print with --json.
type line struct {
	Event string  `json:"event"`
	URL   string  `json:"url"`
	Path  string  `json:"path"`
	Open  float64 `json:"open_seconds"`
	Pager counts  `json:"pager"`
}

func (d *demo) start(ctx context.Context, args ...string) (*process, error) {
	// Not CommandContext: an interrupted demo stops its processes in order.
	p := &process{cmd: exec.Command(d.o.Program, args...), lines: make(chan line, 8)}
	p.cmd.Stderr = &p.errs
	p.cmd.SysProcAttr = dieWithParent()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.lines)
		dec := json.NewDecoder(bufio.NewReader(out))
		for {
			var l line
			if dec.Decode(&l) != nil {
				return
			}
			p.lines <- l
		}
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// next is the next line of the event, whose name is empty for a server's.
func (p *process) next(ctx context.Context) (line, error) {
	select {
	case l, ok := <-p.lines:
		if !ok {
			return line{}, errors.Join(fmt.Errorf("it ended: %s", strings.TrimSpace(p.errs.String())), p.cmd.Wait())
		}
		return l, nil
	case <-ctx.Done():
		return line{}, ctx.Err()
	case <-time.After(30 * time.Second):
		return line{}, errors.New("it did not get ready in 30 seconds")
	}
}

// stop asks the process to end and returns its last line.
func (p *process) stop() (last line, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return line{}, err
	}
	overdue := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer overdue.Stop()
	for l := range p.lines {
		last = l
	}
	if err := p.cmd.Wait(); err != nil {
		return last, fmt.Errorf("%s: %w: %s", p.cmd.Args[1], err, strings.TrimSpace(p.errs.String()))
	}
	return last, nil
}

type server struct {
	*process
	url string
}

func (s *server) stop() error { _, err := s.process.stop(); return err }

func (d *demo) serve(ctx context.Context, backing string) (*server, error) {
	p, err := d.start(ctx, "serve", "region="+backing, "--listen", "tcp://127.0.0.1:0", "--json")
	if err != nil {
		return nil, err
	}
	l, err := p.next(ctx)
	if err != nil {
		return nil, errors.Join(err, p.cmd.Process.Kill())
	}
	return &server{p, l.URL}, nil
}
