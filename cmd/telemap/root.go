package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

const rootHelp = `telemap is mmap for anything, anywhere: it shows a remote resource to programs
as a local file, fetches only the bytes that are touched, pulls the rest in the
background and writes changes back.

BACKEND is a URL, or the path of a file:

  mem:512MiB                        memory, zeros at first
  ./disk.img, file:///dev/sdb       a file or a block device; ?size=1GiB makes a file
  dir:///srv/chunks                 one file per chunk; ?size=1GiB&chunk=64KiB makes it
  tcp://host:7070/region            a region that 'telemap serve' offers
  tcp+unix:///region?socket=PATH    the same through a unix socket
  grpc://host:7071/region           the same by gRPC
  r3map://host:1337?size=512MiB     an r3map backend service

Exit codes: 0 all went well; 1 it failed, the message says why; 2 the command line
is wrong; 130 a second SIGINT or SIGTERM stopped it at once.`

const rootExamples = `  # Serve a disk image here, use it there as if it were local
  telemap serve ./disk.img --listen tcp://127.0.0.1:7070
  telemap mount tcp://127.0.0.1:7070/disk.img ./disk

  # What can this machine do?
  telemap doctor

  # See it work in half a minute
  telemap demo`

// global are the flags that every command has.
type global struct {
	logFormat string
	logLevel  slog.Level
}

func newRoot() *cobra.Command {
	g := &global{logLevel: slog.LevelInfo}
	root := &cobra.Command{
		Use:           "telemap",
		Short:         "mmap for anything, anywhere",
		Long:          rootHelp,
		Example:       rootExamples,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVar(&g.logFormat, "log-format", "text", "log as text or json, to standard error")
	root.PersistentFlags().TextVar(&g.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{c.CommandPath(), err} })
	root.AddCommand(newServe(g), newMount(g), newCopy(g), newDoctor(), newDemo(g), newVersion())
	wrapArgs(root)
	for _, name := range []string{"log-format", "log-level"} {
		values := map[string][]string{"log-format": {"text", "json"}, "log-level": {"debug", "info", "warn", "error"}}[name]
		if err := root.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // the flag is defined a few lines above
		}
	}
	return root
}

// wrapArgs makes complaints about positional arguments, and about flags that
// exclude each other, usage errors.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err == nil {
				err = c.ValidateFlagGroups()
			}
			if err != nil {
				return &usageError{c.CommandPath(), err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// logger makes the logger that the flags ask for, writing to w.
func (g *global) logger(c *cobra.Command, w io.Writer) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: g.logLevel}
	switch g.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, &usageError{c.CommandPath(), fmt.Errorf("--log-format %q: use text or json", g.logFormat)}
}
