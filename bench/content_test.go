package main

import (
	"bytes"
	"testing"
)

func TestTraceDoesNotDependOnTheCut(t *testing.T) {
	content := make([]byte, 5*page+123)
	fillRandom(content, 1)
	want := traceOf(content, 0, int64(len(content)))
	for _, step := range []int{1, 100, page - 1, page, page + 1, 3 * page, len(content)} {
		var got trace
		for off := 0; off < len(content); off += step {
			got.add(content[off:min(off+step, len(content))])
		}
		if got != want {
			t.Errorf("in steps of %d: trace %+v; want %+v", step, got, want)
		}
	}
}

func TestTraceSeesAWrongPage(t *testing.T) {
	content := make([]byte, 4*page)
	fillRandom(content, 1)
	want := traceOf(content, 0, int64(len(content)))
	copy(content[page:], content[2*page:3*page]) // a page in the wrong place
	if traceOf(content, 0, int64(len(content))) == want {
		t.Error("a page in the wrong place has the same trace")
	}
}

func TestCompare(t *testing.T) {
	content := make([]byte, 3<<20+17)
	fillRandom(content, 2)
	wrong := bytes.Clone(content)
	wrong[len(wrong)-1]++
	for _, c := range []struct {
		name string
		got  []byte
		ok   bool
	}{
		{"the same", content, true},
		{"a wrong byte", wrong, false},
		{"too short", content[:len(content)-1], false},
		{"too long", append(bytes.Clone(content), 0), false},
		{"nothing", nil, false},
	} {
		if err := compare(bytes.NewReader(c.got), content); (err == nil) != c.ok {
			t.Errorf("%s: compare = %v", c.name, err)
		}
	}
}
