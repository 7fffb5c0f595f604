// Injects sidecars as istiod does it: reads a pod from standard input and writes what becomes of it, as JSON. Its
// arguments are two files of istiod's ConfigMap istio-sidecar-injector, `config` and `values`.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/kube/inject"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "istio-injector: name the injector's configuration and its values")
		os.Exit(64)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "istio-injector:", err)
		os.Exit(1)
	}
}

func run(configFile, valuesFile string) error {
	text, err := os.ReadFile(configFile)
	if err != nil {
		return err
	}
	config, err := inject.UnmarshalConfig(text)
	if err != nil {
		return err
	}
	templates, err := inject.ParseTemplates(config.RawTemplates)
	if err != nil {
		return err
	}
	if text, err = os.ReadFile(valuesFile); err != nil {
		return err
	}
	values, err := inject.NewValuesConfig(string(text))
	if err != nil {
		return err
	}
	if text, err = io.ReadAll(os.Stdin); err != nil {
		return err
	}
	pod, err := inject.FromRawToObject(text)
	if err != nil {
		return err
	}
	warn := func(warning string) { fmt.Fprintln(os.Stderr, "istio-injector:", warning) }
	injected, err := inject.IntoObject(nil, templates, values, "", mesh.DefaultMeshConfig(), pod, warn)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(injected)
}
