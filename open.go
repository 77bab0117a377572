package telemap

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/readonly"
	"github.com/telemap/telemap/mount"
)

// ErrUnknownScheme is returned for a URL whose scheme no opener is known for.
var ErrUnknownScheme = errors.New("unknown scheme")

// An OpenFunc opens the backend that u names. The URL's query holds what the
// scheme's documentation says; unknown keys are an error of the scheme.
type OpenFunc func(ctx context.Context, u *url.URL, o Opener) (backend.Backend, error)

// An Opener opens backends by URL. The zero value is what [Open] and [Mount]
// use.
type Opener struct {
	// ReadOnly opens for reading; writes fail with backend.ErrReadOnly.
	ReadOnly bool
	// Create is the size in bytes of what does not exist yet and is to be made. Zero
	// makes nothing unless the URL has a size of its own.
	Create int64
	// RetryBudget is how long one operation on a remote backend is tried again
	// while the other side cannot be reached. Zero means 30 seconds.
	RetryBudget time.Duration
	// TLS is used for network schemes whose URL does not say otherwise. Nil means
	// none.
	TLS *tls.Config
	// Logger is told of reconnects and the like. Nil discards.
	Logger *slog.Logger
	// Schemes maps more schemes, or other meanings of known ones, to how they are
	// opened.
	Schemes map[string]OpenFunc
}

// Open opens the backend that rawURL names; see the package comment for the
// forms it can have. The caller closes it. ctx bounds the opening alone.
func Open(ctx context.Context, rawURL string) (backend.Backend, error) {
	return Opener{}.Open(ctx, rawURL)
}

// Open is [Open] with the options in o.
func (o Opener) Open(ctx context.Context, rawURL string) (backend.Backend, error) {
	u, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	open, known := o.Schemes[u.Scheme]
	if !known {
		open, known = schemes()[u.Scheme]
	}
	if !known {
		return nil, fmt.Errorf("open %s: %w %q; known are %s", Redact(rawURL), ErrUnknownScheme, u.Scheme, strings.Join(o.schemeNames(), ", "))
	}
	q := u.Query()
	if q.Has("readonly") {
		on, err := strconv.ParseBool(q.Get("readonly"))
		if err != nil {
			return nil, fmt.Errorf("open %s: readonly=%s: use 1 or 0", Redact(rawURL), q.Get("readonly"))
		}
		o.ReadOnly = o.ReadOnly || on
		q.Del("readonly")
		u.RawQuery = q.Encode()
	}
	b, err := open(ctx, u, o)
	if err != nil {
		if op := (*backend.OpError)(nil); errors.As(err, &op) {
			return nil, err // it says what and where
		}
		return nil, fmt.Errorf("open %s: %w", Redact(rawURL), err)
	}
	if o.ReadOnly {
		b = readonly.New(b)
	}
	return b, nil
}

func (o Opener) schemeNames() []string {
	all := schemes()
	maps.Copy(all, o.Schemes)
	return slices.Sorted(maps.Keys(all))
}

// Mount opens the backend that rawURL names and shows it as a file at path, as
// [mount.Open] does. Closing the mount closes the backend.
func Mount(ctx context.Context, rawURL, path string, o mount.Options) (*mount.Mount, error) {
	return Opener{ReadOnly: o.ReadOnly, Logger: o.Logger}.Mount(ctx, rawURL, path, o)
}

// Mount is [Mount] with the options in o. The mount's name inside a directory
// is [Name] of the URL unless mo has one.
func (o Opener) Mount(ctx context.Context, rawURL, path string, mo mount.Options) (*mount.Mount, error) {
	b, err := o.Open(ctx, rawURL)
	if err != nil {
		return nil, err
	}
	if mo.Name == "" {
		mo.Name = Name(rawURL)
	}
	if mo.Pager.Name == "" {
		mo.Pager.Name = Redact(rawURL)
	}
	m, err := mount.Open(ctx, b, path, mo)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return m, nil
}

// Name is what to call the region that rawURL names: the last element of its
// path, or "region".
func Name(rawURL string) string {
	u, err := parseURL(rawURL)
	if err != nil {
		return "region"
	}
	p := u.Path
	if p == "" && u.Scheme != "mem" {
		p = u.Opaque
	}
	if base := path.Base(p); base != "." && base != "/" && base != ".." {
		return base
	}
	return "region"
}

// Redact is rawURL without credentials: fit for errors and logs.
func Redact(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "(a malformed URL)"
	}
	if u.User != nil {
		u.User = nil
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		u.RawQuery = "xxxxx" // who knows what is in there
	}
	for key := range q {
		switch strings.ToLower(key) {
		case "password", "token", "secret", "secretkey", "accesskey":
			q.Set(key, "xxxxx")
		default:
			continue
		}
		if err == nil {
			u.RawQuery = q.Encode()
		}
	}
	return u.String()
}

// ParseSize reads a number of bytes as people write it: 4096, 64KiB, 1.5GiB, 10MB.
func ParseSize(s string) (int64, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<62 {
		return 0, fmt.Errorf("size %q: write bytes as 4096, 64KiB or 1.5GiB", s)
	}
	return int64(n), nil
}

// parseURL reads a URL or, where there is no scheme, the path of a file.
func parseURL(raw string) (*url.URL, error) {
	if raw == "" {
		return nil, errors.New("open a backend: its URL is empty")
	}
	var u *url.URL
	var err error
	if scheme, _, ok := strings.Cut(raw, ":"); !ok || strings.ContainsAny(scheme, "/.") {
		// Parameters as with a scheme; file: and %3F is for a name with a question mark.
		path, query, _ := strings.Cut(raw, "?")
		u = &url.URL{Scheme: "file", Path: path, RawQuery: query}
	} else {
		u, err = url.Parse(raw)
	}
	if err == nil {
		// URL.Query leaves out what is malformed, readonly=1 perhaps.
		_, err = url.ParseQuery(u.RawQuery)
	}
	if err != nil {
		// The error of url.Parse quotes the whole URL, credentials and all.
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err
		}
		return nil, fmt.Errorf("open a backend: malformed URL: %w", err)
	}
	return u, nil
}

// A query reads the parameters of a URL and knows which nobody asked for.
type query struct {
	values url.Values
	err    error
}

func (q *query) get(key string) string {
	v := q.values.Get(key)
	q.values.Del(key)
	return v
}

func (q *query) size(key string) int64 {
	v := q.get(key)
	if v == "" {
		return 0
	}
	n, err := ParseSize(v)
	if err != nil && q.err == nil {
		q.err = fmt.Errorf("parameter %s: %w", key, err)
	}
	return n
}

// done returns the first error, an unknown parameter being one.
func (q *query) done() error {
	if q.err != nil {
		return q.err
	}
	for key := range q.values {
		return fmt.Errorf("unknown parameter %q in the URL", key)
	}
	return nil
}
