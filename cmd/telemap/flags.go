package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"

	"github.com/telemap/telemap"
)

// sizeFlag is a number of bytes on the command line.
type sizeFlag int64

var _ pflag.Value = (*sizeFlag)(nil)

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return humanize.IBytes(uint64(*s))
}

func (s *sizeFlag) Set(v string) error {
	n, err := telemap.ParseSize(v)
	*s = sizeFlag(n)
	return err
}

func (s *sizeFlag) Type() string { return "size" }

// tlsFlags are the files of a TLS end.
type tlsFlags struct {
	cert, key, ca string
}

func (t *tlsFlags) add(f *pflag.FlagSet, caUsage string) {
	f.StringVar(&t.cert, "tls-cert", "", "certificate chain in PEM; turns TLS 1.3 on")
	f.StringVar(&t.key, "tls-key", "", "private key of --tls-cert in PEM")
	f.StringVar(&t.ca, "tls-ca", "", caUsage)
}

// server is the configuration of a listener, or nil without certificates.
func (t *tlsFlags) server() (*tls.Config, error) {
	if *t == (tlsFlags{}) {
		return nil, nil
	}
	if t.cert == "" || t.key == "" {
		return nil, errors.New("TLS needs both --tls-cert and --tls-key")
	}
	pair, err := tls.LoadX509KeyPair(t.cert, t.key)
	if err != nil {
		return nil, fmt.Errorf("load --tls-cert and --tls-key: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}
	if t.ca != "" {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, fmt.Errorf("load --tls-ca: %w", err)
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("load --tls-ca: no certificate in %s", t.ca)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}
