// Package inproc is the transport within one process: a session calls the
// catalog's regions directly, on the caller's goroutine, with the semantics of a
// network session. Tests and single-process set-ups use it in place of a server.
//
//	s := inproc.New(transport.Exports{{Region: b, Info: info}})
//	r, info, err := s.Open(ctx, "disk")
//
// What differs from a network: nothing breaks, nothing is sent again, and a
// served region that ignores its context holds up its caller and Close.
package inproc
