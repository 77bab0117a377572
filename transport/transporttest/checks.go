package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/region"
	"github.com/telemap/telemap/transport"
)

var checks = []check{
	{"list", "List describes exactly the regions that the server offers.", checkList},
	{"open", "Open finds a region by name, the only one by the empty name, and says ErrNotFound for any other; what it says about a region is what the server does.", checkOpen},
	{"read and write", "Reads and writes of any length at any offset, none included, act like those of a slice of bytes; WriteAt does not change p.", checkModel},
	{"large", "An operation may be larger than what one message carries.", checkLarge},
	{"end", "ReadAt fills what there is and returns io.EOF itself when the region ends before p does; at the end it is io.EOF.", checkEnd},
	{"range", "What does not lie in the region is ErrOutOfRange and changes nothing.", checkRange},
	{"read-only", "What would change a region that is offered as read-only is ErrReadOnly and does not reach it.", checkReadOnly},
	{"errors", "An error of the served region arrives: each sentinel keeps its identity, any other its text.", checkErrors},
	{"short", "When the served region does part of a read or write, the client learns how much and gets an error.", checkShort},
	{"liar", "A served region that returns an impossible count breaks that request only.", checkLiar},
	{"abilities", "Zero, Discard, NextData and ReadVec reach a served region that has them; on any other they have the same effect.", checkAbilities},
	{"concurrent", "Any number of requests may be in flight at once.", checkConcurrent},
	{"stall", "Requests that stall in the served region hold up no others.", checkStall},
	{"cancel", "A request whose context ends returns that context's error, and the served region sees its own context end.", checkCancel},
	{"given up", "A read that was given up does not touch its buffer afterwards.", checkGivenUp},
	{"late write", "A write that was given up is not carried out after a later write of the same bytes.", checkLateWrite},
	{"close region", "After a region's Close it returns ErrClosed; the session and other handles of the same region stay usable.", checkCloseRegion},
	{"close session", "Close ends what is in flight with ErrClosed, as it does later calls; closing twice is harmless.", checkCloseSession},
}

func same(what string, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%s: %d bytes; want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%s: byte %d is %#02x; want %#02x", what, i, got[i], want[i])
		}
	}
	return nil
}

// dirty is what buffers hold before they are read into.
const dirty = 0xDB

func read(ctx context.Context, r transport.Region, want []byte, off int64) error {
	what := fmt.Sprintf("ReadAt(off=%d, len=%d)", off, len(want))
	p := bytes.Repeat([]byte{dirty}, len(want))
	n, err := r.ReadAt(ctx, p, off)
	atEnd := off+int64(len(want)) == r.Size()
	if n != len(want) || err != nil && !(err == io.EOF && atEnd) {
		return fmt.Errorf("%s = %d, %w; want %d, nil", what, n, err, len(want))
	}
	return same(what, p, want)
}

func write(ctx context.Context, r transport.Region, p []byte, off int64) error {
	was := bytes.Clone(p)
	n, err := r.WriteAt(ctx, p, off)
	if n != len(p) || err != nil {
		return fmt.Errorf("WriteAt(off=%d, len=%d) = %d, %w; want %d, nil", off, len(p), n, err, len(p))
	}
	return same("the argument of WriteAt", p, was)
}

func checkList(ctx context.Context, e *env) error {
	for _, count := range []int{0, 1, 40} {
		var cat transport.Exports
		var want []transport.Info
		for i := range count {
			info := transport.Info{Name: fmt.Sprintf("region/%d é", i), Size: int64(i) + 1, ReadOnly: i%2 == 1, ChunkSize: int64(i%3) << 12}
			if i == 7 {
				info.Name = strings.Repeat("n", transport.MaxName)
			}
			want = append(want, info)
			cat = append(cat, transport.Export{Region: serve(make([]byte, i+1)), Info: info})
		}
		got, err := e.dial(cat).List(ctx)
		if err != nil {
			return fmt.Errorf("List() of %d regions = %w", count, err)
		}
		byName := func(a, b transport.Info) int { return strings.Compare(a.Name, b.Name) }
		slices.SortFunc(got, byName)
		slices.SortFunc(want, byName)
		if !slices.Equal(got, want) {
			return fmt.Errorf("List() = %+v; want %+v", got, want)
		}
	}
	return nil
}

func checkOpen(ctx context.Context, e *env) error {
	long := strings.Repeat("l", transport.MaxName)
	one := transport.Export{Region: serve([]byte("one")), Info: transport.Info{Name: "a/1", Size: 3, ChunkSize: 4096}}
	two := transport.Export{Region: serve([]byte("other")), Info: transport.Info{Name: long, Size: 5, ReadOnly: true}}
	try := func(s transport.Session, name string, want *transport.Export, content string) error {
		r, info, err := s.Open(ctx, name)
		if want == nil {
			if r != nil || !errors.Is(err, region.ErrNotFound) {
				return fmt.Errorf("Open(%.20q) = %v, %v; want %v", name, r, err, region.ErrNotFound)
			}
			return nil
		}
		if err != nil || info != want.Info || r.Size() != want.Info.Size {
			return fmt.Errorf("Open(%.20q) = %+v, %v; want %+v, nil", name, info, err, want.Info)
		}
		return errors.Join(read(ctx, r, []byte(content), 0), r.Close())
	}
	both, single, none := e.dial(transport.Exports{one, two}), e.dial(transport.Exports{one}), e.dial(transport.Exports{})
	err := errors.Join(
		try(both, "a/1", &one, "one"), try(both, long, &two, "other"), try(both, "a/1", &one, "one"),
		try(both, "", nil, ""), try(both, "a", nil, ""), try(both, "A/1", nil, ""), try(both, "a/1\x00", nil, ""),
		try(single, "", &one, "one"), try(single, "b", nil, ""),
		try(none, "", nil, ""), try(none, "a/1", nil, ""),
	)
	if _, _, tooLong := both.Open(ctx, long+"l"); tooLong == nil {
		return errors.Join(err, fmt.Errorf("a name of %d bytes could be opened; want an error", len(long)+1))
	}
	return errors.Join(err, try(both, "a/1", &one, "one"))
}

func checkModel(ctx context.Context, e *env) error {
	for _, size := range []int64{1, 4097, 300_007} {
		model := e.bytes(int(size))
		s := serve(model)
		_, r, err := e.open(ctx, s)
		if err != nil {
			return err
		}
		for range 150 {
			off, n := e.span(size, size)
			if e.rand.IntN(2) == 0 {
				p := e.bytes(int(n))
				copy(model[off:], p)
				if err := write(ctx, r, p, off); err != nil {
					return err
				}
				clear(p) // whoever keeps p keeps zeros
			} else if err := read(ctx, r, model[off:off+n], off); err != nil {
				return err
			}
		}
		if err := r.Sync(ctx); err != nil {
			return fmt.Errorf("Sync() = %w; want nil", err)
		}
		if s.count("sync") == 0 {
			return errors.New("Sync() = nil, but it did not reach the served region")
		}
		if err := same("the served region", s.content(), model); err != nil {
			return err
		}
	}
	return nil
}

func checkLarge(ctx context.Context, e *env) error {
	const size = 37<<20 + 4099
	s := serve(make([]byte, size))
	_, r, err := e.open(ctx, able{s})
	if err != nil {
		return err
	}
	model := bytes.Repeat(e.bytes(65_521), size/65_521+1)[:size]
	if err := write(ctx, r, model, 0); err != nil {
		return err
	}
	if err := same("the served region after a large write", s.content(), model); err != nil {
		return err
	}
	if err := read(ctx, r, model, 0); err != nil {
		return err
	}
	if err := read(ctx, r, model[3:size-3], 3); err != nil {
		return err
	}
	if v, ok := r.(backend.VectorReader); ok {
		vec := []backend.Vec{{P: make([]byte, 20<<20), Off: 1 << 20}, {P: make([]byte, 5), Off: 9}, {P: make([]byte, size), Off: 0}}
		if err := v.ReadVec(ctx, vec); err != nil {
			return fmt.Errorf("ReadVec of large pieces = %w; want nil", err)
		}
		for i, x := range vec {
			if err := same(fmt.Sprintf("large piece %d of ReadVec", i), x.P, model[x.Off:x.Off+int64(len(x.P))]); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkEnd(ctx context.Context, e *env) error {
	const size = 5000
	content := e.bytes(size)
	_, r, err := e.open(ctx, serve(content))
	if err != nil {
		return err
	}
	for _, off := range []int64{0, 1, size / 2, size - 1, size} {
		for _, beyond := range []int64{1, 3000, 9 << 20} {
			p := make([]byte, size-off+beyond)
			n, err := r.ReadAt(ctx, p, off)
			if int64(n) != size-off || err != io.EOF {
				return fmt.Errorf("ReadAt(off=%d, len=%d) of %d bytes = %d, %v; want %d, EOF", off, len(p), size, n, err, size-off)
			}
			if err := same("a read across the end", p[:n], content[off:]); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkRange(ctx context.Context, e *env) error {
	const size = 5000
	content := e.bytes(size)
	s := serve(content)
	_, r, err := e.open(ctx, able{s})
	if err != nil {
		return err
	}
	refused := func(what string, n int, err error) error {
		if n == 0 && errors.Is(err, region.ErrOutOfRange) {
			return nil
		}
		return fmt.Errorf("%s of %d bytes = %d, %v; want 0, %v", what, size, n, err, region.ErrOutOfRange)
	}
	for _, off := range []int64{-1, math.MinInt64, size + 1, 1 << 40, math.MaxInt64} {
		for _, k := range []int{0, 1, 9000} {
			n, err := r.ReadAt(ctx, make([]byte, k), off)
			if err := refused(fmt.Sprintf("ReadAt(off=%d, len=%d)", off, k), n, err); err != nil {
				return err
			}
		}
	}
	for _, x := range [][2]int64{
		{-1, 0}, {-1, 1}, {math.MinInt64, 1}, {size, 1}, {size - 1, 2}, {0, size + 1}, {size + 1, 0}, {math.MaxInt64, 1}, {math.MaxInt64 - 4, 10}, {0, 9 << 20},
	} {
		n, err := r.WriteAt(ctx, make([]byte, x[1]), x[0])
		if err := refused(fmt.Sprintf("WriteAt(off=%d, len=%d)", x[0], x[1]), n, err); err != nil {
			return err
		}
		if z, ok := r.(backend.Zeroer); ok {
			if err := refused(fmt.Sprintf("Zero(%d, %d)", x[0], x[1]), 0, z.Zero(ctx, x[0], x[1])); err != nil {
				return err
			}
		}
		if d, ok := r.(backend.Discarder); ok {
			if err := refused(fmt.Sprintf("Discard(%d, %d)", x[0], x[1]), 0, d.Discard(ctx, x[0], x[1])); err != nil {
				return err
			}
		}
		if v, ok := r.(backend.VectorReader); ok {
			err := v.ReadVec(ctx, []backend.Vec{{P: make([]byte, 1)}, {P: make([]byte, x[1]), Off: x[0]}})
			if err := refused(fmt.Sprintf("ReadVec of a piece (off=%d, len=%d)", x[0], x[1]), 0, err); err != nil {
				return err
			}
		}
	}
	for _, x := range [][2]int64{{0, -1}, {1, math.MinInt64}, {0, math.MaxInt64}, {1, math.MaxInt64}, {math.MaxInt64, math.MaxInt64}} {
		if z, ok := r.(backend.Zeroer); ok {
			if err := refused(fmt.Sprintf("Zero(%d, %d)", x[0], x[1]), 0, z.Zero(ctx, x[0], x[1])); err != nil {
				return err
			}
		}
	}
	if x, ok := r.(backend.Extenter); ok {
		for _, off := range []int64{-1, size + 1, math.MaxInt64, math.MinInt64} {
			_, err := x.NextData(ctx, off)
			if err := refused(fmt.Sprintf("NextData(%d)", off), 0, err); err != nil {
				return err
			}
		}
	}
	return errors.Join(same("the served region", s.content(), content), read(ctx, r, content, 0))
}

func checkReadOnly(ctx context.Context, e *env) error {
	content := e.bytes(5000)
	s := serve(content)
	sess := e.dial(transport.Exports{{Region: able{s}, Info: transport.Info{Name: "r", Size: s.Size(), ReadOnly: true}}})
	r, info, err := sess.Open(ctx, "r")
	if err != nil || !info.ReadOnly {
		return fmt.Errorf("Open(r) = %+v, %v; want a read-only region, nil", info, err)
	}
	refused := func(what string, n int, err error) error {
		if n == 0 && errors.Is(err, region.ErrReadOnly) {
			return nil
		}
		return fmt.Errorf("%s of a read-only region = %d, %v; want 0, %v", what, n, err, region.ErrReadOnly)
	}
	n, err := r.WriteAt(ctx, []byte{1, 2, 3}, 10)
	if err := refused("WriteAt", n, err); err != nil {
		return err
	}
	if z, ok := r.(backend.Zeroer); ok {
		if err := refused("Zero", 0, z.Zero(ctx, 5, 10)); err != nil {
			return err
		}
	}
	if d, ok := r.(backend.Discarder); ok {
		if err := refused("Discard", 0, d.Discard(ctx, 5, 10)); err != nil {
			return err
		}
	}
	for _, op := range []string{"write", "zero", "discard"} {
		if n := s.count(op); n > 0 {
			return fmt.Errorf("%s reached a region that is offered as read-only", op)
		}
	}
	if err := r.Sync(ctx); err != nil {
		return fmt.Errorf("Sync() of a read-only region = %w; want nil", err)
	}
	return read(ctx, r, content, 0)
}

// An op is one of the things that can be asked of a region.
type op struct {
	name string
	do   func(ctx context.Context, r transport.Region) error
}

// ops are those that r can do.
func ops(r transport.Region) []op {
	all := []op{
		{"read", func(ctx context.Context, r transport.Region) error {
			n, err := r.ReadAt(ctx, make([]byte, 100), 50)
			return clean(n, err)
		}},
		{"write", func(ctx context.Context, r transport.Region) error {
			n, err := r.WriteAt(ctx, make([]byte, 100), 1050)
			return clean(n, err)
		}},
		{"sync", func(ctx context.Context, r transport.Region) error { return r.Sync(ctx) }},
	}
	if z, ok := r.(backend.Zeroer); ok {
		all = append(all, op{"zero", func(ctx context.Context, _ transport.Region) error { return z.Zero(ctx, 2000, 10) }})
	}
	if d, ok := r.(backend.Discarder); ok {
		all = append(all, op{"discard", func(ctx context.Context, _ transport.Region) error { return d.Discard(ctx, 3000, 10) }})
	}
	if x, ok := r.(backend.Extenter); ok {
		all = append(all, op{"next data", func(ctx context.Context, _ transport.Region) error {
			_, err := x.NextData(ctx, 1)
			return err
		}})
	}
	if v, ok := r.(backend.VectorReader); ok {
		all = append(all, op{"read vec", func(ctx context.Context, _ transport.Region) error {
			return v.ReadVec(ctx, []backend.Vec{{P: make([]byte, 10), Off: 9}, {P: make([]byte, 10), Off: 99}})
		}})
	}
	return all
}

// clean is err, or what is wrong with a count that came with it.
func clean(n int, err error) error {
	if err != nil && n != 0 {
		return fmt.Errorf("count %d beside the error %v", n, err)
	}
	return err
}

func checkErrors(ctx context.Context, e *env) error {
	s := serve(e.bytes(5000))
	var now failure
	s.before = func(context.Context, string, region.Range) error { return now.get() }
	_, r, err := e.open(ctx, able{s})
	if err != nil {
		return err
	}
	for _, o := range ops(r) {
		for _, want := range append([]error{io.ErrUnexpectedEOF}, sentinels...) {
			const text = "disk 7 of shelf 12"
			fail := fmt.Errorf("%s: %w", text, want)
			now.set(fail)
			err := o.do(ctx, r)
			if slices.Contains(sentinels, want) && !errors.Is(err, want) {
				return fmt.Errorf("%s, which failed with %q, returned %v; want errors.Is(err, %v)", o.name, fail, err, want)
			}
			if err == nil || !strings.Contains(err.Error(), text) {
				return fmt.Errorf("%s, which failed with %q, returned %v; want that text", o.name, fail, err)
			}
			for _, other := range sentinels {
				if other != want && errors.Is(err, other) {
					return fmt.Errorf("%s, which failed with %q, returned an error that is also %v", o.name, fail, other)
				}
			}
		}
		now.set(errors.New(strings.Repeat("\x00\xff", 100<<10)))
		if err := o.do(ctx, r); err == nil {
			return fmt.Errorf("%s, which failed with an error of great length, returned nil", o.name)
		}
		now.set(nil)
		if err := o.do(ctx, r); err != nil {
			return fmt.Errorf("%s after failures = %w; want nil", o.name, err)
		}
	}

	cat := catalog{before: func(context.Context, string) error { return now.get() }}
	sess := e.dial(cat)
	for _, want := range sentinels {
		fail := fmt.Errorf("drawer 3: %w", want)
		now.set(fail)
		if _, _, err := sess.Open(ctx, "x"); !errors.Is(err, want) || !strings.Contains(err.Error(), "drawer 3") {
			return fmt.Errorf("the Lookup of Open failed with %q, and it returned %v", fail, err)
		}
		if _, err := sess.List(ctx); !errors.Is(err, want) || !strings.Contains(err.Error(), "drawer 3") {
			return fmt.Errorf("List, which failed with %q, returned %v", fail, err)
		}
	}
	return nil
}

func checkShort(ctx context.Context, e *env) error {
	content := e.bytes(5000)
	for _, c := range []liar{
		{n: 17, err: region.ErrUnavailable}, {n: 17, err: errors.New("head crash")}, {n: 17, err: nil}, {n: 0, err: nil}, {n: 17, err: io.EOF},
	} {
		c.served = serve(content)
		_, r, err := e.open(ctx, c)
		if err != nil {
			return err
		}
		for _, name := range []string{"ReadAt", "WriteAt"} {
			p := bytes.Repeat([]byte{dirty}, 100)
			n, err := 0, error(nil)
			if name == "ReadAt" {
				n, err = r.ReadAt(ctx, p, 9)
			} else {
				n, err = r.WriteAt(ctx, p, 9)
			}
			if n != c.n || err == nil || c.err != nil && c.err != io.EOF && !strings.Contains(err.Error(), c.err.Error()) {
				return fmt.Errorf("%s of 100 bytes, of which the served region did %d with the error %v, = %d, %v", name, c.n, c.err, n, err)
			}
			if name == "ReadAt" {
				if err := same("a short read", p[:n], content[9:9+n]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func checkLiar(ctx context.Context, e *env) error {
	content := e.bytes(5000)
	for _, n := range []int{-1, 101, math.MaxInt, math.MinInt} {
		for _, lie := range []error{nil, errors.New("why not")} {
			honest := serve(content)
			sess := e.dial(transport.Exports{
				{Region: liar{serve(content), n, lie}, Info: transport.Info{Name: "liar", Size: 5000}},
				{Region: honest, Info: transport.Info{Name: "honest", Size: 5000}},
			})
			bad, _, err := sess.Open(ctx, "liar")
			good, _, err2 := sess.Open(ctx, "honest")
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			for _, name := range []string{"ReadAt", "WriteAt"} {
				p := make([]byte, 100)
				k, err := 0, error(nil)
				if name == "ReadAt" {
					k, err = bad.ReadAt(ctx, p, 0)
				} else {
					k, err = bad.WriteAt(ctx, p, 0)
				}
				if err == nil || k < 0 || k > 100 {
					return fmt.Errorf("%s of 100 bytes, of which the served region says it did %d, = %d, %v; want a count in [0,100] and an error", name, n, k, err)
				}
			}
			if err := read(ctx, good, content, 0); err != nil {
				return fmt.Errorf("another region after that: %w", err)
			}
		}
	}
	return nil
}

func checkAbilities(ctx context.Context, e *env) error {
	const size = 300_007
	for _, has := range []bool{true, false} {
		model := make([]byte, size)
		copy(model[70_000:], e.bytes(100_000))
		s := serve(model)
		var offered transport.Region = s
		if has {
			offered = able{s}
		}
		_, r, err := e.open(ctx, offered)
		if err != nil {
			return err
		}
		reached := func(op string, before int) error {
			if has && s.count(op) == before {
				return fmt.Errorf("%s did not reach a served region that has it", op)
			}
			return nil
		}
		if x, ok := r.(backend.Extenter); ok {
			before := s.count("next data")
			for at := int64(0); ; {
				got, err := x.NextData(ctx, at)
				end := got.Off
				if err == io.EOF {
					end = size
				} else if err != nil || got.Off < at || got.Len < 1 || !region.Check(got.Off, got.Len, size) {
					return fmt.Errorf("NextData(%d) = %v, %v; want a range behind that, or EOF", at, got, err)
				}
				if i := slices.IndexFunc(model[at:end], func(c byte) bool { return c != 0 }); i >= 0 {
					return fmt.Errorf("NextData(%d) = %v, %v; but byte %d is not zero", at, got, err, at+int64(i))
				}
				if at = got.End(); err == io.EOF {
					break
				}
			}
			if _, err := x.NextData(ctx, size); err != io.EOF {
				return fmt.Errorf("NextData at the end = %v; want EOF", err)
			}
			if err := reached("next data", before); err != nil {
				return err
			}
		} else if has {
			return errors.New("the region has no NextData, which the served one has")
		}
		if v, ok := r.(backend.VectorReader); ok {
			before := s.count("read vec")
			for count := range 300 {
				vec := make([]backend.Vec, min(count, 7+count/50*1000))
				for i := range vec {
					off, n := e.span(size, 2000)
					vec[i] = backend.Vec{P: bytes.Repeat([]byte{dirty}, int(n)), Off: off}
				}
				if err := v.ReadVec(ctx, vec); err != nil {
					return fmt.Errorf("ReadVec of %d pieces = %w; want nil", len(vec), err)
				}
				for i, x := range vec {
					if err := same(fmt.Sprintf("piece %d of %d of ReadVec", i, len(vec)), x.P, model[x.Off:x.Off+int64(len(x.P))]); err != nil {
						return err
					}
				}
			}
			if err := reached("read vec", before); err != nil {
				return err
			}
		} else if has {
			return errors.New("the region has no ReadVec, which the served one has")
		}
		erase := func(name string, do func(context.Context, int64, int64) error) error {
			before := s.count(name)
			for range 20 {
				off, n := e.span(size, size)
				clear(model[off : off+n])
				if err := do(ctx, off, n); err != nil {
					return fmt.Errorf("%s(%d, %d) = %w; want nil", name, off, n, err)
				}
				if err := read(ctx, r, model, 0); err != nil {
					return fmt.Errorf("after %s(%d, %d): %w", name, off, n, err)
				}
				p := e.bytes(int(n))
				copy(model[off:], p)
				if err := write(ctx, r, p, off); err != nil {
					return err
				}
			}
			return reached(name, before)
		}
		if z, ok := r.(backend.Zeroer); ok {
			if err := erase("zero", z.Zero); err != nil {
				return err
			}
		} else if has {
			return errors.New("the region has no Zero, which the served one has")
		}
		if d, ok := r.(backend.Discarder); ok {
			if err := erase("discard", d.Discard); err != nil {
				return err
			}
		} else if has {
			return errors.New("the region has no Discard, which the served one has")
		}
		if err := same("the served region", s.content(), model); err != nil {
			return err
		}
	}
	return nil
}

func checkConcurrent(ctx context.Context, e *env) error {
	const workers, share = 64, 40_009
	content := e.bytes(workers * share)
	s := serve(content)
	_, r, err := e.open(ctx, s)
	if err != nil {
		return err
	}
	var g errgroup.Group
	for w := range workers {
		rnd := rand.New(rand.NewPCG(e.rand.Uint64(), uint64(w)))
		mine, base := content[w*share:(w+1)*share], int64(w*share)
		g.Go(func() error {
			for range 40 {
				off := rnd.IntN(share)
				part := mine[off : off+rnd.IntN(share-off)+1]
				if rnd.IntN(2) == 0 {
					c := byte(rnd.IntN(256))
					for i := range part {
						part[i] = c + byte(i)
					}
					if err := write(ctx, r, part, base+int64(off)); err != nil {
						return err
					}
				} else if err := read(ctx, r, part, base+int64(off)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return same("the served region", s.content(), content)
}

// stalls makes operations on a region wait.
type stalls struct {
	entered chan string   // one for each operation that waits
	ended   chan string   // one for each that saw its context end
	release chan struct{} // closed: nobody waits any more
	deaf    bool          // ignore the context
}

func newStalls() *stalls {
	return &stalls{entered: make(chan string, 100), ended: make(chan string, 100), release: make(chan struct{})}
}

func (s *stalls) wait(ctx context.Context, op string) error {
	done := ctx.Done()
	if s.deaf {
		done = nil
	}
	s.entered <- op
	select {
	case <-done:
		s.ended <- op
		return ctx.Err()
	case <-s.release:
		return nil
	}
}

func await[T any](e *env, what string, c <-chan T) (T, error) {
	t := time.NewTimer(e.patience)
	defer t.Stop()
	select {
	case v := <-c:
		return v, nil
	case <-t.C:
		var zero T
		return zero, fmt.Errorf("after %v still waiting for %s", e.patience, what)
	}
}

func checkStall(ctx context.Context, e *env) error {
	const count, size = 24, 5000
	content := e.bytes(size)
	s, st := serve(content), newStalls()
	s.before = func(ctx context.Context, op string, r region.Range) error {
		if r.Off >= 4000 {
			return st.wait(ctx, op)
		}
		return nil
	}
	_, r, err := e.open(ctx, s)
	if err != nil {
		return err
	}
	var g errgroup.Group
	for i := range count {
		g.Go(func() error {
			if i%2 == 0 {
				return read(ctx, r, content[4000:4100], 4000)
			}
			return write(ctx, r, content[4200:4300], 4200)
		})
	}
	for range count {
		if _, err := await(e, "requests to reach the served region", st.entered); err != nil {
			close(st.release)
			return errors.Join(err, g.Wait())
		}
	}
	others := make(chan error, 1)
	go func() {
		for range 20 {
			if err := errors.Join(read(ctx, r, content[:4000], 0), write(ctx, r, content[10:20], 10), r.Sync(ctx)); err != nil {
				others <- err
				return
			}
		}
		others <- nil
	}()
	err, slow := await(e, fmt.Sprintf("requests beside %d that stall", count), others)
	close(st.release)
	return errors.Join(err, slow, g.Wait())
}

func checkCancel(ctx context.Context, e *env) error {
	s, st := serve(e.bytes(5000)), newStalls()
	defer close(st.release)
	var stall atomic.Bool
	s.before = func(ctx context.Context, op string, _ region.Range) error {
		if stall.Load() {
			return st.wait(ctx, op)
		}
		return nil
	}
	cat := catalog{transport.Exports{{Region: able{s}, Info: transport.Info{Name: "r", Size: 5000}}}, func(ctx context.Context, op string) error {
		if stall.Load() {
			return st.wait(ctx, op)
		}
		return nil
	}}
	sess := e.dial(cat)
	r, _, err := sess.Open(ctx, "r")
	if err != nil {
		return err
	}
	all := append(ops(r),
		op{"lookup", func(ctx context.Context, _ transport.Region) error { _, _, err := sess.Open(ctx, "r"); return err }},
		op{"list", func(ctx context.Context, _ transport.Region) error { _, err := sess.List(ctx); return err }},
	)
	for _, o := range all {
		for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
			stall.Store(true)
			asked, cancel := context.WithCancel(ctx)
			if want == context.DeadlineExceeded {
				cancel()
				asked, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
			}
			got := make(chan error, 1)
			go func() { got <- o.do(asked, r) }()
			reached := "yes"
			if want == context.Canceled {
				if reached, err = await(e, o.name+" to reach the server", st.entered); err != nil {
					cancel()
					return err
				}
				cancel()
			}
			err, slow := await(e, o.name+" to return after its context had ended", got)
			cancel()
			if slow != nil {
				return slow
			}
			if !errors.Is(err, want) {
				return fmt.Errorf("%s whose context ended = %v; want %v", o.name, err, want)
			}
			if want == context.Canceled {
				if _, err := await(e, "the context of "+reached+" in the served region to end", st.ended); err != nil {
					return err
				}
			} else { // a short deadline may end before the request is sent
				select {
				case <-st.entered:
					if _, err := await(e, "the context of "+o.name+" in the served region to end", st.ended); err != nil {
						return err
					}
				default:
				}
			}
			stall.Store(false)
			gone, cancel := context.WithCancel(ctx)
			cancel()
			if err := o.do(gone, r); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s with a cancelled context = %v; want nil or %v", o.name, err, context.Canceled)
			}
			if err := o.do(ctx, r); err != nil {
				return fmt.Errorf("%s after another was cancelled = %w; want nil", o.name, err)
			}
			drain(st.entered)
			drain(st.ended)
		}
	}
	return nil
}

func drain[T any](c chan T) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

// late answers reads only when their context has ended, and then whole.
type late struct {
	*served
	entered, answered chan struct{}
}

func (l late) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off >= 1000 {
		l.entered <- struct{}{}
		<-ctx.Done()
		defer func() { l.answered <- struct{}{} }()
	}
	return l.served.ReadAt(context.WithoutCancel(ctx), p, off)
}

func checkGivenUp(ctx context.Context, e *env) error {
	const size = 2 << 20
	content := e.bytes(size)
	l := late{serve(content), make(chan struct{}, 100), make(chan struct{}, 100)}
	_, r, err := e.open(ctx, l)
	if err != nil {
		return err
	}
	var bufs [][]byte
	for i := range 12 {
		asked, cancel := context.WithCancel(ctx)
		p := bytes.Repeat([]byte{dirty}, 1<<20>>(i%6*3))
		done := make(chan error, 1)
		go func() {
			n, err := r.ReadAt(asked, p, 1000)
			if err == nil || n > 0 && errors.Is(err, context.Canceled) {
				err = same("a read that was given up and yet done", p[:n], content[1000:1000+n])
			} else if errors.Is(err, context.Canceled) {
				err = nil
			}
			done <- err
		}()
		if _, err := await(e, "a read to reach the served region", l.entered); err != nil {
			cancel()
			return err
		}
		cancel()
		err, slow := await(e, "a read that was given up", done)
		if err := errors.Join(err, slow); err != nil {
			return err
		}
		for k := range p {
			p[k] = dirty
		}
		bufs = append(bufs, p)
		if _, err := await(e, "the context of a read that was given up to end", l.answered); err != nil {
			return err
		}
		// This answer comes behind the late one, if that comes.
		for range 4 {
			if err := read(ctx, r, content[:1000], 0); err != nil {
				return err
			}
		}
	}
	for _, p := range bufs {
		if i := slices.IndexFunc(p, func(c byte) bool { return c != dirty }); i >= 0 {
			return fmt.Errorf("byte %d of a buffer was written to after its read had been given up", i)
		}
	}
	return nil
}

func checkLateWrite(ctx context.Context, e *env) error {
	s, st := serve(make([]byte, 5000)), newStalls()
	st.deaf = true
	var first atomic.Bool
	first.Store(true)
	again := make(chan struct{}, 1)
	s.before = func(ctx context.Context, op string, _ region.Range) error {
		if op != "write" {
			return nil
		}
		if first.Swap(false) {
			return st.wait(ctx, op)
		}
		again <- struct{}{}
		return nil
	}
	_, r, err := e.open(ctx, s)
	if err != nil {
		return err
	}
	old, next := e.bytes(1000), e.bytes(1000)
	asked, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		r.WriteAt(asked, old, 100) // given up, or late
		done <- write(ctx, r, next, 100)
	}()
	if _, err := await(e, "a write to reach the served region", st.entered); err != nil {
		return err
	}
	cancel()
	overtaken := false
	select {
	case <-again:
		overtaken = true
	case <-time.After(50 * time.Millisecond): // for what must not happen
	}
	close(st.release)
	err, slow := await(e, "a write after one that was given up", done)
	if overtaken {
		err = errors.Join(err, errors.New("a write reached the served region while an earlier one of the same bytes, which had been given up, was still being carried out"))
	}
	return errors.Join(err, slow, read(ctx, r, next, 100))
}

// wantClosed wants every operation to return ErrClosed.
func wantClosed(ctx context.Context, r transport.Region, when string) error {
	for _, o := range ops(r) {
		if err := o.do(ctx, r); !errors.Is(err, region.ErrClosed) {
			return fmt.Errorf("%s after %s = %v; want %v", o.name, when, err, region.ErrClosed)
		}
	}
	return nil
}

func checkCloseRegion(ctx context.Context, e *env) error {
	content := e.bytes(5000)
	sess, r, err := e.open(ctx, able{serve(content)})
	if err != nil {
		return err
	}
	other, _, err := sess.Open(ctx, "r")
	if err != nil {
		return err
	}
	for i := range 2 {
		if err := r.Close(); err != nil {
			return fmt.Errorf("Close() number %d = %w; want nil", i+1, err)
		}
	}
	if err := wantClosed(ctx, r, "the region's Close"); err != nil {
		return err
	}
	if got := r.Size(); got != 5000 {
		return fmt.Errorf("Size() after Close = %d; want 5000", got)
	}
	third, _, err := sess.Open(ctx, "r")
	if err != nil {
		return fmt.Errorf("opening again after another handle's Close = %w; want nil", err)
	}
	return errors.Join(read(ctx, other, content, 0), read(ctx, third, content, 0))
}

func checkCloseSession(ctx context.Context, e *env) error {
	s, st := serve(e.bytes(5000)), newStalls()
	defer close(st.release)
	var stall atomic.Bool
	s.before = func(ctx context.Context, op string, _ region.Range) error {
		if stall.Load() {
			return st.wait(ctx, op)
		}
		return nil
	}
	sess, r, err := e.open(ctx, able{s})
	if err != nil {
		return err
	}
	stall.Store(true)
	var mu sync.Mutex
	var wrong []error
	var wg sync.WaitGroup
	all := ops(r)
	for _, o := range all {
		wg.Go(func() {
			if err := o.do(ctx, r); !errors.Is(err, region.ErrClosed) {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Errorf("%s in flight during Close = %w; want %v", o.name, err, region.ErrClosed))
			}
		})
	}
	for range all {
		if _, err := await(e, "requests to reach the served region", st.entered); err != nil {
			return err
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- sess.Close() }()
	err, slow := await(e, "Close with requests in flight", closed)
	if err := errors.Join(err, slow); err != nil {
		return err
	}
	returned := make(chan struct{})
	go func() { wg.Wait(); close(returned) }()
	if _, err := await(e, "requests in flight to return after Close", returned); err != nil {
		return err
	}
	for range all {
		if _, err := await(e, "the contexts in the served region to end after Close", st.ended); err != nil {
			return err
		}
	}
	stall.Store(false)
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	if err := wantClosed(ctx, r, "the session's Close"); err != nil {
		return err
	}
	if _, _, err := sess.Open(ctx, "r"); !errors.Is(err, region.ErrClosed) {
		return fmt.Errorf("opening after Close = %v; want %v", err, region.ErrClosed)
	}
	if _, err := sess.List(ctx); !errors.Is(err, region.ErrClosed) {
		return fmt.Errorf("List after Close = %v; want %v", err, region.ErrClosed)
	}
	if err := r.Close(); err != nil {
		return fmt.Errorf("Close() of a region after its session's Close = %w; want nil", err)
	}
	if err := sess.Close(); err != nil {
		return fmt.Errorf("the second Close() = %w; want nil", err)
	}
	return nil
}
