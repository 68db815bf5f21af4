// Command worker is what cyclonus runs in a pod, once for all that it wants to know of the pod: each request as upstream's
// `agnhost connect` makes it, all at once, and in one process. Its own worker starts agnhost for each, which takes a machine
// of two processors longer than the network does.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// As cyclonus has them, in both directions: worker.Batch, worker.Request, worker.Result.
type batch struct {
	Requests []*request
}

type request struct {
	Key      string
	Protocol string
	Host     string
	Port     int
}

type result struct {
	Request *request
	Output  string
	Error   string
}

// As long as a connection may take, as in cyclonus' own. What is not as it must be is asked again by cyclonus.
const timeout = time.Second

func main() {
	jobs := flag.String("jobs", "", "what to try, as JSON")
	flag.Parse()
	var wanted batch
	if err := json.Unmarshal([]byte(*jobs), &wanted); err != nil {
		fmt.Fprintln(os.Stderr, "read --jobs:", err)
		os.Exit(1)
	}
	answers := make(chan *result)
	for _, r := range wanted.Requests {
		go func() { answers <- try(r) }()
	}
	results := make([]*result, 0, len(wanted.Requests))
	for range wanted.Requests {
		results = append(results, <-answers)
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		fmt.Fprintln(os.Stderr, "write the results:", err)
		os.Exit(1)
	}
}

func try(r *request) *result {
	if err := connect(strings.ToLower(r.Protocol), net.JoinHostPort(r.Host, strconv.Itoa(r.Port))); err != nil {
		return &result{Request: r, Error: err.Error()}
	}
	return &result{Request: r}
}

// connect is through when TCP's handshake is, or when a datagram is answered.
func connect(protocol, to string) error {
	conn, err := net.DialTimeout(protocol, to, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if protocol == "tcp" {
		return nil
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hostname\n")); err != nil {
		return err
	}
	read, err := conn.Read(make([]byte, 1024))
	if err == nil && read == 0 {
		return fmt.Errorf("%s answers nothing", to)
	}
	return err
}
