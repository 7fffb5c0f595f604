// Command workload-api is an application that speaks mutual TLS itself, with go-spiffe's X509Source: it calls a server
// again and again, each time over a new connection, until it is told to end (SIGTERM).
//
//	workload-api URL SERVER-ID
//
// SPIFFE_ENDPOINT_SOCKET says where the Workload API is. It prints "certificate SERIAL" for each one that it holds,
// "called" for each ten calls, "failed WHY" for each that fails, and "calls N failed N certificates N" at the end.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// The time between two calls: what makes a load, and leaves the processor to others.
const pause = 20 * time.Millisecond

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Println("ended:", err)
		os.Exit(1)
	}
}

func run(url, server string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	id, err := spiffeid.FromString(server)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	transport := &http.Transport{
		TLSClientConfig:   tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)),
		DisableKeepAlives: true,
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	calls, failed, held := 0, 0, map[string]bool{}
	for ctx.Err() == nil {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		if serial := svid.Certificates[0].SerialNumber.Text(16); !held[serial] {
			held[serial] = true
			fmt.Println("certificate", serial)
		}
		calls++
		if err := call(client, url); err != nil {
			failed++
			fmt.Println("failed", err)
		}
		if calls%10 == 0 {
			fmt.Println("called")
		}
		time.Sleep(pause)
	}
	fmt.Printf("calls %d failed %d certificates %d\n", calls, failed, len(held))
	return nil
}

func call(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	return nil
}
