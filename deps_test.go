package telemap_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/telemap/telemap"

// A rule says what the packages that match a pattern may import. In a pattern *
// stands for one element of a path, and ... at the end for any number. The first
// rule whose pattern matches counts.
type rule struct {
	packages string
	imports  []string // patterns of our packages
	modules  []string // modules of others
}

// lattice is which way imports point:
//
//	region < transport, backend < pager < view < mount < telemap < cmd
//
// An implementation may import role packages on its own level, never another
// implementation. A role knows no SDK and no wire format. Moving a line needs a
// decision in docs/adr.
var lattice = []rule{
	{"region", nil, nil},

	{"transport", []string{"region"}, nil},
	{"transport/transporttest", []string{"region", "backend", "transport", "internal/testkit"}, []string{"golang.org/x/sync", "go.uber.org/goleak"}},
	{"transport/inproc", []string{"region", "backend", "transport"}, nil},
	{"transport/tcp", []string{"region", "backend", "transport"}, []string{"golang.org/x/sync"}},
	{"transport/grpc", []string{"region", "backend", "transport", "transport/grpc/proto/..."},
		[]string{"google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto", "golang.org/x/net", "golang.org/x/sync"}},
	{"transport/grpc/proto/...", nil, []string{"google.golang.org/grpc", "google.golang.org/protobuf"}},

	{"backend", []string{"region", "backend/internal/..."}, []string{"golang.org/x/sync"}},
	{"backend/internal/gate", nil, nil},
	{"backend/internal/...", []string{"region", "backend", "backend/internal/..."}, []string{"golang.org/x/sys"}},
	{"backend/backendtest", []string{"region", "backend", "internal/testkit"}, []string{"golang.org/x/sync"}},
	{"backend/remote", []string{"region", "backend", "transport"}, nil},
	// chunked is the shared half of stores that know whole chunks only.
	{"backend/dir", []string{"region", "backend", "backend/chunked", "backend/internal/..."}, []string{"golang.org/x/sync", "golang.org/x/sys"}},
	{"backend/*", []string{"region", "backend", "backend/internal/..."}, []string{"golang.org/x/sync", "golang.org/x/sys", "golang.org/x/time"}},

	{"transfer", []string{"region", "backend"}, []string{"golang.org/x/sync"}},
	{"pager", []string{"region", "backend"}, []string{"golang.org/x/sync", "golang.org/x/sys"}},

	{"view", []string{"region"}, nil},
	{"view/file", []string{"region", "view", "internal/linux"}, []string{"github.com/hanwen/go-fuse/v2", "golang.org/x/sys"}},

	{"mount", []string{"region", "backend", "backend/readonly", "pager", "view", "view/*"}, nil},

	{"internal/linux", nil, []string{"golang.org/x/sys"}},
	{"internal/testkit", nil, []string{"go.uber.org/goleak"}},

	{".", []string{"region", "backend", "backend/*", "transport", "transport/*", "mount"}, []string{"github.com/dustin/go-humanize"}},

	{"internal/*", []string{".", "region", "backend", "pager", "view/file", "internal/linux"}, []string{"github.com/dustin/go-humanize", "golang.org/x/sys"}},
	{"cmd/telemap", []string{"..."}, []string{
		"github.com/dustin/go-humanize", "github.com/prometheus/client_golang", "github.com/schollz/progressbar/v3",
		"github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/sync", "golang.org/x/sys", "golang.org/x/term",
	}},
	{"e2e", nil, nil},
	{"bench/...", []string{"..."}, []string{"github.com/dustin/go-humanize", "golang.org/x/sync", "golang.org/x/sys"}},
	// Examples are what users can write; allowed keeps internal ones from them.
	{"examples/*", []string{"..."}, nil},
}

// testOnly are the packages that only tests may import, and suites whose rule
// names them.
var testOnly = []string{"internal/testkit", "*/*test"}

// A listed is what go list says about one of our packages.
type listed struct {
	ImportPath, Dir, Name             string
	GoFiles, CgoFiles, IgnoredGoFiles []string
	Imports, Deps                     []string

	path string // inside the module, "." for its root
}

// goList lists packages as they are built for goos.
func goList(goos string, args ...string) ([]listed, error) {
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,IgnoredGoFiles,Imports,Deps"}, args...)...)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, &stderr)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		p.path = inside(p.ImportPath)
		all = append(all, p)
	}
}

// ours lists our packages as they are built here.
var ours = sync.OnceValues(func() ([]listed, error) { return goList(runtime.GOOS, "./...") })

// inside is an import path of ours relative to the module, "" for another's.
func inside(importPath string) string {
	if importPath == module {
		return "."
	}
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return rest
}

func matches(pattern, name string) bool {
	if head, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(name+"/", head)
	}
	ok, err := path.Match(pattern, name)
	if err != nil {
		panic(err)
	}
	return ok
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func ruleOf(name string) (rule, bool) {
	for _, r := range lattice {
		if matches(r.packages, name) {
			return r, true
		}
	}
	return rule{}, false
}

// allowed returns why p must not import what, or nothing.
func allowed(p, what string, r rule) string {
	name := inside(what)
	if name == "" {
		if first, _, _ := strings.Cut(what, "/"); !strings.Contains(first, ".") {
			return "" // the standard library
		}
		if !slices.ContainsFunc(r.modules, func(m string) bool { return what == m || strings.HasPrefix(what, m+"/") }) {
			return "which is none of the modules it may use"
		}
		return ""
	}
	if matchesAny(testOnly, name) && !slices.Contains(r.imports, name) {
		return "which is for tests only"
	}
	if strings.HasPrefix(p, "examples/") && strings.Contains("/"+name+"/", "/internal/") {
		return "which is internal, and examples are what users can write"
	}
	if !matchesAny(r.imports, name) {
		return "which is not below it"
	}
	return ""
}

func TestImports(t *testing.T) {
	used := map[string]bool{}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		all, err := goList(goos, "./...")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			r, ok := ruleOf(p.path)
			if !ok {
				t.Errorf("package %s has no place in the lattice: give it a rule in deps_test.go", p.path)
				continue
			}
			used[r.packages] = true
			for _, what := range p.Imports {
				if why := allowed(p.path, what, r); why != "" {
					t.Errorf("GOOS=%s: package %s imports %s, %s", goos, p.path, what, why)
				}
			}
			for _, pattern := range r.imports {
				if !slices.ContainsFunc(all, func(p listed) bool { return matches(pattern, p.path) }) {
					t.Errorf("the rule of %s allows %s, which is no package any more", r.packages, pattern)
				}
			}
		}
	}
	for _, r := range lattice {
		if !used[r.packages] {
			t.Errorf("the rule of %s matches no package any more", r.packages)
		}
	}
}

// The check itself must see what it is for.
func TestImportsSeesDefects(t *testing.T) {
	for _, c := range []struct{ p, what string }{
		{"region", module + "/backend"},
		{"region", "golang.org/x/sys/unix"},
		{"backend/mem", module + "/backend/file"},
		{"backend/file", module + "/transport"},
		{"backend/retry", module + "/backend/chunked"},
		{"transport/tcp", module + "/transport/grpc"},
		{"pager", module + "/view"},
		{"pager", module + "/backend/mem"},
		{"pager", module + "/internal/testkit"},
		{"view/file", module + "/pager"},
		{"mount", module + "/transport/tcp"},
		{"mount", module + "/backend/backendtest"},
		{".", module + "/pager"},
		{".", "github.com/spf13/cobra"},
		{"backend", "google.golang.org/grpc"},
		{"cmd/telemap", module + "/internal/testkit"},
		{"bench", module + "/backend/backendtest"},
		{"examples/serve", module + "/internal/demo"},
	} {
		r, ok := ruleOf(c.p)
		if !ok {
			t.Errorf("package %s has no rule", c.p)
		} else if allowed(c.p, c.what, r) == "" {
			t.Errorf("package %s may import %s; want a refusal", c.p, c.what)
		}
	}
}

// What a program gets into its binary with the library, directly or not.
func TestImportsOfTheLibraryStaySmall(t *testing.T) {
	all, err := goList(runtime.GOOS, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range all[0].Deps {
		for _, not := range []string{"testing", "github.com/spf13", "github.com/prometheus", "github.com/schollz", "go.uber.org/goleak", "modernc.org", "net/http/pprof"} {
			if dep == not || strings.HasPrefix(dep, not+"/") {
				t.Errorf("the library depends on %s", dep)
			}
		}
	}
}

// parseAll parses every file of p that is no test, for whichever system it is.
func parseAll(t *testing.T, p listed) (*token.FileSet, map[string]*ast.File) {
	t.Helper()
	fset, files := token.NewFileSet(), map[string]*ast.File{}
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.IgnoredGoFiles) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if !ignored(f) {
			files[name] = f
		}
	}
	return fset, files
}

// ignored reports whether f is built by nobody, such as a program for go run.
func ignored(f *ast.File) bool {
	for _, g := range f.Comments {
		for _, c := range g.List {
			if x, err := constraint.Parse(c.Text); err == nil && x.String() == "ignore" {
				return true
			}
		}
	}
	return false
}

func TestEveryPackageHasOneComment(t *testing.T) {
	all, err := ours()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		_, files := parseAll(t, p)
		var with []string
		generated := true
		for name, f := range files {
			generated = generated && ast.IsGenerated(f)
			if f.Doc == nil || ast.IsGenerated(f) {
				continue
			}
			with = append(with, name)
			want := "Package " + p.Name + " "
			if p.Name == "main" {
				want = "Command " + path.Base(p.path) + " "
			}
			if text := f.Doc.Text(); !strings.HasPrefix(text, want) {
				t.Errorf("%s: the package comment starts with %.40q; want %q", filepath.Join(p.path, name), text, want)
			}
		}
		if len(with) != 1 && !generated {
			t.Errorf("package %s has %d package comments %v; want one", p.path, len(with), with)
		}
	}
}

// go doc of every public package is a manual: no exported name stands there
// without a sentence.
func TestEveryExportedNameIsDocumented(t *testing.T) {
	all, err := ours()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Name == "main" || strings.Contains("/"+p.path+"/", "/internal/") {
			continue
		}
		fset, files := parseAll(t, p)
		list := slices.DeleteFunc(slices.Collect(maps.Values(files)), ast.IsGenerated)
		if len(list) == 0 {
			continue
		}
		d, err := doc.NewFromFiles(fset, list, p.ImportPath)
		if err != nil {
			t.Fatal(err)
		}
		missing := func(name, text string) {
			if ast.IsExported(name) && strings.TrimSpace(text) == "" {
				t.Errorf("%s.%s has no comment", p.path, name)
			}
		}
		values := func(vs []*doc.Value) {
			for _, v := range vs {
				for _, s := range v.Decl.Specs {
					s := s.(*ast.ValueSpec)
					for _, n := range s.Names {
						missing(n.Name, v.Doc+s.Doc.Text()+s.Comment.Text())
					}
				}
			}
		}
		values(d.Consts)
		values(d.Vars)
		for _, f := range d.Funcs {
			missing(f.Name, f.Doc)
		}
		for _, y := range d.Types {
			missing(y.Name, y.Doc)
			values(y.Consts)
			values(y.Vars)
			for _, f := range y.Funcs {
				missing(f.Name, f.Doc)
			}
			for _, m := range y.Methods {
				switch m.Name {
				case "Error", "Unwrap", "String", "Is":
				default:
					missing(m.Name, m.Doc)
				}
			}
		}
	}
}

// documents are the texts whose links and names are checked.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && p != "." && strings.HasPrefix(e.Name(), ".") && e.Name() != ".ci":
			return filepath.SkipDir
		case strings.HasSuffix(p, ".md"):
			b, err := os.ReadFile(p)
			texts[filepath.ToSlash(p)] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(texts) < 10 {
		t.Fatalf("found %d documents; want those of docs at least", len(texts))
	}
	return texts
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	testName = regexp.MustCompile("`((?:Test|Fuzz|Benchmark|Example)[A-Z]\\w*)")
	pkgName  = regexp.MustCompile("`((?:region|backend|transport|pager|view|mount|transfer|internal|cmd|e2e|bench|examples)(?:/[a-z0-9_]+)*)/?`")
	target   = regexp.MustCompile("`make ([a-z]+)")
)

func TestDocumentsNameWhatExists(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		b, err := os.ReadFile(p)
		for _, m := range regexp.MustCompile(`(?m)^func (\w+)\(`).FindAllSubmatch(b, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			to, _, _ := strings.Cut(m[1], "#")
			if to == "" || strings.Contains(to, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), to)); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
		for _, m := range testName.FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				t.Errorf("%s names %s, which is no test any more", name, m[1])
			}
		}
		for _, m := range pkgName.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s names %s, which is no directory", name, m[1])
			}
		}
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				t.Errorf("%s names make %s, which is no target", name, m[1])
			}
		}
	}
}

// The library example of the README is the one that compiles.
func TestDocumentedExampleCompiles(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := strings.Cut(string(source), "\nfunc Example() {\n")
	if !ok {
		t.Fatal("example_test.go has no func Example()")
	}
	body, _, _ = strings.Cut(body, "\n}\n")
	body = strings.ReplaceAll("\n"+body, "\n\t", "\n")[1:]
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+body+"\n```") {
		t.Errorf("README.md does not hold the body of Example:\n%s", body)
	}
}

// docs/cli.md has every command and every flag, and no other.
func TestDocumentedFlagsExist(t *testing.T) {
	text, err := os.ReadFile("docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(text), "\n## ")[1:] {
		head, body, _ := strings.Cut(s, "\n")
		if name, ok := strings.CutPrefix(head, "telemap "); ok {
			sections[name] = body
		}
	}
	program := filepath.Join(t.TempDir(), "telemap")
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/telemap").CombinedOutput(); err != nil {
		t.Fatalf("build telemap: %v\n%s", err, out)
	}
	help := func(args ...string) string {
		out, err := exec.Command(program, append(args, "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("telemap %v --help: %v\n%s", args, err, out)
		}
		return string(out)
	}
	commands := map[string]bool{}
	_, list, _ := strings.Cut(help(), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "help" {
			commands[f[0]] = true
		}
	}
	for name := range commands {
		if _, ok := sections[name]; !ok {
			t.Errorf("docs/cli.md has no section %q", "telemap "+name)
		}
	}
	for name, body := range sections {
		if !commands[name] {
			t.Errorf("docs/cli.md describes %q, which is no command", "telemap "+name)
			continue
		}
		if name == "completion" {
			continue // cobra's own, a command per shell
		}
		_, flags, _ := strings.Cut(help(name), "\nFlags:\n")
		flags, _, _ = strings.Cut(flags, "\nGlobal Flags:")
		known := map[string]bool{"--log-format": true, "--log-level": true, "--help": true}
		for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )?(--[a-z0-9-]+)`).FindAllStringSubmatch(flags, -1) {
			known[m[1]] = true
			if m[1] != "--help" && !strings.Contains(body, "`"+m[1]) {
				t.Errorf("docs/cli.md does not say what telemap %s %s does", name, m[1])
			}
		}
		for _, m := range regexp.MustCompile("`(--[a-z0-9-]+)").FindAllStringSubmatch(body, -1) {
			if !known[m[1]] {
				t.Errorf("docs/cli.md: telemap %s has no %s", name, m[1])
			}
		}
	}
}
