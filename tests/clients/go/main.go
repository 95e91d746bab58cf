// The shop as grpc-go calls it: `go-client ADDRESS` runs the cases against the sidecar there, and prints a line for each.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	notifications "weft.invalid/clients/shop/notifications/v1"
	products "weft.invalid/clients/shop/products/v1"
	users "weft.invalid/clients/shop/users/v1"
)

// A guard that only a very slow machine reaches.
const limit = 60 * time.Second

type shop struct {
	channel       *grpc.ClientConn
	users         users.UsersClient
	products      products.ProductsClient
	notifications notifications.NotificationsClient
}

func main() {
	channel, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	s := shop{
		channel, users.NewUsersClient(channel), products.NewProductsClient(channel),
		notifications.NewNotificationsClient(channel),
	}
	cases := []struct {
		name string
		run  func(shop, context.Context) error
	}{
		{"unary", shop.unary},
		{"error-details", shop.errorDetails},
		{"server-stream", shop.serverStream},
		{"client-stream", shop.clientStream},
		{"bidi-stream", shop.bidiStream},
		{"metadata", shop.metadata},
		{"deadline", shop.deadline},
		{"cancel", shop.cancel},
		{"unknown-service", shop.unknownService},
		{"gzip", shop.gzip},
		{"many-calls", shop.manyCalls},
	}
	failed := false
	for _, c := range cases {
		ctx, end := context.WithTimeout(context.Background(), limit)
		if err := c.run(s, ctx); err != nil {
			fmt.Println("FAIL", c.name, err)
			failed = true
		} else {
			fmt.Println("ok", c.name)
		}
		end()
	}
	if failed {
		os.Exit(1)
	}
}

func (s shop) unary(ctx context.Context) error {
	email := rand.Text() + "@example.com"
	made, err := s.users.Create(ctx, &users.CreateRequest{Name: "Gopher", Email: email})
	if err != nil {
		return err
	}
	found, err := s.users.Get(ctx, &users.GetRequest{Id: made.GetId()})
	if err != nil {
		return err
	}
	return same("name", found.GetName(), "Gopher")
}

func (s shop) errorDetails(ctx context.Context) error {
	_, err := s.users.Create(ctx, &users.CreateRequest{Name: "Gopher", Email: "nowhere"})
	if err := code(err, codes.InvalidArgument); err != nil {
		return err
	}
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			return same("field", bad.GetFieldViolations()[0].GetField(), "email")
		}
	}
	return fmt.Errorf("no BadRequest among the details of %v", err)
}

func (s shop) serverStream(ctx context.Context) error {
	found, err := s.products.Search(ctx, &products.SearchRequest{})
	if err != nil {
		return err
	}
	count := 0
	for {
		_, err := found.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		count++
	}
	if count < 12 {
		return fmt.Errorf("%d products, not the dozen that there is", count)
	}
	return nil
}

func (s shop) clientStream(ctx context.Context) error {
	taken, err := s.products.Import(ctx)
	if err != nil {
		return err
	}
	for i := range 100 {
		if err := taken.Send(&products.Product{Id: fmt.Sprintf("go-%d", i), Name: "Imported by Go"}); err != nil {
			return err
		}
	}
	answer, err := taken.CloseAndRecv()
	if err != nil {
		return err
	}
	return same("imported", answer.GetImported(), 100)
}

func (s shop) bidiStream(ctx context.Context) error {
	told, err := s.notifications.Stream(ctx)
	if err != nil {
		return err
	}
	// Each is sent when the one before was answered: nothing may wait for the end of the stream.
	for i := range 20 {
		text := fmt.Sprintf("number %d", i)
		if err := told.Send(&notifications.NotifyRequest{UserId: "gopher", Text: text}); err != nil {
			return err
		}
		answer, err := told.Recv()
		if err != nil {
			return err
		}
		if err := same("text", answer.GetText(), text); err != nil {
			return err
		}
	}
	if err := told.CloseSend(); err != nil {
		return err
	}
	if _, err := told.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%v after the end", err)
	}
	return nil
}

func (s shop) metadata(ctx context.Context) error {
	ctx = metadata.AppendToOutgoingContext(ctx,
		"x-tag", "one", "x-tag", "two", "x-blob-bin", "\x00\x01\xfe\xff", "x-blob-bin", "", "x-blob-bin", "odd")
	product, err := s.products.Get(ctx, &products.GetRequest{Id: "teapot"})
	if err != nil {
		return err
	}
	return same("id", product.GetId(), "teapot")
}

func (s shop) deadline(ctx context.Context) error {
	ctx, end := context.WithTimeout(ctx, time.Millisecond)
	defer end()
	events, err := s.users.Watch(ctx, &users.WatchRequest{})
	for err == nil {
		_, err = events.Recv()
	}
	return code(err, codes.DeadlineExceeded)
}

func (s shop) cancel(ctx context.Context) error {
	cancelled, cancel := context.WithCancel(ctx)
	defer cancel()
	told, err := s.notifications.Stream(cancelled)
	if err != nil {
		return err
	}
	if err := told.Send(&notifications.NotifyRequest{UserId: "gopher", Text: "the only one"}); err != nil {
		return err
	}
	if _, err := told.Recv(); err != nil {
		return err
	}
	cancel()
	_, err = told.Recv()
	if err := code(err, codes.Canceled); err != nil {
		return err
	}
	_, err = s.products.Get(ctx, &products.GetRequest{Id: "teapot"})
	return err
}

func (s shop) unknownService(ctx context.Context) error {
	var header, trailer metadata.MD
	err := s.channel.Invoke(ctx, "/shop.nothing.v1.Nothing/Do", &emptypb.Empty{}, &emptypb.Empty{},
		grpc.Header(&header), grpc.Trailer(&trailer))
	if err := code(err, codes.Unimplemented); err != nil {
		return err
	}
	if len(header["x-weft-error"])+len(trailer["x-weft-error"]) == 0 {
		return fmt.Errorf("no x-weft-error in %v and %v", header, trailer)
	}
	return nil
}

func (s shop) gzip(ctx context.Context) error {
	product, err := s.products.Get(ctx, &products.GetRequest{Id: "teapot"}, grpc.UseCompressor(gzip.Name))
	if err != nil {
		return err
	}
	return same("id", product.GetId(), "teapot")
}

func (s shop) manyCalls(ctx context.Context) error {
	var group sync.WaitGroup
	failures := make([]error, 20)
	for lane := range failures {
		group.Go(func() {
			for range 50 {
				if _, err := s.products.Get(ctx, &products.GetRequest{Id: "teapot"}); err != nil {
					failures[lane] = err
					return
				}
			}
		})
	}
	group.Wait()
	return errors.Join(failures...)
}

func code(err error, want codes.Code) error {
	if status.Code(err) != want {
		return fmt.Errorf("%v instead of %v", err, want)
	}
	return nil
}

func same[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v instead of %v", what, got, want)
	}
	return nil
}
