#!/usr/bin/env bash
# go-spiffe writes a SPIFFE bundle without keys: a trust domain that has withdrawn everything, or a federation
# relationship that has not got its first keys yet.
#
# Guess:    what Bundle.Marshal returns, spiffebundle.Parse reads.
# Happens:  Marshal writes "keys":null for an empty bundle (a nil slice in Go), and Parse takes null for a missing
#           member: "no authorities found". The same document with "keys":[] is read.
# Matters:  an endpoint that serves an empty bundle by this library is an *error* to clients with the same library:
#           they keep the last bundle, with the keys that were withdrawn, until somebody reads the log.
# Source:   github.com/spiffe/go-spiffe/v2 v2.9.0; SPIFFE Trust Domain and Bundle, section 4.1.3: keys is an array.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >main.go <<'GO'
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func main() {
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	written, err := spiffebundle.New(domain).Marshal()
	if err != nil {
		panic(err)
	}
	_, ofNull := spiffebundle.Parse(domain, written)
	list := strings.ReplaceAll(string(written), "null", "[]")
	_, ofList := spiffebundle.Parse(domain, []byte(list))
	fmt.Printf("written: %s\nread back: %v\nread as %s: %v\n", written, ofNull, list, ofList)
	if string(written) != `{"keys":null}` || ofNull == nil || ofList != nil {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}
GO
go mod init example.org/finding 2>/dev/null
go get github.com/spiffe/go-spiffe/v2/bundle/spiffebundle@v2.9.0 2>/dev/null
go version
go list -m github.com/spiffe/go-spiffe/v2
go run .
