// Package grpc carries the requests of package transport over gRPC, for programs
// that speak it already and for the users of r3map. Between telemap's own
// processes package tcp is several times faster.
//
// A server offers a catalog:
//
//	s := grpc.NewServer(transport.Exports{{Region: b, Info: transport.Info{Name: "vm1"}}}, grpc.ServerOptions{})
//	err := s.Serve(ctx, listener) // until ctx ends
//
// A client opens regions of it, which are backends with every ability:
//
//	session, err := grpc.Dial(ctx, "127.0.0.1:7070", grpc.Options{})
//	b, info, err := session.Open(ctx, "vm1")
//
// The service is telemap.v1.Region, in proto/telemap/v1/region.proto; other
// languages generate their client from that file. Operations longer than a
// message may be are split here, so that no length is too long.
//
// # Lost connections
//
// A session reconnects by itself and repeats what was under way, for the time
// of [Options.RetryBudget]. A repeated write is never overtaken by its own first
// copy, should that still be at work in the server, and a write that was given up
// never overwrites one made after it: mutations carry a generation, and the
// server ends older ones first. This holds for one session and one server
// process. Between several sessions, or servers that share storage, it is the
// lease and its fencing token that keep order.
//
// # r3map
//
// The same server answers clients of r3map's gRPC mount protocol (package
// com.pojtinger.felicitas.r3map.mount.v1, service Backend) with the region that
// [ServerOptions.R3map] names, and [DialR3map] makes an r3map server a backend.
// That protocol knows one region per server, does not tell its size and has no
// generations; [R3map] says what follows. r3map's migration service is not
// served.
//
// # Security
//
// Beyond loopback and unix sockets Serve insists on TLS 1.3 with client
// certificates. Lengths are checked before anything is allocated: one message
// carries at most [ServerOptions.MaxPayload] bytes, and requests together hold
// at most [ServerOptions.MaxInFlight]. Error texts of a region travel to its
// clients.
//
// # Generated code
//
// go generate needs protoc; proto/generate.sh says which.
package grpc

//go:generate ./proto/generate.sh
