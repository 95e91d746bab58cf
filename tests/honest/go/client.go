package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// One call: when it ended, counted from the start of the load, and how long it took.
type answer struct{ at, took time.Duration }

// The options of a load.
type plan struct {
	kind        string
	body        []byte
	messages    int
	deadline    time.Duration
	cancelEvery int
	do          string
	doEvery     int
	expect      map[string]bool
	end         time.Time
	left        atomic.Int64
}

// The outcome of one worker's calls.
type seen struct {
	answers  []answer
	failures map[string]int
	example  string
}

func load(given words) {
	plan := &plan{
		kind:        given["kind"],
		body:        bytes.Repeat([]byte{'x'}, given.number("bytes", 128)),
		messages:    given.number("messages", 10),
		deadline:    given.millis("deadline_ms"),
		cancelEvery: given.number("cancel_every", 0),
		do:          given["do"],
		doEvery:     given.number("do_every", 1),
		expect:      map[string]bool{},
		end:         time.Now().Add(time.Duration(given.number("seconds", 2)) * time.Second),
	}
	plan.left.Store(int64(given.number("calls", 1<<40)))
	if code, err := strconv.Atoi(given["expect"]); err == nil {
		plan.expect[codes.Code(code).String()] = true
	}
	if plan.cancelEvery > 0 {
		plan.expect[codes.Canceled.String()] = true
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(64<<20)),
	}
	if every := given.millis("keepalive_ms"); every > 0 {
		options = append(options, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: every, PermitWithoutStream: true}))
	}
	var (
		working sync.WaitGroup
		started = time.Now()
		all     []*seen
	)
	for range given.number("connections", 1) {
		connection, err := grpc.NewClient("passthrough:///"+given["target"], options...)
		if err != nil {
			fail("%v", err)
		}
		for range given.number("each", 1) {
			worker := &seen{failures: map[string]int{}}
			all = append(all, worker)
			working.Go(func() { plan.work(connection, started, worker) })
		}
	}
	working.Wait()
	report(all)
}

func (p *plan) work(connection *grpc.ClientConn, started time.Time, seen *seen) {
	for number := 1; time.Now().Before(p.end) && p.left.Add(-1) >= 0; number++ {
		from := time.Now()
		err := p.call(connection, number)
		now := time.Now()
		seen.answers = append(seen.answers, answer{now.Sub(started), now.Sub(from)})
		if code := status.Code(err).String(); err != nil && !p.expect[code] {
			seen.failures[code]++
			seen.example = err.Error()
		}
	}
}

func (p *plan) call(connection *grpc.ClientConn, number int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if p.deadline > 0 {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, p.deadline)
		defer end()
	}
	if p.do != "" && number%p.doEvery == 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-do", p.do)
	}
	if p.cancelEvery > 0 && number%p.cancelEvery == 0 {
		// At all points of a call's life: from its start to after its end.
		timer := time.AfterFunc(time.Duration(number/p.cancelEvery%20)*100*time.Microsecond, cancel)
		defer timer.Stop()
	}
	if p.kind == "unary" || p.kind == "" {
		var heard []byte
		if err := connection.Invoke(ctx, "/honest.v1.Echo/Unary", &p.body, &heard); err != nil {
			return err
		}
		return p.check(heard)
	}
	return p.stream(ctx, connection)
}

// check fails the call if the message that came back is not the one that was sent.
func (p *plan) check(heard []byte) error {
	if !bytes.Equal(heard, p.body) {
		return status.Errorf(codes.DataLoss, "%d bytes came back changed, of %d", len(heard), len(p.body))
	}
	return nil
}

func (p *plan) stream(ctx context.Context, connection *grpc.ClientConn) error {
	var (
		method = map[string]string{"server": "ServerStream", "client": "ClientStream", "bidi": "Bidi"}[p.kind]
		desc   = grpc.StreamDesc{ServerStreams: p.kind != "client", ClientStreams: p.kind != "server"}
		sends  = map[string]int{"server": 1, "client": p.messages, "bidi": p.messages}[p.kind]
		heard  []byte
	)
	ctx = metadata.AppendToOutgoingContext(ctx, "x-count", strconv.Itoa(p.messages))
	stream, err := connection.NewStream(ctx, &desc, "/honest.v1.Echo/"+method)
	if err != nil {
		return err
	}
	for range sends {
		// After io.EOF, RecvMsg returns how the call ended.
		if err := stream.SendMsg(&p.body); err != nil && err != io.EOF {
			return err
		}
		if p.kind == "bidi" {
			if err := stream.RecvMsg(&heard); err != nil {
				return err
			}
			if err := p.check(heard); err != nil {
				return err
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	expected := map[string]int{"server": p.messages, "client": 1, "bidi": 0}[p.kind]
	for count := 0; ; count++ {
		err := stream.RecvMsg(&heard)
		if p.kind == "client" && err == nil {
			return p.check(heard)
		}
		switch {
		case err == io.EOF && count == expected:
			return nil
		case err == io.EOF:
			return status.Errorf(codes.DataLoss, "%d messages of %d", count, expected)
		case err != nil:
			return err
		}
		if err := p.check(heard); err != nil {
			return err
		}
	}
}

// report prints the outcome of all calls as one line of JSON.
func report(all []*seen) {
	var (
		answers  []answer
		failures = map[string]int{}
		example  string
	)
	for _, seen := range all {
		answers = append(answers, seen.answers...)
		for code, count := range seen.failures {
			failures[code] += count
		}
		if seen.example != "" {
			example = seen.example
		}
	}
	slices.SortFunc(answers, func(a, b answer) int { return int(a.at - b.at) })
	var gap time.Duration
	for place := 1; place < len(answers); place++ {
		gap = max(gap, answers[place].at-answers[place-1].at)
	}
	slices.SortFunc(answers, func(a, b answer) int { return int(a.took - b.took) })
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	quantile := func(q float64) float64 {
		if len(answers) == 0 {
			return 0
		}
		return millis(answers[int(q*float64(len(answers)-1))].took)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"calls": len(answers), "failures": failures, "example": example, "gap_ms": millis(gap),
		"p50_ms": quantile(0.5), "p99_ms": quantile(0.99), "max_ms": quantile(1),
	})
}
