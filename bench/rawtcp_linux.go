package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// rawCommand is the bench's own command for the raw server process.
const rawCommand = "raw-tcp-server"

// rawBlock is how much one read or write of a raw copy moves at most.
const rawBlock = 1 << 20

// A rawRequest asks the raw server to send [Off, Off+Len) of its file, or to
// receive Len bytes and answer with their trace's sum.
type rawRequest struct {
	Op       uint64
	Off, Len int64
}

const (
	rawGet uint64 = iota
	rawPut
)

// rawServer serves the file at path from a mapping, the limit of what any server
// can do, until it is killed.
func rawServer(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := rawAnswer(c, data); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

// rawAnswer answers requests until the peer hangs up.
func rawAnswer(c net.Conn, data []byte) error {
	buf := make([]byte, rawBlock)
	for {
		var r rawRequest
		if err := binary.Read(c, binary.LittleEndian, &r); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if r.Op == rawGet {
			for off := r.Off; off < r.Off+r.Len; off += rawBlock {
				if _, err := c.Write(data[off:min(off+rawBlock, r.Off+r.Len)]); err != nil {
					return err
				}
			}
			continue
		}
		t := trace{off: r.Off}
		for left := r.Len; left > 0; {
			n, err := c.Read(buf[:min(left, rawBlock)])
			if err != nil {
				return err
			}
			t.add(buf[:n])
			left -= int64(n)
		}
		if err := binary.Write(c, binary.LittleEndian, t.sum); err != nil {
			return err
		}
	}
}

// raw is the address of a raw server of the source.
func (s *site) raw() (string, error) {
	srv, err := s.shared("raw", func() (*server, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		p, err := s.start(s.ctx, self, rawCommand, s.source.path)
		if err != nil {
			return nil, err
		}
		addr, err := p.line(s.ctx)
		return &server{p, addr}, err
	})
	if err != nil {
		return "", err
	}
	return srv.addr, nil
}

// dialRaw connects to a raw server; the connection ends when ctx does.
func dialRaw(ctx context.Context, addr string) (net.Conn, func(), error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }, nil
}

// rawRead copies the source over conns connections, each a part of it.
func (s *site) rawRead(ctx context.Context, conns int) (sample, error) {
	addr, err := s.raw()
	if err != nil {
		return nil, err
	}
	traces := make([]trace, conns)
	bufs := make([][]byte, conns)
	part := s.size / int64(conns)
	for i := range conns {
		traces[i].off = int64(i) * part
		bufs[i] = touched(rawBlock)
	}
	g, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for i := range conns {
		g.Go(func() error { return rawGetPart(ctx, addr, bufs[i], &traces[i], part) })
	}
	err = g.Wait()
	took := time.Since(begin)
	for i, t := range traces {
		if err == nil && t != traceOf(s.source.data, int64(i)*part, part) {
			err = errors.New("raw copy: wrong bytes")
		}
	}
	return throughput(part*int64(conns), took), err
}

func rawGetPart(ctx context.Context, addr string, buf []byte, t *trace, n int64) error {
	c, done, err := dialRaw(ctx, addr)
	if err != nil {
		return err
	}
	defer done()
	if err := binary.Write(c, binary.LittleEndian, rawRequest{rawGet, t.off, n}); err != nil {
		return err
	}
	for left := n; left > 0; {
		got, err := c.Read(buf[:min(left, int64(len(buf)))])
		if err != nil {
			return err
		}
		t.add(buf[:got])
		left -= int64(got)
	}
	return nil
}

// rawLatency is the round trip of one page at places far apart.
func (s *site) rawLatency(ctx context.Context) (sample, error) {
	addr, err := s.raw()
	if err != nil {
		return nil, err
	}
	c, done, err := dialRaw(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer done()
	req := make([]byte, 24)
	return s.latency(func(p []byte, off int64) (int, error) {
		binary.LittleEndian.PutUint64(req[8:], uint64(off))
		binary.LittleEndian.PutUint64(req[16:], uint64(len(p)))
		if _, err := c.Write(req); err != nil {
			return 0, err
		}
		return io.ReadFull(c, p)
	})
}

// rawWrite sends content over one connection until the other end has it all.
func (s *site) rawWrite(ctx context.Context, content []byte) (sample, error) {
	addr, err := s.raw()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	c, done, err := dialRaw(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := binary.Write(c, binary.LittleEndian, rawRequest{rawPut, 0, int64(len(content))}); err != nil {
		return nil, err
	}
	for off := 0; off < len(content); off += rawBlock {
		if _, err := c.Write(content[off:min(off+rawBlock, len(content))]); err != nil {
			return nil, err
		}
	}
	var sum uint64
	if err := binary.Read(c, binary.LittleEndian, &sum); err != nil {
		return nil, err
	}
	took := time.Since(begin)
	if sum != traceOf(content, 0, int64(len(content))).sum {
		return nil, errors.New("raw write: wrong bytes")
	}
	return throughput(int64(len(content)), took), nil
}
