// Package telemap shows a remote resource to a program as if it were local: mmap
// for anything, anywhere.
//
// [Open] turns a URL into a backend, [Mount] turns one into a file that any
// program can use, [Serve] offers backends to other hosts:
//
//	m, err := telemap.Mount(ctx, "tcp://storage:7070/disk", "/mnt/disk.img", mount.Options{})
//
// # URLs
//
//	mem:512MiB                        memory of this process, zeros at first
//	file:///path, file:path, ./path   a file or block device; ?size=1GiB makes a file
//	dir:///path                       one file per chunk; ?size=1GiB&chunk=64KiB makes it
//	tcp://host:port/region            a region that "telemap serve" offers
//	tcp+unix:///region?socket=PATH    the same through a unix socket
//	grpc://host:port/region           the same by gRPC, slower and interoperable
//	grpc+unix:///region?socket=PATH
//	r3map://host:port?size=1GiB       the gRPC backend service of r3map
//
// The network ones take TLS from ?ca=FILE&cert=FILE&key=FILE&servername=NAME, or
// from ?tls=1 with the system's authorities. ?readonly=1 opens any of them for
// reading.
//
// The packages below are the pieces: region (ranges and chunks), backend (where
// bytes live), transport (requests between hosts), pager (fetch, pull, push),
// view (how a program sees a region) and mount (all of these as one handle).
package telemap
