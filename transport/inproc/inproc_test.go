package inproc_test

import (
	"testing"

	"github.com/telemap/telemap/internal/testkit"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/inproc"
	"github.com/telemap/telemap/transport/transporttest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t *testing.T, cat transport.Catalog) transport.Session { return inproc.New(cat) })
}
