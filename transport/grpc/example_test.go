package grpc_test

import (
	"context"
	"fmt"
	"net"

	"github.com/telemap/telemap/backend/mem"
	"github.com/telemap/telemap/transport"
	"github.com/telemap/telemap/transport/grpc"
)

func Example() {
	ctx, stop := context.WithCancel(context.Background())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	memory := mem.New(1 << 20)
	defer memory.Close()
	server := grpc.NewServer(transport.Exports{
		{Region: memory, Info: transport.Info{Name: "vm1", Size: memory.Size()}},
	}, grpc.ServerOptions{})
	served := make(chan error)
	go func() { served <- server.Serve(ctx, listener) }()

	session, err := grpc.Dial(ctx, listener.Addr().String(), grpc.Options{})
	if err != nil {
		panic(err)
	}
	r, info, err := session.Open(ctx, "vm1")
	if err != nil {
		panic(err)
	}
	if _, err := r.WriteAt(ctx, []byte("hello"), info.Size-5); err != nil {
		panic(err)
	}
	p := make([]byte, 8)
	n, err := r.ReadAt(ctx, p, info.Size-5)
	fmt.Printf("%s of %d bytes ends in %q, %v\n", info.Name, info.Size, p[:n], err)

	session.Close()
	stop()
	fmt.Println(<-served)
	// Output:
	// vm1 of 1048576 bytes ends in "hello", EOF
	// <nil>
}
