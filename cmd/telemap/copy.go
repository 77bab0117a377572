package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/transfer"
)

const copyHelp = `Cp makes the backend DST hold the bytes of the backend SRC, many ranges at a time.
Holes are skipped where SRC knows them, and zeros are not written where DST can be
told instead. A DST that does not exist is made where its kind allows that (file:,
dir:) with the size of SRC; one that exists must have that size.`

const copyExamples = `  # Fetch a served region into a sparse file
  telemap cp tcp://127.0.0.1:7070/disk.img ./copy.img

  # Turn a file into a directory of chunks
  telemap cp ./disk.img 'dir:///srv/disk?chunk=1MiB'`

func newCopy(g *global) *cobra.Command {
	var (
		o        transfer.Options
		block    sizeFlag
		asJSON   bool
		progress bool
	)
	c := &cobra.Command{
		Use:     "cp SRC DST",
		Short:   "Copy between any two backends",
		Long:    copyHelp,
		Example: copyExamples,
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			ctx := c.Context()
			log, err := g.logger(c, c.ErrOrStderr())
			if err != nil {
				return err
			}
			src, err := telemap.Opener{ReadOnly: true, Logger: log}.Open(ctx, args[0])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, src.Close()) }()
			dst, err := telemap.Opener{Create: src.Size(), Logger: log}.Open(ctx, args[1])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, dst.Close()) }()
			o.Block = int64(block)
			bar := newProgress(c.ErrOrStderr(), progress && !asJSON, "copying", src.Size())
			o.Progress = func(s transfer.Stats) { bar.set(s.Covered()) }
			start := time.Now()
			s, err := transfer.Copy(ctx, dst, src, o)
			bar.finish(err == nil)
			if err != nil {
				return fmt.Errorf("copy %s to %s, after %s: %w", telemap.Redact(args[0]), telemap.Redact(args[1]), humanize.IBytes(uint64(s.Covered())), err)
			}
			took := time.Since(start)
			if asJSON {
				return writeJSON(c.OutOrStdout(), struct {
					transfer.Stats
					Seconds float64 `json:"seconds"`
				}{s, took.Seconds()})
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "copied %s in %v: %s of data, %s of holes, %s of zeros\n",
				humanize.IBytes(uint64(s.Size)), took.Round(time.Millisecond),
				humanize.IBytes(uint64(s.Done)), humanize.IBytes(uint64(s.Holes)), humanize.IBytes(uint64(s.Zeros)))
			return err
		},
	}
	c.Flags().IntVar(&o.Workers, "workers", 0, "ranges copied at once (default 8)")
	c.Flags().Var(&block, "block", "most bytes in one read and write (default 1 MiB)")
	c.Flags().BoolVar(&progress, "progress", true, "show a bar on a terminal, lines elsewhere")
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return c
}
