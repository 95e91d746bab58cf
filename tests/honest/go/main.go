// grpc-go's part of the honest suite: `server` and `client`, with options such as `port=5000`.
// tests/honest/README.md lists the options; the programs in the other languages take the same.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
)

// The options on the command line.
type words map[string]string

func (w words) number(name string, otherwise int) int {
	text, given := w[name]
	if !given {
		return otherwise
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		fail("%s=%s is not a number", name, text)
	}
	return number
}

func (w words) millis(name string) time.Duration {
	return time.Duration(w.number(name, 0)) * time.Millisecond
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

// codec sends the suite's messages as plain bytes, so that no generated code is needed.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(message any) ([]byte, error) {
	if raw, isRaw := message.(*[]byte); isRaw {
		return *raw, nil
	}
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(data []byte, message any) error {
	if raw, isRaw := message.(*[]byte); isRaw {
		*raw = append([]byte(nil), data...)
		return nil
	}
	return proto.Unmarshal(data, message.(proto.Message))
}

func main() {
	if len(os.Args) < 2 {
		fail("usage: honest-go server|client WORD=VALUE...")
	}
	given := words{}
	for _, arg := range os.Args[2:] {
		name, value, found := strings.Cut(arg, "=")
		if !found {
			fail("%q is not WORD=VALUE", arg)
		}
		given[name] = value
	}
	switch os.Args[1] {
	case "server":
		serve(given)
	case "client":
		load(given)
	default:
		fail("%q is neither server nor client", os.Args[1])
	}
}
