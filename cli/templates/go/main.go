// The greeter: implements hello.v1.Greeter of proto/hello/v1/hello.proto.
package main

//go:generate go run github.com/bufbuild/buf/cmd/buf@v1.75.0 generate

import (
	"context"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	hellov1 "example.com/greeter/gen/hello/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

type greeter struct {
	hellov1.UnimplementedGreeterServer
	replica string
}

func (g *greeter) Hello(_ context.Context, request *hellov1.HelloRequest) (*hellov1.HelloResponse, error) {
	name := request.GetName()
	if name == "" {
		name = "world"
	}
	log.Printf("hello to %s", name)
	return &hellov1.HelloResponse{Text: "Hello, " + name + "!", AnsweredBy: g.replica}, nil
}

func main() {
	replica := "greeter"
	if len(os.Args) > 1 {
		replica = os.Args[1]
	}
	if err := serve(replica); err != nil {
		log.Fatal(err)
	}
}

func serve(replica string) error {
	// `weft up` sets the address. Only the sidecar calls it, so it needs no TLS: the sidecars have TLS between them.
	address := os.Getenv("WEFT_LISTEN")
	if address == "" {
		address = "127.0.0.1:50051"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	hellov1.RegisterGreeterServer(server, &greeter{replica: replica})
	// The sidecar asks for this, and sends no calls before the answer is SERVING.
	healthv1.RegisterHealthServer(server, health.NewServer())

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		// Accepts no new calls; running calls may end.
		server.GracefulStop()
	}()
	log.Printf("%s listens at %s", replica, address)
	return server.Serve(listener)
}
