package probe

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/telemap/telemap/internal/testkit"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := json.NewEncoder(os.Stdout).Encode(Run(context.Background())); err != nil {
			panic(err)
		}
		return
	}
	testkit.Main(m)
}

// childVariable, when set, makes this program print a report and end.
const childVariable = "TELEMAP_TEST_PROBE"

// consistent checks what holds of every report.
func consistent(t *testing.T, r Report) {
	t.Helper()
	implies := func(a, b string) {
		if r.Entry(a).Available && !r.Entry(b).Available {
			t.Errorf("%s is available but %s is not: %+v", a, b, r.Entry(b))
		}
	}
	seen := map[string]bool{}
	for _, e := range r.Entries {
		if seen[e.Name] {
			t.Errorf("two entries are named %s", e.Name)
		}
		seen[e.Name] = true
		if !e.Available && e.Detail == "" {
			t.Errorf("%s is not available and does not say why", e.Name)
		}
		if e.Available && e.Hint != "" {
			t.Errorf("%s is available and yet has the hint %q", e.Name, e.Hint)
		}
		if strings.Contains(e.Detail, "the probe failed") {
			t.Errorf("%s: %s", e.Name, e.Detail)
		}
		if part, ok := strings.CutPrefix(e.Name, "userfaultfd/"); ok && e.Available && part != "" {
			implies(e.Name, "userfaultfd")
		}
	}
	implies("dirty-tracking", "pagemap-scan")
	implies("dirty-tracking", "userfaultfd/WP_ASYNC")
	implies("userfaultfd/any-fault", "userfaultfd")
	if r.Entry("fuse").Available && !r.Entry("fuse/mount").Available && !r.Entry("fuse/fusermount").Available {
		t.Error("fuse is available but nothing can mount")
	}
	if len(r.Views) != 3 {
		t.Errorf("%d views; want slice, file and block", len(r.Views))
	}
	for i, v := range r.Views {
		if v.Name != views[i].name || v.Why == "" {
			t.Errorf("view %+v", v)
		}
		for k, m := range views[i].mechanisms {
			works := true
			for _, name := range m.needs {
				works = works && r.Entry(name).Available
			}
			switch {
			case k < len(v.Better) && (works || v.Better[k].Mechanism != m.name || v.Better[k].Why == ""):
				t.Errorf("view %s rejects %+v; works: %v", v.Name, v.Better[k], works)
			case k == len(v.Better) && (!works || v.Mechanism != m.name):
				t.Errorf("view %s chose %q before %q; works: %v", v.Name, v.Mechanism, m.name, works)
			}
		}
	}
	for name, want := range map[string]bool{"slice": false, "file": true, "block": false} {
		v := r.View(name)
		if v.Implemented != want || v.Usable() && !want || !want && !strings.Contains(v.Why, "does not have this view yet") {
			t.Errorf("view %s: %+v; implemented: %v", name, v, want)
		}
	}
	var again Report
	b, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal(b, &again)
	}
	if err != nil || !reflect.DeepEqual(r, again) {
		t.Errorf("the report does not survive JSON: %v", err)
	}
}

func TestReportIsConsistent(t *testing.T) {
	began := time.Now()
	r := Run(t.Context())
	if took := time.Since(began); took > Limit {
		t.Errorf("Run took %v", took)
	}
	consistent(t, r)
	if r.OS != runtime.GOOS || r.Arch != runtime.GOARCH || r.UID != os.Geteuid() {
		t.Errorf("system and user are %s/%s, %d", r.OS, r.Arch, r.UID)
	}
}

func TestRunWithoutTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := Run(ctx)
	consistent(t, r)
	for _, e := range r.Entries {
		if e.Available {
			t.Errorf("%s is available without a probe", e.Name)
		}
	}
}

func TestChoice(t *testing.T) {
	all := func(names ...string) *Report {
		r := &Report{}
		for _, n := range names {
			r.Entries = append(r.Entries, Entry{Name: n, Available: true})
		}
		return r
	}
	for _, c := range []struct {
		view, mechanism string
		better          int
		has             *Report
	}{
		{"slice", "memfd and userfaultfd, dirty pages by asynchronous write-protection", 0,
			all("memfd", "userfaultfd/any-fault", "userfaultfd/MISSING_SHMEM", "dirty-tracking", "fuse")},
		{"slice", "memfd and userfaultfd, dirty pages by write faults", 1,
			all("memfd", "userfaultfd/any-fault", "userfaultfd/MISSING_SHMEM", "userfaultfd/WP_HUGETLBFS_SHMEM", "fuse")},
		{"slice", "mmap of a FUSE file", 2, all("memfd", "fuse")},
		{"slice", "memfd and userfaultfd, faults of user mode only", 3, all("memfd", "userfaultfd", "userfaultfd/MISSING_SHMEM", "dirty-tracking")},
		{"slice", "", 4, all("memfd")},
		{"file", "FUSE by mount(2)", 0, all("fuse", "fuse/mount", "fuse/fusermount")},
		{"file", "FUSE by fusermount", 1, all("fuse", "fuse/fusermount")},
		{"file", "", 2, all("fuse/fusermount")},
		{"block", "ublk", 0, all("ublk", "nbd", "cap-sys-admin", "fuse", "loop")},
		{"block", "kernel NBD", 1, all("nbd", "cap-sys-admin", "fuse", "loop")},
		{"block", "loop device on a FUSE file", 2, all("nbd", "fuse", "loop")},
		{"block", "", 3, all("nbd", "loop")},
	} {
		for _, o := range views {
			if o.name != c.view {
				continue
			}
			if v := o.choose(c.has); v.Mechanism != c.mechanism || len(v.Better) != c.better {
				t.Errorf("%s = %q after %d better ones; want %q after %d", c.view, v.Mechanism, len(v.Better), c.mechanism, c.better)
			}
		}
	}
}

func TestPanicOfAProbeIsAnEntry(t *testing.T) {
	var r Report
	r.add(t.Context(), "x", func() Entry { panic("bug") })
	if e := r.Entry("x"); e.Available || !strings.Contains(e.Detail, "bug") {
		t.Errorf("a probe that panics gives %+v", e)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestWriteText(t *testing.T) {
	r := Report{OS: "plan9", Arch: "mips", UID: 7, Entries: []Entry{
		{Name: "fuse", Available: true, Detail: "opened"},
		{Name: "fuse/mount", Detail: "not permitted", Hint: "be root"},
		{Name: "limit/x", Available: true},
	}}
	for _, v := range views {
		r.Views = append(r.Views, v.choose(&r))
	}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"plan9/mips", "slice  not yet; would be mmap of a FUSE file", "file   none", "not FUSE by mount(2)", "fuse/mount: not permitted",
		"  mount  no   not permitted → be root", "limit/x",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &b)
		}
	}
	if err := r.WriteText(full{}); err == nil {
		t.Error("WriteText to a full disk succeeded")
	}
}
