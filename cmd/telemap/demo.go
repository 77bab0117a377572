package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/telemap/telemap/internal/demo"
	"github.com/telemap/telemap/internal/probe"
)

const demoHelp = `Demo acts out the main job on this machine, with no service, network or file of yours:
it builds a region from real bytes, serves it from one process over loopback TCP,
mounts it by another, reads it all and compares SHA-256, reads at random, writes with
write(2) and through a shared mapping, syncs, checks the bytes on the server's side,
unmounts and prints what it measured. It fails unless every check held.`

func newDemo(g *global) *cobra.Command {
	var o demo.Options
	var size sizeFlag
	c := &cobra.Command{
		Use:     "demo",
		Short:   "Serve, mount, read, write and check, in under half a minute",
		Long:    demoHelp,
		Example: "  telemap demo\n  telemap demo --input ./disk.img --size 1GiB",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Program, err = os.Executable(); err != nil {
				return err
			}
			o.Size, o.Out = int64(size), c.OutOrStdout()
			r := probe.Run(c.Context())
			if v := r.View("file"); !v.Usable() {
				o.FUSE = errors.New(v.Why)
			}
			return demo.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.Input, "input", "", "file whose bytes fill the region (default: the Go tree, else this program)")
	c.Flags().Var(&size, "size", "length of the region (default: that of the input, or 256 MiB and a bit)")
	return c
}
