package main

import (
	"context"

	"github.com/telemap/telemap/mount"
	"github.com/telemap/telemap/pager"
)

// Names of sides, as the column "beside" shows them.
const (
	nbdfuse = "nbdfuse"
	raw1    = "raw TCP"
	raw2    = "raw TCP, 2 connections"
	tmpfs   = "tmpfs"
)

var noPull = []string{"--no-pull"}

// groups is everything there is to measure at s. It starts nothing.
func groups(s *site) []group {
	return []group{coldRead(s), firstPage(s), warmRead(s), opening(s), coldMap(s), writing(s), library(s)}
}

type measure = func(ctx context.Context) (sample, error)

// onTCP measures f on a mount of the source through loopback TCP.
func onTCP(s *site, serve func() (string, error), f func(context.Context, *mounted) (sample, error), flags ...string) measure {
	return func(ctx context.Context) (sample, error) {
		url, err := serve()
		if err != nil {
			return nil, err
		}
		m, err := s.mount(ctx, url, flags...)
		return with(m, err, func(m *mounted) (sample, error) { return f(ctx, m) })
	}
}

// onLocal measures f on a mount whose own process has the source.
func onLocal(s *site, f func(context.Context, *mounted) (sample, error), flags ...string) measure {
	return onTCP(s, func() (string, error) { return "file:" + s.source.path, nil }, f, flags...)
}

// onPeer measures f on the source through nbdkit and nbdfuse.
func onPeer(s *site, f func(context.Context, *mounted) (sample, error)) measure {
	return func(ctx context.Context) (sample, error) {
		m, err := s.nbdfuse(ctx, s.source.path)
		return with(m, err, func(m *mounted) (sample, error) { return f(ctx, m) })
	}
}

func (s *site) serveSource() (string, error) { return s.serveFile(s.source.path) }

func coldRead(s *site) group {
	read := func(_ context.Context, m *mounted) (sample, error) { return s.coldRead(m) }
	twice := target{AtLeast: 2}
	near := target{AtLeast: 0.7}
	const (
		what   = "cold read, "
		local  = "local backend, managed" // that is, in the mount's own process
		direct = "local backend, direct"
	)
	return group{
		name: "cold-read",
		sides: []side{
			{nbdfuse, onPeer(s, read)},
			{"managed", onTCP(s, s.serveSource, read)},
			{"direct", onTCP(s, s.serveSource, read, "--direct")},
			{"managed, mem", onTCP(s, s.serveMemory, read)},
			{"direct, mem", onTCP(s, s.serveMemory, read, "--direct")},
			{local, onLocal(s, read)},
			{direct, onLocal(s, read, "--direct")},
			{raw1, func(ctx context.Context) (sample, error) { return s.rawRead(ctx, 1) }},
			{raw2, func(ctx context.Context) (sample, error) { return s.rawRead(ctx, 2) }},
		},
		rows: []row{
			{"cold-read/managed", what + "managed, tcp to tmpfs file", "managed", "GB/s", "GB/s", nbdfuse, twice},
			{"cold-read/direct", what + "direct, tcp to tmpfs file", "direct", "GB/s", "GB/s", nbdfuse, twice},
			{"cold-read/managed-mem", what + "managed, tcp to memory", "managed, mem", "GB/s", "GB/s", nbdfuse, twice},
			{"cold-read/direct-mem", what + "direct, tcp to memory", "direct, mem", "GB/s", "GB/s", nbdfuse, twice},
			{"cold-read/managed-local", what + "managed, tcp to tmpfs file", "managed", "GB/s", "GB/s", local, near},
			{"cold-read/direct-local", what + "direct, tcp to tmpfs file", "direct", "GB/s", "GB/s", direct, near},
			{"cold-read/managed-raw", what + "managed, tcp to tmpfs file", "managed", "GB/s", "GB/s", raw1, target{}},
			{"cold-read/direct-raw", what + "direct, tcp to tmpfs file", "direct", "GB/s", "GB/s", raw1, target{}},
			{"cold-read/nbdfuse-raw", what + nbdfuse, nbdfuse, "GB/s", "GB/s", raw1, target{}},
			{"cold-read/raw2", "raw TCP copy, 2 connections", raw2, "GB/s", "GB/s", raw1, target{}},
		},
	}
}

func firstPage(s *site) group {
	plain := func(_ context.Context, m *mounted) (sample, error) { return s.fileLatency(m, false) }
	random := func(_ context.Context, m *mounted) (sample, error) { return s.fileLatency(m, true) }
	const (
		advised = ", FADV_RANDOM"
		local   = "local backend, direct" // that is, in the mount's own process
	)
	g := group{
		name: "first-4k",
		sides: []side{
			{nbdfuse, onPeer(s, plain)},
			{"managed", onTCP(s, s.serveSource, plain, noPull...)},
			{"direct", onTCP(s, s.serveSource, plain, "--direct")},
			{nbdfuse + advised, onPeer(s, random)},
			{"managed" + advised, onTCP(s, s.serveSource, random, noPull...)},
			{"direct" + advised, onTCP(s, s.serveSource, random, "--direct")},
			{local, onLocal(s, plain, "--direct")},
			{raw1, s.rawLatency},
		},
	}
	for _, how := range []string{"managed", "direct"} {
		for _, a := range []struct{ id, advice string }{{"", ""}, {"-random", advised}} {
			peer := nbdfuse + a.advice
			g.rows = append(g.rows,
				row{"first-4k/" + how + a.id + "-p50", "first 4 KiB p50, " + how + a.advice, how + a.advice, "p50", "µs", peer, target{AtMost: 0.7, Limit: 60}},
				row{"first-4k/" + how + a.id + "-p99", "first 4 KiB p99, " + how + a.advice, how + a.advice, "p99", "µs", peer, target{}})
		}
	}
	g.rows = append(g.rows,
		row{"first-4k/local-p50", "first 4 KiB p50, view alone", local, "p50", "µs", nbdfuse, target{}},
		row{"first-4k/raw-p50", "first 4 KiB p50, raw TCP round trip", raw1, "p50", "µs", nbdfuse, target{}})
	return g
}

func warmRead(s *site) group {
	read := func(_ context.Context, m *mounted) (sample, error) { return s.warmRead(m.path) }
	return group{
		name: "warm-read",
		sides: []side{
			{tmpfs, func(context.Context) (sample, error) { return s.warmRead(s.source.path) }},
			{"managed", onTCP(s, s.serveSource, read)},
			{"direct", onTCP(s, s.serveSource, read, "--direct")},
			{nbdfuse, onPeer(s, read)},
		},
		rows: []row{
			{"warm-read/managed", "warm read, managed", "managed", "GB/s", "GB/s", tmpfs, target{AtLeast: 0.9}},
			{"warm-read/direct", "warm read, direct", "direct", "GB/s", "GB/s", tmpfs, target{AtLeast: 0.9}},
			{"warm-read/nbdfuse", "warm read, nbdfuse (drops its cache at open)", nbdfuse, "GB/s", "GB/s", tmpfs, target{}},
		},
	}
}

func opening(s *site) group {
	command := func(flags ...string) measure {
		return func(ctx context.Context) (sample, error) {
			return s.openCommand(func() (*mounted, error) {
				url, err := s.serveSource()
				if err != nil {
					return nil, err
				}
				return s.mount(ctx, url, flags...)
			})
		}
	}
	quick := target{Limit: 3}
	return group{
		name: "open",
		sides: []side{
			{"library, managed", func(ctx context.Context) (sample, error) { return s.openLibrary(ctx, mount.Options{}) }},
			{"library, direct", func(ctx context.Context) (sample, error) {
				return s.openLibrary(ctx, mount.Options{Direct: true})
			}},
			{"command, managed", command()},
			{"command, direct", command("--direct")},
			{nbdfuse, func(ctx context.Context) (sample, error) {
				return s.openCommand(func() (*mounted, error) { return s.nbdfuse(ctx, s.source.path) })
			}},
		},
		rows: []row{
			{"open/library-managed", "telemap.Mount, managed", "library, managed", "open", "ms", "", quick},
			{"open/library-direct", "telemap.Mount, direct", "library, direct", "open", "ms", "", quick},
			{"open/command-managed", "telemap mount, its open_seconds", "command, managed", "open", "ms", "", quick},
			{"open/command-direct", "telemap mount --direct, the same", "command, direct", "open", "ms", "", quick},
			{"open/process-managed", "telemap mount, from exec", "command, managed", "ready", "ms", nbdfuse, target{}},
		},
	}
}

func coldMap(s *site) group {
	return group{
		name: "cold-mmap",
		sides: []side{
			{nbdfuse, onPeer(s, s.coldMap)},
			{"managed", onTCP(s, s.serveSource, s.coldMap)},
			{"direct", onTCP(s, s.serveSource, s.coldMap, "--direct")},
		},
		rows: []row{
			{"cold-mmap/managed", "cold mmap read, managed", "managed", "GB/s", "GB/s", nbdfuse, target{}},
			{"cold-mmap/direct", "cold mmap read, direct", "direct", "GB/s", "GB/s", nbdfuse, target{}},
		},
	}
}

func writing(s *site) group {
	write := func(_ context.Context, m *mounted) (sample, error) { return s.writeSync(m) }
	serve := func() (string, error) {
		st, err := s.writableStore()
		if err != nil {
			return "", err
		}
		return s.serveFile(st.path)
	}
	return group{
		name: "write",
		sides: []side{
			{nbdfuse, func(ctx context.Context) (sample, error) {
				st, err := s.writableStore()
				if err != nil {
					return nil, err
				}
				m, err := s.nbdfuse(ctx, st.path)
				return with(m, err, s.writeSync)
			}},
			{"managed", onTCP(s, serve, write)},
			{"managed, no pull", onTCP(s, serve, write, noPull...)},
			{"direct", onTCP(s, serve, write, "--direct")},
			{raw1, func(ctx context.Context) (sample, error) { return s.rawWrite(ctx, s.newContent()) }},
		},
		rows: []row{
			{"write/managed", "write 64 MiB + fsync, managed", "managed", "GB/s", "GB/s", nbdfuse, target{}},
			{"write/direct", "write 64 MiB + fsync, direct", "direct", "GB/s", "GB/s", nbdfuse, target{}},
			{"write/managed-raw", "write 64 MiB + fsync, managed", "managed", "GB/s", "GB/s", raw1, target{}},
			{"write/no-pull-raw", "write 64 MiB + fsync, managed, no pull", "managed, no pull", "GB/s", "GB/s", raw1, target{}},
			{"write/direct-raw", "write 64 MiB + fsync, direct", "direct", "GB/s", "GB/s", raw1, target{}},
		},
	}
}

func library(s *site) group {
	return group{
		name: "library",
		sides: []side{
			{"pager", func(ctx context.Context) (sample, error) { return s.pagerRead(ctx, pager.Options{}) }},
			{"backend", s.backendRead},
			{raw1, func(ctx context.Context) (sample, error) { return s.rawRead(ctx, 1) }},
			{"pager hit", s.pagerHit},
			{tmpfs, s.tmpfsHit},
			{"pager 4 KiB", s.pagerLatency},
			{"backend 4 KiB", s.backendLatency},
			{"raw TCP 4 KiB", s.rawLatency},
		},
		rows: []row{
			{"library/pager-read", "pager.ReadAt, cold, tcp, no mount", "pager", "GB/s", "GB/s", raw1, target{}},
			{"library/backend-read", "backend.ReadAt, tcp, one at a time", "backend", "GB/s", "GB/s", raw1, target{}},
			{"library/pager-hit", "pager.ReadAt of 4 KiB, local", "pager hit", "ns/op", "ns/op", tmpfs, target{}},
			{"library/pager-hit-allocs", "the same, allocations", "pager hit", "allocs/op", "allocs/op", "", target{Limit: 0.01}},
			{"library/pager-4k", "pager.ReadAt of 4 KiB, cold, p50", "pager 4 KiB", "p50", "µs", "raw TCP 4 KiB", target{}},
			{"library/backend-4k", "backend.ReadAt of 4 KiB, p50", "backend 4 KiB", "p50", "µs", "raw TCP 4 KiB", target{}},
		},
	}
}
