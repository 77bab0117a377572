package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/transport"
)

const serveHelp = `Serve offers backends to other hosts as named regions. A region is called by the
last element of its backend's path, or NAME if given as NAME=BACKEND.

It serves until SIGINT or SIGTERM, then lets requests in flight finish and syncs
every backend.`

const serveExamples = `  # One file, on the default address
  telemap serve ./disk.img

  # A new 1 GiB file, by both protocols
  telemap serve './disk.img?size=1GiB' --listen tcp://127.0.0.1:7070 --listen grpc://127.0.0.1:7071

  # Memory under a name of its own, through a unix socket
  telemap serve scratch=mem:512MiB --listen tcp+unix:/run/telemap.sock

  # To other hosts: TLS, and clients must show a certificate
  telemap serve ./disk.img --listen tcp://0.0.0.0:7070 --tls-cert srv.pem --tls-key srv.key --tls-ca clients.pem`

type serveFlags struct {
	listen   []string
	readOnly bool
	size     sizeFlag
	tls      tlsFlags
	insecure bool
	metrics  string
	json     bool
}

func newServe(g *global) *cobra.Command {
	f := &serveFlags{}
	c := &cobra.Command{
		Use:     "serve [NAME=]BACKEND...",
		Short:   "Offer backends to other hosts",
		Long:    serveHelp,
		Example: serveExamples,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := g.logger(c, c.ErrOrStderr())
			if err != nil {
				return err
			}
			return f.run(c, args, log)
		},
	}
	c.Flags().StringArrayVarP(&f.listen, "listen", "l", []string{"tcp://127.0.0.1:7070"}, "where to listen: tcp://, grpc://, tcp+unix:PATH, grpc+unix:PATH; may be repeated")
	c.Flags().BoolVar(&f.readOnly, "read-only", false, "refuse writes")
	c.Flags().Var(&f.size, "size", "size of files and directories to be made if they do not exist")
	f.tls.add(c.Flags(), "authority that clients' certificates must come from")
	c.Flags().BoolVar(&f.insecure, "insecure", false, "allow listening beyond this host without TLS and client certificates")
	c.Flags().StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics at http://ADDR/metrics")
	c.Flags().BoolVar(&f.json, "json", false, "print where it listens as JSON lines")
	return c
}

func (f *serveFlags) run(c *cobra.Command, args []string, log *slog.Logger) (err error) {
	ctx := c.Context()
	tlsConfig, err := f.tls.server()
	if err != nil {
		return &usageError{c.CommandPath(), err}
	}
	opener := telemap.Opener{ReadOnly: f.readOnly, Create: int64(f.size), Logger: log}
	var exports []transport.Export
	defer func() {
		for _, x := range exports {
			err = errors.Join(err, x.Region.Sync(context.WithoutCancel(ctx)), x.Region.Close())
		}
	}()
	for _, arg := range args {
		name, rawURL := splitName(arg)
		b, err := opener.Open(ctx, rawURL)
		if err != nil {
			return err
		}
		exports = append(exports, telemap.Export(name, b))
		if err := uniqueNames(exports); err != nil {
			return &usageError{c.CommandPath(), err}
		}
	}
	server := telemap.Server{TLS: tlsConfig, Insecure: f.insecure, Logger: log}
	stats := &serverMetrics{}
	for _, rawURL := range f.listen {
		l, err := server.Listen(ctx, rawURL)
		if err != nil {
			return err
		}
		stats.listeners = append(stats.listeners, l)
		defer l.Close() // Serve has done it, unless it never ran
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range stats.listeners {
		g.Go(func() error { return l.Serve(ctx, exports...) })
		for _, x := range exports {
			if err := f.announce(c, l.URL(x.Info.Name), x); err != nil {
				return err
			}
		}
	}
	if f.metrics != "" {
		if err := serveMetrics(ctx, g, f.metrics, f.insecure, log, stats); err != nil {
			return err
		}
	}
	return g.Wait()
}

// splitName takes NAME=BACKEND apart. An equals sign inside a URL is not one.
func splitName(arg string) (name, rawURL string) {
	name, rest, ok := strings.Cut(arg, "=")
	if ok && name != "" && !strings.ContainsAny(name, ":/?.") {
		return name, rest
	}
	return telemap.Name(arg), arg
}

func uniqueNames(exports []transport.Export) error {
	seen := map[string]bool{}
	for _, x := range exports {
		if seen[x.Info.Name] {
			return fmt.Errorf("two regions are called %q: name one, as in other=%s", x.Info.Name, x.Info.Name)
		}
		seen[x.Info.Name] = true
	}
	return nil
}

func (f *serveFlags) announce(c *cobra.Command, url string, x transport.Export) error {
	if f.json {
		return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{
			"event": "serving", "url": url, "name": x.Info.Name, "size_bytes": x.Info.Size, "read_only": x.Info.ReadOnly,
		})
	}
	access := "read-write"
	if x.Info.ReadOnly {
		access = "read-only"
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "serving %s (%s, %s)\n", url, humanize.IBytes(uint64(x.Info.Size)), access)
	return err
}
