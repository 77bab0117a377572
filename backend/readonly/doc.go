// Package readonly refuses writes to a backend.
//
//	b := readonly.New(image)
//
// Whatever would change bytes returns [backend.ErrReadOnly]; Sync does nothing.
package readonly
