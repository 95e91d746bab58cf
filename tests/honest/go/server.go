package main

import (
	"cmp"
	"context"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func serve(given words) {
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("HOST"), "127.0.0.1")+":"+given["port"])
	if err != nil {
		fail("%v", err)
	}
	options := []grpc.ServerOption{
		grpc.ForceServerCodec(codec{}),
		grpc.MaxRecvMsgSize(64 << 20),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: given.millis("max_age_ms"), MaxConnectionAgeGrace: 10 * time.Second}),
	}
	if _, isGiven := given["keepalive_min_ms"]; isGiven {
		policy := keepalive.EnforcementPolicy{MinTime: given.millis("keepalive_min_ms"), PermitWithoutStream: true}
		options = append(options, grpc.KeepaliveEnforcementPolicy(policy))
	}
	if limit := given.number("max_streams", 0); limit > 0 {
		options = append(options, grpc.MaxConcurrentStreams(uint32(limit)))
	}
	server := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	service := grpc.ServiceDesc{
		ServiceName: "honest.v1.Echo",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "ServerStream", Handler: serverStream, ServerStreams: true},
			{StreamName: "ClientStream", Handler: clientStream, ClientStreams: true},
			{StreamName: "Bidi", Handler: bidi, ServerStreams: true, ClientStreams: true},
		},
	}
	server.RegisterService(&service, struct{}{})
	if err := server.Serve(listener); err != nil {
		fail("%v", err)
	}
}

// do does what the caller says in `x-do`: `wait:MILLISECONDS` or `fail:CODE`.
func do(ctx context.Context) error {
	given, _ := metadata.FromIncomingContext(ctx)
	for _, what := range given.Get("x-do") {
		verb, value, _ := strings.Cut(what, ":")
		number, _ := strconv.Atoi(value)
		switch verb {
		case "wait":
			select {
			case <-time.After(time.Duration(number) * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		case "fail":
			return status.Error(codes.Code(number), "as asked")
		}
	}
	return nil
}

func unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	return &request, do(ctx)
}

func serverStream(_ any, stream grpc.ServerStream) error {
	var request []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	if err := do(stream.Context()); err != nil {
		return err
	}
	given, _ := metadata.FromIncomingContext(stream.Context())
	count := 10
	if counts := given.Get("x-count"); len(counts) > 0 {
		count, _ = strconv.Atoi(counts[0])
	}
	for range count {
		if err := stream.SendMsg(&request); err != nil {
			return err
		}
	}
	return nil
}

func clientStream(_ any, stream grpc.ServerStream) error {
	if err := do(stream.Context()); err != nil {
		return err
	}
	var last []byte
	for {
		var next []byte
		switch err := stream.RecvMsg(&next); err {
		case nil:
			last = next
		case io.EOF:
			return stream.SendMsg(&last)
		default:
			return err
		}
	}
}

func bidi(_ any, stream grpc.ServerStream) error {
	if err := do(stream.Context()); err != nil {
		return err
	}
	for {
		var next []byte
		switch err := stream.RecvMsg(&next); err {
		case nil:
			if err := stream.SendMsg(&next); err != nil {
				return err
			}
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}
