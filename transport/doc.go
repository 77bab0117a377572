// Package transport says what two hosts ask of each other about a region, and
// in which words: the served side is a [Catalog] of named regions, the asking
// side a [Session]. It knows no wire format.
//
// Implementations are the packages below: inproc for tests and single processes,
// tcp for speed (framed messages, many in flight, several connections, TLS),
// grpc for programs that speak gRPC. Each passes transporttest.
package transport
