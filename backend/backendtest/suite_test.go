package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/internal/gate"
	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/region"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// honest is a correct backend with every ability, by which wrong ones are made.
type honest struct {
	gate     gate.Gate
	readOnly bool
	m        *medium
	mu       sync.Mutex
	data     []byte
	file     *os.File
}

// medium is what survives Close and crashes of an honest backend.
type medium struct {
	mu   sync.Mutex
	data []byte
}

func (h *honest) enter() error {
	if !h.gate.Enter() {
		return backend.ErrClosed
	}
	return nil
}

func (h *honest) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := h.enter(); err != nil {
		return 0, err
	}
	defer h.gate.Leave()
	q, err := backend.Clip(p, off, int64(len(h.data)))
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != backend.ErrOutOfRange {
		copy(q, h.data[off:])
	}
	return len(q), err
}

func (h *honest) check(off, n int64) error {
	if h.readOnly {
		return backend.ErrReadOnly
	}
	if !region.Check(off, n, int64(len(h.data))) {
		return fmt.Errorf("honest: %w", backend.ErrOutOfRange)
	}
	return nil
}

func (h *honest) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := h.enter(); err != nil {
		return 0, err
	}
	defer h.gate.Leave()
	if err := h.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file != nil {
		h.file.WriteAt(p, off)
	}
	return copy(h.data[off:], p), nil
}

func (h *honest) Zero(ctx context.Context, off, n int64) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.gate.Leave()
	if err := h.check(off, n); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.data[off : off+n])
	return nil
}

func (h *honest) Discard(ctx context.Context, off, n int64) error { return h.Zero(ctx, off, n) }

func (h *honest) NextData(ctx context.Context, off int64) (region.Range, error) {
	if err := h.enter(); err != nil {
		return region.Range{}, err
	}
	defer h.gate.Leave()
	size := int64(len(h.data))
	if off < 0 || off > size {
		return region.Range{}, backend.ErrOutOfRange
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for ; off < size; off++ {
		if h.data[off] != 0 {
			end := off
			for end < size && h.data[end] != 0 {
				end++
			}
			return region.Range{Off: off, Len: end - off}, nil
		}
	}
	return region.Range{}, io.EOF
}

func (h *honest) ReadVec(ctx context.Context, v []backend.Vec) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.gate.Leave()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range v {
		if !region.Check(x.Off, int64(len(x.P)), int64(len(h.data))) {
			return backend.ErrOutOfRange
		}
		copy(x.P, h.data[x.Off:])
	}
	return nil
}

func (h *honest) Sync(ctx context.Context) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.gate.Leave()
	if h.m != nil {
		h.m.mu.Lock()
		defer h.m.mu.Unlock()
		copy(h.m.data, h.data)
	}
	return nil
}

func (h *honest) Size() int64    { return int64(len(h.data)) }
func (h *honest) File() *os.File { return h.file }
func (h *honest) Close() error {
	if h.gate.Shut() && h.file != nil {
		return h.file.Close()
	}
	return nil
}

// wrong is an honest backend but for the methods that are set.
type wrong struct {
	*honest
	read    func(ctx context.Context, p []byte, off int64) (int, error)
	write   func(ctx context.Context, p []byte, off int64) (int, error)
	zero    func(ctx context.Context, off, n int64) error
	discard func(ctx context.Context, off, n int64) error
	next    func(ctx context.Context, off int64) (region.Range, error)
	vec     func(ctx context.Context, v []backend.Vec) error
	sync    func(ctx context.Context) error
	size    func() int64
	close   func() error
}

func (w *wrong) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if w.read != nil {
		return w.read(ctx, p, off)
	}
	return w.honest.ReadAt(ctx, p, off)
}

func (w *wrong) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if w.write != nil {
		return w.write(ctx, p, off)
	}
	return w.honest.WriteAt(ctx, p, off)
}

func (w *wrong) Zero(ctx context.Context, off, n int64) error {
	if w.zero != nil {
		return w.zero(ctx, off, n)
	}
	return w.honest.Zero(ctx, off, n)
}

func (w *wrong) Discard(ctx context.Context, off, n int64) error {
	if w.discard != nil {
		return w.discard(ctx, off, n)
	}
	return w.honest.Discard(ctx, off, n)
}

func (w *wrong) NextData(ctx context.Context, off int64) (region.Range, error) {
	if w.next != nil {
		return w.next(ctx, off)
	}
	return w.honest.NextData(ctx, off)
}

func (w *wrong) ReadVec(ctx context.Context, v []backend.Vec) error {
	if w.vec != nil {
		return w.vec(ctx, v)
	}
	return w.honest.ReadVec(ctx, v)
}

func (w *wrong) Sync(ctx context.Context) error {
	if w.sync != nil {
		return w.sync(ctx)
	}
	return w.honest.Sync(ctx)
}

func (w *wrong) Size() int64 {
	if w.size != nil {
		return w.size()
	}
	return w.honest.Size()
}

func (w *wrong) Close() error {
	if w.close != nil {
		return w.close()
	}
	return w.honest.Close()
}

// lateWrite is what the race detector would rightly report.
//
//go:norace
func lateWrite(p []byte) {
	for i := range p {
		p[i] = 0xEE
	}
}

// defects breaks an honest backend in one way, which the named check must see.
var defects = []struct {
	check, name string
	do          func(w *wrong)
}{
	{"size", "rounds up to blocks", func(w *wrong) {
		w.size = func() int64 { return (w.honest.Size() + 4095) &^ 4095 }
	}},
	{"size", "zero after Close", func(w *wrong) {
		var closed bool
		w.close = func() error { closed = true; return w.honest.Close() }
		w.size = func() int64 {
			if closed {
				return 0
			}
			return w.honest.Size()
		}
	}},
	{"zeros", "leaves the buffer of missing bytes alone", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			q := make([]byte, len(p))
			n, err := w.honest.ReadAt(ctx, q, off)
			for i, c := range q[:n] {
				if c != 0 {
					p[i] = c
				}
			}
			return n, err
		}
	}},
	{"zeros", "new chunks hold old bytes", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if len(p) == 1 && off > 0 {
				w.honest.WriteAt(ctx, []byte{3}, off-1)
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"read back", "ignores the offset inside a block", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if off > 0 && off <= w.honest.Size() {
				off = off / 512 * 512
			}
			return w.honest.ReadAt(ctx, p, off)
		}
	}},
	{"neighbours", "rounds writes to blocks", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if end := off + int64(len(p)); end < w.honest.Size() && end%512 != 0 && len(p) > 0 {
				w.honest.Zero(ctx, end, 1)
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"read at the end", "no EOF", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.ReadAt(ctx, p, off)
			if err == io.EOF {
				err = nil
			}
			return n, err
		}
	}},
	{"read at the end", "wraps EOF", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.ReadAt(ctx, p, off)
			if err == io.EOF {
				err = fmt.Errorf("read: %w", err)
			}
			return n, err
		}
	}},
	{"read at the end", "counts bytes behind the end", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.ReadAt(ctx, p, off)
			if err == io.EOF {
				n = len(p)
			}
			return n, err
		}
	}},
	{"read out of range", "EOF behind the end", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if off > w.honest.Size() {
				return 0, io.EOF
			}
			return w.honest.ReadAt(ctx, p, off)
		}
	}},
	{"read out of range", "negative offsets are an error of their own", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if off < 0 {
				return 0, errors.New("negative offset")
			}
			return w.honest.ReadAt(ctx, p, off)
		}
	}},
	{"write out of range", "writes what fits", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if room := w.honest.Size() - off; off >= 0 && room > 0 && int64(len(p)) > room {
				w.honest.WriteAt(ctx, p[:room], off)
				return 0, backend.ErrOutOfRange
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"write out of range", "the sum of offset and length overflows", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if off > 0 && off+int64(len(p)) < 0 {
				return len(p), nil
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"zero length", "empty writes fail", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if len(p) == 0 {
				return 0, io.ErrShortWrite
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"zero length", "empty reads fail", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if len(p) == 0 {
				return 0, io.EOF
			}
			return w.honest.ReadAt(ctx, p, off)
		}
	}},
	{"buffers", "stores the caller's slice later", func(w *wrong) {
		type kept struct {
			p   []byte
			off int64
		}
		var queue []kept
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if err := w.check(off, int64(len(p))); err != nil {
				return 0, err
			}
			queue = append(queue, kept{p, off})
			return len(p), nil
		}
		w.sync = func(ctx context.Context) error {
			for _, k := range queue {
				w.honest.WriteAt(ctx, k.p, k.off)
			}
			return nil
		}
	}},
	{"buffers", "encrypts in place", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.WriteAt(ctx, p, off)
			if len(p) > 100 {
				p[50] ^= 1
			}
			return n, err
		}
	}},
	{"cancelled", "hides the context's error", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			if ctx.Err() != nil {
				return 0, errors.New("connection lost")
			}
			return w.honest.ReadAt(ctx, p, off)
		}
	}},
	{"cancelled", "claims what it did not write", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if ctx.Err() != nil {
				return len(p), nil
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"cancelled", "a read goes on in the background", func(w *wrong) {
		var late sync.WaitGroup
		var closing atomic.Bool
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.ReadAt(ctx, p, off)
			if ctx.Err() == nil {
				return n, err
			}
			late.Go(func() {
				for !closing.Load() {
					runtime.Gosched()
				}
				lateWrite(p)
			})
			return 0, ctx.Err()
		}
		w.close = func() error {
			closing.Store(true)
			late.Wait()
			return w.honest.Close()
		}
	}},
	{"sync", "nothing to do is an error", func(w *wrong) {
		var wrote bool
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			wrote = true
			return w.honest.WriteAt(ctx, p, off)
		}
		w.sync = func(ctx context.Context) error {
			if !wrote {
				return os.ErrInvalid
			}
			return nil
		}
	}},
	{"sync", "forgets what it flushed", func(w *wrong) {
		w.sync = func(ctx context.Context) error { return w.honest.Zero(ctx, 0, w.honest.Size()) }
	}},
	{"closed", "reads go on", func(w *wrong) { w.close = func() error { return nil } }},
	{"closed", "closing twice is an error", func(w *wrong) {
		var closed bool
		w.close = func() error {
			if closed {
				return os.ErrClosed
			}
			closed = true
			return w.honest.Close()
		}
	}},
	{"closed", "Sync after Close is nil", func(w *wrong) { w.sync = func(context.Context) error { return nil } }},
	{"close waits", "only sets a flag", func(w *wrong) {
		closed := make(chan struct{})
		var once sync.Once
		var mu sync.Mutex
		reads := map[*byte]int{} // by the reader's buffer
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			mu.Lock()
			reads[&p[0]]++
			late := reads[&p[0]] > warmReads
			mu.Unlock()
			if late {
				<-closed
				for range 200_000 {
					runtime.Gosched()
				}
				lateWrite(p)
				return 0, backend.ErrClosed
			}
			return w.honest.ReadAt(ctx, p, off)
		}
		w.close = func() error { once.Do(func() { close(closed) }); return w.honest.Close() }
	}},
	{"close waits", "EOF while closing", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.ReadAt(ctx, p, off)
			if err == backend.ErrClosed {
				err = io.EOF
			}
			return n, err
		}
	}},
	{"concurrent writers", "read-modify-write of a chunk without a lock", func(w *wrong) { w.write = readModifyWrite(w) }},
	{"reads beside writes", "a chunk is empty while it is rewritten", func(w *wrong) {
		var mu sync.Mutex
		var reads atomic.Int64
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			defer reads.Add(1)
			return w.honest.ReadAt(ctx, p, off)
		}
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if len(p) > 4096 {
				return w.honest.WriteAt(ctx, p, off)
			}
			mu.Lock()
			defer mu.Unlock()
			chunk := make([]byte, 8192)
			at := off &^ 4095
			n, _ := w.honest.ReadAt(ctx, chunk, at)
			w.honest.Zero(ctx, at, int64(n))
			// Let some reads in, unless the readers have left.
			for i, before := 0, reads.Load(); i < 1000 && reads.Load() < before+8; i++ {
				runtime.Gosched()
			}
			copy(chunk[off-at:n], p)
			w.honest.WriteAt(ctx, chunk[:n], at)
			return len(p), nil
		}
	}},
	{"model", "loses a write that crosses a boundary", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			if n := 1<<16 - off%(1<<16); off > 1<<17 && n < int64(len(p)) {
				w.honest.WriteAt(ctx, p[:n], off)
				return len(p), nil
			}
			return w.honest.WriteAt(ctx, p, off)
		}
	}},
	{"zero", "clears whole blocks", func(w *wrong) {
		w.zero = func(ctx context.Context, off, n int64) error {
			if region.Check(off, n, w.honest.Size()) {
				end := min((off+n+511)&^511, w.honest.Size())
				n = end - off
			}
			return w.honest.Zero(ctx, off, n)
		}
	}},
	{"zero", "clips instead of refusing", func(w *wrong) {
		w.zero = func(ctx context.Context, off, n int64) error {
			if off >= 0 && n >= 0 && off <= w.honest.Size() {
				n = min(n, w.honest.Size()-off)
			}
			return w.honest.Zero(ctx, off, n)
		}
	}},
	{"discard", "is only a hint", func(w *wrong) {
		w.discard = func(ctx context.Context, off, n int64) error { return w.check(off, n) }
	}},
	{"next data", "does not see the last byte", func(w *wrong) {
		w.next = func(ctx context.Context, off int64) (region.Range, error) {
			r, err := w.honest.NextData(ctx, off)
			if err == nil && r.Len > 1 {
				r.Len--
			} else if err == nil && r.End() == w.honest.Size() {
				return region.Range{}, io.EOF
			}
			return r, err
		}
	}},
	{"next data", "starts before the offset", func(w *wrong) {
		w.next = func(ctx context.Context, off int64) (region.Range, error) {
			r, err := w.honest.NextData(ctx, off)
			if err == nil && r.Off > 0 {
				return region.Range{Off: 0, Len: r.End()}, nil
			}
			return r, err
		}
	}},
	{"next data", "a range at the end instead of EOF", func(w *wrong) {
		w.next = func(ctx context.Context, off int64) (region.Range, error) {
			r, err := w.honest.NextData(ctx, off)
			if err == io.EOF {
				return region.Range{Off: off}, nil
			}
			return r, err
		}
	}},
	{"read vec", "stops after ten pieces", func(w *wrong) {
		w.vec = func(ctx context.Context, v []backend.Vec) error { return w.honest.ReadVec(ctx, v[:min(len(v), 10)]) }
	}},
	{"read vec", "fills what there is", func(w *wrong) {
		w.vec = func(ctx context.Context, v []backend.Vec) error {
			for _, x := range v {
				w.honest.ReadAt(ctx, x.P, x.Off)
			}
			return nil
		}
	}},
	{"file", "bytes are somewhere else", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.WriteAt(ctx, p, off)
			w.file.WriteAt(make([]byte, len(p)), off)
			return n, err
		}
	}},
	{"reopen", "keeps nothing", func(w *wrong) { w.sync = func(context.Context) error { return nil } }},
	{"reopen", "keeps the first state", func(w *wrong) {
		for _, c := range w.data {
			if c != 0 {
				w.sync = func(context.Context) error { return nil }
			}
		}
	}},
	{"crash", "keeps on Close only", func(w *wrong) {
		w.sync = func(context.Context) error { return nil }
		w.close = func() error { w.honest.Sync(context.Background()); return w.honest.Close() }
	}},
	{"read-only reads", "no EOF", func(w *wrong) {
		w.read = func(ctx context.Context, p []byte, off int64) (int, error) {
			n, err := w.honest.ReadAt(ctx, p, off)
			if err == io.EOF {
				err = nil
			}
			return n, err
		}
	}},
	{"read-only writes", "writes", func(w *wrong) { w.readOnly = false }},
	{"read-only writes", "ignores writes", func(w *wrong) {
		w.write = func(ctx context.Context, p []byte, off int64) (int, error) { return len(p), nil }
	}},
	{"read-only closed", "Sync after Close is nil", func(w *wrong) { w.sync = func(context.Context) error { return nil } }},
}

// readModifyWrite locks both halves, so that the race detector is content, but
// not the whole.
func readModifyWrite(w *wrong) func(ctx context.Context, p []byte, off int64) (int, error) {
	return func(ctx context.Context, p []byte, off int64) (int, error) {
		if err := w.check(off, int64(len(p))); err != nil {
			return 0, err
		}
		chunk := make([]byte, 64<<10)
		at := off / int64(len(chunk)) * int64(len(chunk))
		if off+int64(len(p)) > at+int64(len(chunk)) {
			return w.honest.WriteAt(ctx, p, off)
		}
		n, _ := w.honest.ReadAt(ctx, chunk, at)
		for range 20 {
			runtime.Gosched()
		}
		copy(chunk[off-at:n], p)
		w.honest.WriteAt(ctx, chunk[:n], at)
		return len(p), nil
	}
}

// environment makes backends that do breaks.
func environment(t *testing.T, do func(w *wrong)) *env {
	return &env{
		rand: rand.New(rand.NewPCG(1, 2)),
		create: func(size int64) backend.Backend {
			f, err := os.CreateTemp(t.TempDir(), "honest")
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			w := &wrong{honest: &honest{data: make([]byte, size), file: f}}
			do(w)
			return w
		},
		storage: func(size int64) func() backend.Backend {
			m := &medium{data: make([]byte, size)}
			return func() backend.Backend {
				m.mu.Lock()
				defer m.mu.Unlock()
				w := &wrong{honest: &honest{data: append([]byte(nil), m.data...), m: m}}
				do(w)
				return w
			}
		},
		fixed: func(content []byte) backend.Backend {
			w := &wrong{honest: &honest{data: append([]byte(nil), content...), readOnly: true}}
			do(w)
			return w
		},
	}
}

func every() []check {
	return append(append(append([]check(nil), checks...), persistentChecks...), readOnlyChecks...)
}

func TestChecksPassHonestBackend(t *testing.T) {
	for _, c := range every() {
		t.Run(c.name, func(t *testing.T) {
			e := environment(t, func(*wrong) {})
			if err := e.run(t.Context(), c); err != nil {
				t.Error(err)
			}
			if e.lacks != "" {
				t.Errorf("the check looked in vain for %s", e.lacks)
			}
		})
	}
}

func TestChecksSeeDefects(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range defects {
		t.Run(strings.ReplaceAll(d.check+"/"+d.name, " ", "_"), func(t *testing.T) {
			for _, c := range every() {
				if c.name != d.check {
					continue
				}
				seen[c.name] = true
				err := environment(t, d.do).run(t.Context(), c)
				if err == nil {
					t.Fatalf("the check %q passed a backend that %s", c.name, d.name)
				}
				t.Logf("%v", err)
				return
			}
			t.Fatalf("there is no check %q", d.check)
		})
	}
	for _, c := range every() {
		if !seen[c.name] {
			t.Errorf("no defect shows that the check %q can fail", c.name)
		}
	}
}

// bare has no ability.
type bare struct{ backend.Backend }

func TestAbilitiesAreOptional(t *testing.T) {
	for _, name := range []string{"zero", "discard", "next data", "read vec", "file"} {
		for _, c := range checks {
			if c.name != name {
				continue
			}
			e := environment(t, func(*wrong) {})
			create := e.create
			e.create = func(size int64) backend.Backend { return bare{create(size)} }
			if err := e.run(t.Context(), c); err != nil || e.lacks == "" {
				t.Errorf("check %q of a backend without abilities = %v, lacks %q; want nil and a name", name, err, e.lacks)
			}
		}
	}
}

func TestRun(t *testing.T) {
	Suite{
		Open: func(t *testing.T, size int64) backend.Backend {
			return bare{&honest{data: make([]byte, size)}}
		},
		Persistent: func(t *testing.T, size int64) func() backend.Backend {
			return environment(t, func(*wrong) {}).storage(size)
		},
		ReadOnly: func(t *testing.T, content []byte) backend.Backend {
			return environment(t, func(*wrong) {}).fixed(content)
		},
		Ops: 50,
	}.Run(t)
}
