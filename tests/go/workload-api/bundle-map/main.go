// A program that has grpc-go's file watcher read a SPIFFE bundle map, and tells each content that it takes: the trust
// domains in their order, each with the serial numbers of its anchors.
package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

func main() {
	provider, err := pemfile.NewProvider(pemfile.Options{
		SPIFFEBundleMapFile: os.Args[1],
		RefreshDuration:     50 * time.Millisecond,
	})
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	told := ""
	for {
		material, err := provider.KeyMaterial(context.Background())
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		var domains []string
		for name, bundle := range material.SPIFFEBundleMap {
			var serials []string
			for _, anchor := range bundle.X509Authorities() {
				serials = append(serials, anchor.SerialNumber.Text(16))
			}
			sort.Strings(serials)
			domains = append(domains, name+"="+strings.Join(serials, "+"))
		}
		sort.Strings(domains)
		if text := strings.Join(domains, " "); text != told {
			told = text
			fmt.Println("taken:", text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
