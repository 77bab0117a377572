package probe

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Limit is the longest that [Run] takes.
const Limit = 2 * time.Second

// A Report is what this machine can do.
type Report struct {
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	Kernel string `json:"kernel,omitempty"` // the release, as uname -r
	UID    int    `json:"uid"`              // the effective one; -1 where there is none
	// Capabilities are those in effect that telemap can make use of.
	Capabilities []string `json:"capabilities"`
	Entries      []Entry  `json:"entries"`
	Views        []View   `json:"views"`
}

// An Entry is one thing that a machine may or may not have.
type Entry struct {
	// Name is stable: "fuse", "userfaultfd", "userfaultfd/WP_ASYNC". What follows
	// a slash is a part of what stands before.
	Name      string `json:"name"`
	Available bool   `json:"available"`
	// Detail says what was found, or why it is not available.
	Detail string `json:"detail,omitempty"`
	// Hint says what to do to get it.
	Hint string `json:"hint,omitempty"`
}

// A View is one way to show a region to a program: "slice", "file" or "block".
type View struct {
	Name string `json:"name"`
	// Implemented says that this version of telemap has the view at all. Without
	// it the rest tells what this machine would be good for.
	Implemented bool `json:"implemented"`
	// Mechanism is the best that works here; empty if none does.
	Mechanism string `json:"mechanism,omitempty"`
	// Why says why it was chosen, or why there is none.
	Why string `json:"why"`
	// Better are the preferred mechanisms that do not work here, best first.
	Better []Rejected `json:"better,omitempty"`
}

// Usable reports whether the view can be had, from this telemap and here.
func (v View) Usable() bool { return v.Implemented && v.Mechanism != "" }

// A Rejected is a mechanism that does not work here, and what it lacks.
type Rejected struct {
	Mechanism string `json:"mechanism"`
	Why       string `json:"why"`
}

// implemented lists the views that this version of telemap has.
var implemented = map[string]bool{"file": true}

// Run probes the machine. It returns what it has found by when ctx ends or the
// time is up; the rest is then not available, and says so.
func Run(ctx context.Context) Report {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	r := Report{OS: runtime.GOOS, Arch: runtime.GOARCH, Capabilities: []string{}, Entries: []Entry{}}
	run(ctx, &r)
	for _, v := range views {
		r.Views = append(r.Views, v.choose(&r))
	}
	return r
}

// Entry is the entry of that name. One that was not probed is not available.
func (r *Report) Entry(name string) Entry {
	for _, e := range r.Entries {
		if e.Name == name {
			return e
		}
	}
	return Entry{Name: name, Detail: "not probed on this system"}
}

func (r *Report) has(name string) bool {
	return slices.ContainsFunc(r.Entries, func(e Entry) bool { return e.Name == name })
}

// View is the view of that name.
func (r *Report) View(name string) View {
	for _, v := range r.Views {
		if v.Name == name {
			return v
		}
	}
	return View{Name: name, Why: "no such view"}
}

// add probes one thing; a probe that panics has found that the thing is broken.
func (r *Report) add(ctx context.Context, name string, try func() Entry) {
	e := func() (e Entry) {
		defer func() {
			if p := recover(); p != nil {
				e = Entry{Detail: fmt.Sprintf("the probe failed: %v", p)}
			}
		}()
		if ctx.Err() != nil {
			return Entry{Detail: "not probed, time was up"}
		}
		return try()
	}()
	e.Name = name
	r.Entries = append(r.Entries, e)
}

// A mechanism is a way to make a view; it works when all of its needs are met.
type mechanism struct {
	name  string
	needs []string // names of entries
	why   string
}

type viewOrder struct {
	name       string
	mechanisms []mechanism // best first
}

var views = []viewOrder{
	{"slice", []mechanism{
		{
			"memfd and userfaultfd, dirty pages by asynchronous write-protection",
			[]string{"memfd", "userfaultfd/any-fault", "userfaultfd/MISSING_SHMEM", "dirty-tracking"},
			"one copy of each page, faults of any process, and writes that cost no trip to user space",
		},
		{
			"memfd and userfaultfd, dirty pages by write faults",
			[]string{"memfd", "userfaultfd/any-fault", "userfaultfd/MISSING_SHMEM", "userfaultfd/WP_HUGETLBFS_SHMEM"},
			"one copy of each page and faults of any process",
		},
		{"mmap of a FUSE file", []string{"fuse"}, "the kernel's page cache stands in for the memfd"},
		{
			"memfd and userfaultfd, faults of user mode only",
			[]string{"memfd", "userfaultfd", "userfaultfd/MISSING_SHMEM"},
			"loads and stores are served; a system call on bytes that are not there yet fails with EFAULT",
		},
	}},
	{"file", []mechanism{
		{"FUSE by mount(2)", []string{"fuse", "fuse/mount"}, "this process may mount"},
		{"FUSE by fusermount", []string{"fuse", "fuse/fusermount"}, "the setuid helper mounts for anybody"},
	}},
	{"block", []mechanism{
		{"ublk", []string{"ublk"}, "a block device served by io_uring, without a socket"},
		{"kernel NBD", []string{"nbd", "cap-sys-admin"}, "a block device served over sockets"},
		{"loop device on a FUSE file", []string{"fuse", "loop"}, "a block device on top of the file view"},
	}},
}

func (o viewOrder) choose(r *Report) View {
	v := View{Name: o.name, Implemented: implemented[o.name]}
	for _, m := range o.mechanisms {
		var lacks []string
		for _, name := range m.needs {
			if e := r.Entry(name); !e.Available {
				lacks = append(lacks, fmt.Sprintf("%s: %s", name, e.Detail))
			}
		}
		if len(lacks) == 0 {
			v.Mechanism, v.Why = m.name, m.why
			break
		}
		v.Better = append(v.Better, Rejected{m.name, strings.Join(lacks, "; ")})
	}
	if v.Mechanism == "" {
		v.Why = "no mechanism works here"
	}
	if !v.Implemented {
		v.Why = "this version of telemap does not have this view yet; this machine: " + v.Why
	}
	return v
}

// WriteText prints r as a table for people. Its form may change; programs read
// the JSON.
func (r *Report) WriteText(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(out, "system\t%s/%s %s\n", r.OS, r.Arch, r.Kernel)
	rights := "none of those that telemap can use"
	if len(r.Capabilities) > 0 {
		rights = strings.Join(r.Capabilities, ", ")
	}
	fmt.Fprintf(out, "user\t%d, capabilities: %s\n", r.UID, rights)
	if err := out.Flush(); err != nil {
		return err
	}

	fmt.Fprintln(out, "\nview\tmechanism\t")
	for _, v := range r.Views {
		chosen := v.Mechanism
		switch {
		case chosen == "":
			chosen = "none"
		case !v.Implemented:
			chosen = "not yet; would be " + chosen
		}
		fmt.Fprintf(out, "%s\t%s\t%s\n", v.Name, chosen, v.Why)
		for _, b := range v.Better {
			fmt.Fprintf(out, "\t  not %s\t%s\n", b.Mechanism, b.Why)
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}

	fmt.Fprintln(out, "\nwhat\t\tdetail")
	for _, e := range r.Entries {
		has := "no"
		if e.Available {
			has = "yes"
		}
		detail := e.Detail
		if e.Hint != "" {
			detail += " → " + e.Hint
		}
		name := e.Name
		if whole, part, ok := strings.Cut(name, "/"); ok && r.has(whole) {
			name = "  " + part
		}
		fmt.Fprintf(out, "%s\t%s\t%s\n", name, has, detail)
	}
	return out.Flush()
}
