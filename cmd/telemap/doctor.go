package main

import (
	"github.com/spf13/cobra"

	"github.com/telemap/telemap/internal/probe"
)

const doctorHelp = `Doctor tries what telemap can use on this machine — FUSE, userfaultfd and each of its
features, block devices, huge pages, what works without root — and says which
mechanism each view would use and why. It changes nothing.`

func newDoctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "doctor",
		Short:   "Say what this machine can do",
		Long:    doctorHelp,
		Example: "  telemap doctor\n  telemap doctor --json | jq '.views'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r := probe.Run(c.Context())
			if asJSON {
				return writeJSON(c.OutOrStdout(), r)
			}
			return r.WriteText(c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
