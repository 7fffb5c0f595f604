// Command seccomp-profiles prints the seccomp profile that a container runtime takes by default for a container without
// capabilities on this machine, as an OCI runtime reads it: that of containerd or of Docker's engine, by the runtime's
// own code, at the versions that go.mod names.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	containerd "github.com/containerd/containerd/v2/contrib/seccomp"
	docker "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: seccomp-profiles containerd|docker")
	}
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
	var profile *specs.LinuxSeccomp
	var err error
	switch os.Args[1] {
	case "containerd":
		profile = containerd.DefaultProfile(spec)
	case "docker":
		profile, err = docker.GetDefaultProfile(spec)
	default:
		err = fmt.Errorf("%s has no profile here", os.Args[1])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(profile)
}
