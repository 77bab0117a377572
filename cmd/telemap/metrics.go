package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/telemap/telemap"
	"github.com/telemap/telemap/mount"
)

// serveMetrics answers http://addr/metrics in g until ctx ends.
func serveMetrics(ctx context.Context, g *errgroup.Group, addr string, insecure bool, log *slog.Logger, own prometheus.Collector) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	if ip := l.Addr().(*net.TCPAddr).IP; !insecure && !ip.IsLoopback() {
		return errors.Join(fmt.Errorf("serve metrics at %s: that is reachable from other hosts; use 127.0.0.1 or --insecure", addr), l.Close())
	}
	r := prometheus.NewRegistry()
	r.MustRegister(own, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second}
	log.Info("serving metrics", "url", "http://"+l.Addr().String()+"/metrics")
	g.Go(func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := s.Shutdown(end); err != nil {
			return s.Close()
		}
		return nil
	})
	return nil
}

// A figure is one number of a snapshot and how Prometheus should call it.
type figure struct {
	name, help string
	kind       prometheus.ValueType
	value      float64
}

func gauge(name, help string, v int64) figure {
	return figure{name, help, prometheus.GaugeValue, float64(v)}
}

func counter(name, help string, v int64) figure {
	return figure{name + "_total", help, prometheus.CounterValue, float64(v)}
}

func send(ch chan<- prometheus.Metric, labels prometheus.Labels, figures ...figure) {
	for _, f := range figures {
		d := prometheus.NewDesc("telemap_"+f.name, f.help, nil, labels)
		ch <- prometheus.MustNewConstMetric(d, f.kind, f.value)
	}
}

// mountMetrics collects what a mount did.
type mountMetrics struct{ m *mount.Mount }

// Describe sends nothing: which figures there are depends on the mount.
func (c *mountMetrics) Describe(chan<- *prometheus.Desc) {}

func (c *mountMetrics) Collect(ch chan<- prometheus.Metric) {
	v := c.m.View().Stats()
	send(ch, nil,
		gauge("region_size_bytes", "Length of the region.", c.m.Size()),
		counter("view_reads", "Read requests of the kernel.", v.Reads),
		counter("view_writes", "Write requests of the kernel.", v.Writes),
		counter("view_syncs", "Sync requests of the kernel.", v.Syncs),
		counter("view_read_bytes", "Bytes given to the kernel.", v.ReadBytes),
		counter("view_written_bytes", "Bytes taken from the kernel.", v.WrittenBytes),
		counter("view_errors", "Requests of the kernel that failed.", v.ReadErrors+v.WriteErrors+v.SyncErrors+v.ZeroErrors),
		gauge("view_open_files", "Files open now.", v.Open),
	)
	p := c.m.Pager()
	if p == nil {
		return
	}
	s := p.Stats()
	send(ch, nil,
		gauge("pager_chunk_bytes", "Length of a chunk.", s.ChunkSize),
		gauge("pager_chunks", "Chunks of the region.", s.Chunks),
		gauge("pager_local_chunks", "Chunks that are here.", s.Local),
		gauge("pager_dirty_chunks", "Chunks that are to be pushed.", s.Dirty),
		counter("pager_hits", "Reads that found everything here.", s.Hits),
		counter("pager_misses", "Reads that waited for a fetch.", s.Misses),
		counter("pager_fetched_bytes", "Bytes fetched from the backend.", s.FetchedBytes),
		counter("pager_pushed_bytes", "Bytes pushed to the backend.", s.PushedBytes),
		counter("pager_written_bytes", "Bytes written by programs.", s.WrittenBytes),
		counter("pager_fetch_errors", "Fetches that failed.", s.FetchErrors),
		counter("pager_push_errors", "Pushes that failed.", s.PushErrors),
	)
}

// serverMetrics collects what the listeners of a server did.
type serverMetrics struct{ listeners []*telemap.Listener }

// Describe sends nothing: which figures there are depends on the listeners.
func (c *serverMetrics) Describe(chan<- *prometheus.Desc) {}

func (c *serverMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, l := range c.listeners {
		s, ok := l.Stats()
		if !ok {
			continue
		}
		send(ch, prometheus.Labels{"listener": l.URL("")},
			gauge("server_connections", "Connections open now.", s.Connections),
			gauge("server_inflight_requests", "Requests being answered now.", s.InFlight),
			counter("server_requests", "Requests answered.", s.Requests),
			counter("server_errors", "Requests answered with an error.", s.Errors),
			counter("server_sent_bytes", "Bytes sent to peers.", s.BytesOut),
			counter("server_received_bytes", "Bytes received from peers.", s.BytesIn),
		)
	}
}
