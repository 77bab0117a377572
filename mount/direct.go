package mount

import (
	"github.com/telemap/telemap/backend"
	"github.com/telemap/telemap/backend/readonly"
	"github.com/telemap/telemap/view"
)

// direct is the source of a direct mount: the backend itself, which has the
// abilities that a view looks for under the same names.
func direct(b backend.Backend, readOnly bool) view.Source {
	if readOnly {
		return readonly.New(b)
	}
	return b
}
