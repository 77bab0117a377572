// Package tcp is the fast transport: framed messages over TCP or unix sockets,
// many in flight at once over several connections, with or without TLS 1.3.
//
//	s := tcp.NewServer(transport.Exports{{Region: b, Info: info}}, tcp.ServerOptions{})
//	err := s.Serve(ctx, listener)
//
//	session, err := tcp.Dial(ctx, "127.0.0.1:7070", tcp.Options{})
//	region, info, err := session.Open(ctx, "disk")
//
// # Protocol, version 1
//
// All integers are little-endian. A client starts with a hello of 64 bytes and
// the server answers with one of 64 bytes, then perhaps text that says why it
// refuses; see [hello] and [welcome]. After that each side sends frames: a header
// of 40 bytes and a payload whose length the header tells; see [header]. Requests
// carry an id that the reply repeats; replies come in any order. Before a
// region's first request on a connection the client opens it by name under a
// handle that it chooses. No payload is longer than the limit that the hello
// messages agree on.
//
// # Reconnecting
//
// A session is a number of connections, its slots. When one breaks, its slot
// dials again with back-off and sends again what was not answered. That is safe
// because every request says what to write where, and because of this order: the
// hello names the session, the slot and a generation that grows; the server lets
// a newer generation in only after every request of the older one has finished.
// So a write cannot be overtaken by its own earlier copy. A write that was given
// up unanswered ties all later writes of the session to its slot until that has
// reconnected; given up in several slots, it holds later writes up until all but
// one have.
//
// A region that the server no longer has when a slot reconnects is asked for
// again until requests have used up [Options.RetryBudget], and the session's
// other regions wait with it; closing it sets them free. A region that has
// another size by then is lost for good: its operations fail, other regions go
// on. A session's Close does not wait for writes in flight, which the server may
// still carry out.
//
// A server that restarts may have forgotten writes that it had acknowledged. Each
// start has an identity, which the handshake tells; a Sync that would cover writes
// taken by an earlier one returns region.ErrLost, and the client writes them again.
// (NFS version 3 does the same with its write verifier: RFC 1813, section 3.3.7.)
package tcp
