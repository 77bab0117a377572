package transporttest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/inproc"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// wrong is a session that does one thing wrong: fields that are nil do what a
// correct session does.
type wrong struct {
	transport.Session
	list func([]transport.Info) []transport.Info
	open func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error)
	wrap func(r *remote) transport.Region
	// closing runs before Close.
	closing func() error
}

func (w wrong) List(ctx context.Context) ([]transport.Info, error) {
	infos, err := w.Session.List(ctx)
	if w.list != nil {
		infos = w.list(infos)
	}
	return infos, err
}

func (w wrong) Open(ctx context.Context, name string) (transport.Region, transport.Info, error) {
	open := w.open
	if open == nil {
		open = func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error) {
			return s.Open(ctx, name)
		}
	}
	r, info, err := open(ctx, w.Session, name)
	if in, ok := r.(*inproc.Region); ok && w.wrap != nil {
		return w.wrap(&remote{Region: in}), info, err
	}
	return r, info, err
}

func (w wrong) Close() error {
	if w.closing != nil {
		if err := w.closing(); err != nil {
			return err
		}
	}
	return w.Session.Close()
}

// remote is a correct region whose operations can be replaced.
type remote struct {
	*inproc.Region
	read  func(ctx context.Context, p []byte, off int64) (int, error)
	write func(ctx context.Context, p []byte, off int64) (int, error)
	sync  func(ctx context.Context) error
	zero  func(ctx context.Context, off, n int64) error
	next  func(ctx context.Context, off int64) (region.Range, error)
	vec   func(ctx context.Context, v []backend.Vec) error
	shut  func() error
}

func (r *remote) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if r.read != nil {
		return r.read(ctx, p, off)
	}
	return r.Region.ReadAt(ctx, p, off)
}

func (r *remote) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if r.write != nil {
		return r.write(ctx, p, off)
	}
	return r.Region.WriteAt(ctx, p, off)
}

func (r *remote) Sync(ctx context.Context) error {
	if r.sync != nil {
		return r.sync(ctx)
	}
	return r.Region.Sync(ctx)
}

func (r *remote) Zero(ctx context.Context, off, n int64) error {
	if r.zero != nil {
		return r.zero(ctx, off, n)
	}
	return r.Region.Zero(ctx, off, n)
}

func (r *remote) NextData(ctx context.Context, off int64) (region.Range, error) {
	if r.next != nil {
		return r.next(ctx, off)
	}
	return r.Region.NextData(ctx, off)
}

func (r *remote) ReadVec(ctx context.Context, v []backend.Vec) error {
	if r.vec != nil {
		return r.vec(ctx, v)
	}
	return r.Region.ReadVec(ctx, v)
}

func (r *remote) Close() error {
	if r.shut != nil {
		return r.shut()
	}
	return r.Region.Close()
}

// plain has no abilities.
type plain struct{ transport.Region }

// opened makes a session whose regions were treated by f.
func opened(f func(r *remote)) func(transport.Session) transport.Session {
	return func(s transport.Session) transport.Session {
		return wrong{Session: s, wrap: func(r *remote) transport.Region {
			f(r)
			return r
		}}
	}
}

func badOpen(f func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error)) func(transport.Session) transport.Session {
	return func(s transport.Session) transport.Session { return wrong{Session: s, open: f} }
}

// defects says for each check what must be seen by it.
var defects = []struct {
	check, name string
	session     func(transport.Session) transport.Session
}{
	{"list", "forgets one", func(s transport.Session) transport.Session {
		return wrong{Session: s, list: func(i []transport.Info) []transport.Info { return i[:max(0, len(i)-1)] }}
	}},
	{"list", "says twice", func(s transport.Session) transport.Session {
		return wrong{Session: s, list: func(i []transport.Info) []transport.Info { return append(i, i...) }}
	}},
	{"list", "drops a field", func(s transport.Session) transport.Session {
		return wrong{Session: s, list: func(i []transport.Info) []transport.Info {
			for k := range i {
				i[k].ChunkSize = 0
			}
			return i
		}}
	}},
	{"open", "no identity", badOpen(func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error) {
		r, info, err := s.Open(ctx, name)
		if err != nil {
			return nil, info, errors.New(err.Error())
		}
		return r, info, nil
	})},
	{"open", "ends a name at a zero byte", badOpen(func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error) {
		name, _, _ = strings.Cut(name, "\x00")
		return s.Open(ctx, name)
	})},
	{"open", "cuts a name", badOpen(func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error) {
		return s.Open(ctx, name[:min(len(name), transport.MaxName)])
	})},
	{"open", "forgets read-only", badOpen(func(ctx context.Context, s transport.Session, name string) (transport.Region, transport.Info, error) {
		r, info, err := s.Open(ctx, name)
		info.ReadOnly = false
		return r, info, err
	})},
	{"read and write", "changes its argument", opened(func(r *remote) {
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.WriteAt(ctx, p, off)
			clear(p[:len(p)/2])
			return n, err
		}
	})},
	{"read and write", "keeps the argument", opened(func(r *remote) {
		var kept []byte
		var at int64
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			kept, at = p, off
			return len(p), nil
		}
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if _, err := r.Region.WriteAt(ctx, kept, at); err != nil {
				return 0, err
			}
			return r.Region.ReadAt(ctx, p, off)
		}
	})},
	{"read and write", "does not sync", opened(func(r *remote) { r.sync = func(context.Context) error { return nil } })},
	{"read and write", "cuts offsets", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			return r.Region.ReadAt(ctx, p, off&0xffff)
		}
	})},
	{"large", "cuts reads", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.ReadAt(ctx, p[:min(len(p), 4<<20)], off)
			if n == 4<<20 {
				n = len(p)
			}
			return n, err
		}
	})},
	{"large", "refuses writes", opened(func(r *remote) {
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if len(p) > 4<<20 {
				return 0, region.ErrBadRequest
			}
			return r.Region.WriteAt(ctx, p, off)
		}
	})},
	{"end", "wraps EOF", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.ReadAt(ctx, p, off)
			if err == io.EOF {
				err = errors.Join(err)
			}
			return n, err
		}
	})},
	{"end", "loses the bytes before the end", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.ReadAt(ctx, p, off)
			if err == io.EOF {
				n = 0
			}
			return n, err
		}
	})},
	{"range", "lets a write begin", opened(func(r *remote) {
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if room := r.Size() - off; off >= 0 && room > 0 && room < int64(len(p)) {
				r.Region.WriteAt(ctx, p[:room], off)
			}
			return r.Region.WriteAt(ctx, p, off)
		}
	})},
	{"range", "says EOF behind the end", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if off > r.Size() {
				return 0, io.EOF
			}
			return r.Region.ReadAt(ctx, p, off)
		}
	})},
	{"range", "adds without looking", opened(func(r *remote) {
		r.zero = func(ctx context.Context, off, n int64) error {
			if off < 0 || off+n > r.Size() {
				return region.ErrOutOfRange
			}
			return nil
		}
	})},
	{"read-only", "refuses in other words", opened(func(r *remote) {
		r.write = func(context.Context, []byte, int64) (int, error) { return 0, region.ErrFenced }
	})},
	{"read-only", "zeros", opened(func(r *remote) {
		r.zero = func(context.Context, int64, int64) error { return nil }
	})},
	{"errors", "no identity", opened(func(r *remote) {
		r.sync = func(ctx context.Context) error {
			if err := r.Region.Sync(ctx); err != nil {
				return errors.New(err.Error())
			}
			return nil
		}
	})},
	{"errors", "no text", opened(func(r *remote) {
		r.zero = func(ctx context.Context, off, n int64) error {
			err := r.Region.Zero(ctx, off, n)
			for _, s := range sentinels {
				if errors.Is(err, s) {
					return s
				}
			}
			return err
		}
	})},
	{"errors", "one too many", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.ReadAt(ctx, p, off)
			if err != nil {
				err = errors.Join(err, region.ErrUnavailable)
			}
			return n, err
		}
	})},
	{"short", "no count", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.ReadAt(ctx, p, off)
			if err != nil {
				n = 0
			}
			return n, err
		}
	})},
	{"short", "no error", opened(func(r *remote) {
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.WriteAt(ctx, p, off)
			if errors.Is(err, io.ErrShortWrite) {
				err = nil
			}
			return n, err
		}
	})},
	{"liar", "believes", opened(func(r *remote) {
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if n, err := r.Region.WriteAt(ctx, p, off); n == 0 && err != nil {
				return 1 << 40, nil
			}
			return len(p), nil
		}
	})},
	{"abilities", "has none", func(s transport.Session) transport.Session {
		return wrong{Session: s, wrap: func(r *remote) transport.Region { return plain{r.Region} }}
	}},
	{"abilities", "does not pass on", opened(func(r *remote) {
		r.zero = func(ctx context.Context, off, n int64) error { return backend.Zero(ctx, plain{r.Region}, off, n) }
	})},
	{"abilities", "reads one by one", opened(func(r *remote) {
		r.vec = func(ctx context.Context, v []backend.Vec) error { return backend.ReadVec(ctx, plain{r.Region}, v) }
	})},
	{"abilities", "sees too few data", opened(func(r *remote) {
		r.next = func(ctx context.Context, off int64) (region.Range, error) {
			d, err := r.Region.NextData(ctx, off)
			if d.Len > 10 {
				d.Off, d.Len = d.Off+1, d.Len-1
			}
			return d, err
		}
	})},
	{"concurrent", "mixes up replies", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := r.Region.ReadAt(ctx, p, off)
			if n > 0 && rand.IntN(20) == 0 {
				p[rand.IntN(n)]++
			}
			return n, err
		}
	})},
	{"stall", "one at a time", opened(func(r *remote) {
		var mu sync.Mutex
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return r.Region.ReadAt(ctx, p, off)
		}
	})},
	{"cancel", "does not tell the server", opened(func(r *remote) {
		r.sync = func(ctx context.Context) error {
			// The session's Close, after the check, ends what is left.
			go r.Region.Sync(context.WithoutCancel(ctx))
			<-ctx.Done()
			return ctx.Err()
		}
	})},
	{"cancel", "in other words", opened(func(r *remote) {
		r.sync = func(ctx context.Context) error {
			err := r.Region.Sync(ctx)
			if errors.Is(err, context.Canceled) {
				err = errors.New("sync failed")
			}
			return err
		}
	})},
	{"given up", "comes back", opened(func(r *remote) {
		r.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			// Without a race: the read that comes behind does what is late.
			if off < 1000 {
				if q := comesBack.take(); q != nil {
					q[0] = 0
				}
				return r.Region.ReadAt(ctx, p, off)
			}
			r.Region.ReadAt(ctx, make([]byte, len(p)), off)
			comesBack.put(p)
			return 0, ctx.Err()
		}
	})},
	{"late write", "lets it happen", opened(func(r *remote) {
		r.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			done := make(chan error, 1)
			p = append([]byte(nil), p...)
			go func() {
				_, err := r.Region.WriteAt(context.WithoutCancel(ctx), p, off)
				done <- err
			}()
			select {
			case err := <-done:
				return len(p), err
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	})},
	{"close region", "stays open", opened(func(r *remote) { r.shut = func() error { return nil } })},
	{"close region", "not twice", opened(func(r *remote) {
		var once bool
		r.shut = func() error {
			if once {
				return region.ErrClosed
			}
			once = true
			return r.Region.Close()
		}
	})},
	{"close region", "closes the session", func(s transport.Session) transport.Session {
		return wrong{Session: s, wrap: func(r *remote) transport.Region {
			r.shut = func() error { return errors.Join(r.Region.Close(), s.Close()) }
			return r
		}}
	}},
	{"close session", "in other words", opened(func(r *remote) {
		r.sync = func(ctx context.Context) error {
			if err := r.Region.Sync(ctx); err != nil {
				return region.ErrUnavailable
			}
			return nil
		}
	})},
	{"close session", "not twice", func(s transport.Session) transport.Session {
		var once bool
		return wrong{Session: s, closing: func() error {
			if once {
				return errors.New("closed twice")
			}
			once = true
			return nil
		}}
	}},
}

// kept is where a defect keeps a buffer that is no longer its own.
type kept struct {
	mu sync.Mutex
	p  []byte
}

func (k *kept) put(p []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.p = p
}

func (k *kept) take() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() { k.p = nil }()
	return k.p
}

var comesBack kept

func TestChecksSeeDefects(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range defects {
		seen[d.check] = true
		t.Run(d.check+"/"+d.name, func(t *testing.T) {
			for _, c := range checks {
				if c.name != d.check {
					continue
				}
				e := &env{rand: testkit.Rand(t), patience: 200 * time.Millisecond}
				e.setup = func(cat transport.Catalog) transport.Session { return d.session(inproc.New(cat)) }
				err := e.run(t.Context(), c)
				if err == nil {
					t.Fatal("the defect was not seen")
				}
				t.Log(err)
				return
			}
			t.Fatal("there is no such check")
		})
	}
	for _, c := range checks {
		if !seen[c.name] {
			t.Errorf("check %q was never seen to fail: add a defect for it", c.name)
		}
	}
}

func TestChecksAcceptACorrectSession(t *testing.T) {
	Run(t, func(t *testing.T, cat transport.Catalog) transport.Session { return inproc.New(cat) })
}
