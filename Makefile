# sds-shim: `make help` lists what there is.
SHELL := /bin/bash
MACHINE := $(shell uname -m)
TARGET := $(MACHINE)-unknown-linux-gnu
OPENSSL := $(CURDIR)/target/openssl/install
# One OpenSSL for all: the tests need no other, and a machine without libssl can build everything.
export OPENSSL_DIR := $(OPENSSL)
export OPENSSL_STATIC := 1
export OPENSSL_IS_OURS := 1
export SHIM_BINARY := $(CURDIR)/target/dist/sds-shim
export DISTRIBUTION_BINARY := $(CURDIR)/target/distribution/debug/sds-shim
export ENVOY_BINARY := $(CURDIR)/target/envoy/envoy
DIST_FLAGS := -C target-feature=+crt-static -C force-unwind-tables=no -C link-arg=-Wl,-z,pack-relative-relocs \
  -C link-arg=-Wl,-T,packaging/link/no-unwind-tables.ld -C link-arg=-Wl,--icf=all
# What is built for ARCH, where that is not the machine's own: its names by the kernel and by containers, and where it is.
FOR := $(patsubst arm64,aarch64,$(patsubst amd64,x86_64,$(or $(ARCH),$(MACHINE))))
PLATFORM := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(FOR)))
SUFFIX := $(if $(filter-out $(MACHINE),$(FOR)),-$(PLATFORM))
FOR_TARGET := $(FOR)-unknown-linux-gnu
FOR_BINARY := $(CURDIR)/target/dist$(SUFFIX)/sds-shim
# The linker for what is neither a test nor a build script. Relative: a path would make other bytes in another place.
LINK = $(if $(filter aarch64,$(1)),-C linker=packaging/link/static-pie)
# Panics name source files: without where they lie here, so that the same source gives the same bytes everywhere.
REMAP = $$(for d in "$${CARGO_HOME:-$$HOME/.cargo}"/registry/src/*; do echo "--remap-path-prefix=$$d=crates"; done) \
  --remap-path-prefix=$(CURDIR)=sds-shim --remap-path-prefix=$(shell rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(RUST_COMMIT)
CARGO := cargo --locked
# With a standard library built for size.
DIST = std=$$(packaging/std/flags.sh) && RUSTC_BOOTSTRAP=1 OPENSSL_DIR=$(CURDIR)/target/openssl$(SUFFIX)/install \
  RUSTFLAGS="$(DIST_FLAGS) $(call LINK,$(FOR)) $(REMAP)" $(CARGO) build --profile dist --target $(FOR_TARGET) $$std
# Other static programs, with the standard library as it is.
STATIC = OPENSSL_DIR=$(CURDIR)/target/openssl$(SUFFIX)/install \
  RUSTFLAGS="-C target-feature=+crt-static $(call LINK,$(FOR)) $(REMAP)" $(CARGO)
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
# The standard library's panics name its sources as they lie here where those are installed, else by this.
RUST_COMMIT := $(shell rustc -vV | sed -n 's/^commit-hash: //p')
PACKAGES := tests/testkit/install-packages.sh
# What the tests run beside the shim.
TEST_TOOLS := envoy gdb strace valgrind podman pod-network prometheus systemd pilot-agent istio-ca distribution lintian \
  debian-roots gvisor seccomp-profiles workload-api
# How long `make fuzz` gives each target.
FUZZ_SECONDS ?= 60

.PHONY: help build others check-others check-other deb lintian debian-roots image image-ca demo demo-migration demo-control-plane test test-kubernetes test-kernels test-emulated kernel-guest \
  conformance-istio bench soak fleet recovery without-sandbox check fuzz fuzz-short asan distribution openssl envoy perf valgrind vegeta \
  strace gdb pilot-agent podman gvisor seccomp-profiles pod-network python prometheus prometheus-operator kube-router workload-api spire istio-ca istio-injector istiod curl kubernetes node systemd manual clean

# Who installs something finds what the others have installed, and each has the processors for itself.
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## the shipped binary, at target/dist/sds-shim; ARCH=arm64 cross-compiles it for arm64, to target/dist-arm64/sds-shim
	@packaging/link/install.sh $(ARCH)
	@packaging/openssl/build.sh $(ARCH)
	@$(CARGO) fetch --quiet --target $(FOR_TARGET)
	@$(DIST) --bin sds-shim
	@# Another terminal may be running it.
	@cmp -s target/$(FOR_TARGET)/dist/sds-shim $(FOR_BINARY) || { install -D target/$(FOR_TARGET)/dist/sds-shim $(FOR_BINARY).new && \
		mv -f $(FOR_BINARY).new $(FOR_BINARY); }

deb: build ## Debian packages, in target/deb: of this machine's architecture, and of arm64 where its binary is built
	@packaging/debian/build.sh

# What `make image` makes images for, and `make test` looks at: the machine's own platform is always among them.
PLATFORMS ?= amd64 arm64
OTHERS = $(filter-out $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(MACHINE))),$(PLATFORMS))
others:
	@for arch in $(OTHERS); do $(MAKE) --no-print-directory build ARCH=$$arch || exit; done

# Lines for another architecture are read by its compiler alone.
check-others: others
	@for arch in $(OTHERS); do $(MAKE) --no-print-directory check-other ARCH=$$arch || exit; done
check-other:
	@OPENSSL_DIR=$(CURDIR)/target/openssl$(SUFFIX)/install $(CARGO) clippy --target $(FOR_TARGET) --workspace --all-targets -- -D warnings

image: build others podman python ## container images with podman: the binary alone for amd64, arm64 and both (PLATFORMS="amd64 arm64"), and with BASE=image a sidecar's; how in packaging/image/build.sh
	@PLATFORMS="$(PLATFORMS)" packaging/image/build.sh $(BASE)

image-ca: build podman python ## the same with the image of the development CA, for trials of the Helm chart
	@$(STATIC) build --quiet --release --target $(TARGET) --package development-ca --bins
	@DEVELOPMENT_CA=target/$(TARGET)/release/development-ca packaging/image/build.sh $(BASE)

demo: build envoy ## the acceptance scene: four workloads, real Envoys; KEEP=1 leaves it up
	@$(CARGO) build --quiet --package testkit --bin demo
	@target/debug/demo

demo-migration: build envoy ## the same mesh under load from mounted secrets to SDS and back, as a table; KEEP=1 leaves it up
	@$(CARGO) build --quiet --package testkit --bin demo
	@target/debug/demo migration

demo-control-plane: build envoy ## the same mesh, configured over ADS with mutual TLS by a control plane without a secret mount; KEEP=1 leaves it up
	@$(CARGO) build --quiet --package testkit --bin demo
	@target/debug/demo control-plane

# What only a second build could use takes several gigabytes, which a machine in CI need not have.
test test-kubernetes test-kernels test-emulated kernel-guest: export CARGO_INCREMENTAL := 0

test: check build others check-others $(TEST_TOOLS) asan fuzz-short ## everything: format, lints, unit, integration and end-to-end tests
	@$(CARGO) build --quiet --package testkit --bins
	@rm -rf target/test-output
	@$(CARGO) test --workspace --all-targets
	@tests/testkit/search-output.sh target/test-output

test-kubernetes: build envoy kubernetes node $(if $(NODE_SHORT),,prometheus-operator kube-router) istio-injector istiod pilot-agent podman pod-network curl ## the Helm chart, tokens and the mesh against a real Kubernetes API server and on a node of it; the first build takes 25 minutes; NODE_SHORT=1, for CI, leaves out what takes minutes to build or to happen
	@$(CARGO) build --quiet --package testkit --package development-ca --bins
	@rm -rf target/test-output
	@NODE_SHORT="$(NODE_SHORT)" tests/kubernetes/run.sh
	@tests/testkit/search-output.sh target/test-output 20

# The short form has both series that count secret memory by user: the older one on x86-64, with many shims of one user,
# and the newer one on arm64 with pages of 16 KiB, with what differs there.
KERNELS ?= $(if $(KERNELS_SHORT),6.1-security 6.12-arm64-16k)
SCENES ?= $(if $(KERNELS_SHORT),one many=40 eater=6)
SCENES_ARM64 ?= $(if $(KERNELS_SHORT),one strict exec files locked,$(SCENES))
test-kernels: openssl ## the shipped binaries under Debian's kernels in QEMU; KERNELS="6.12" SCENES="one many=40" for some, KERNELS_SHORT=1 for CI, KERNELS_TABLE=1 writes src/manual/evidence/kernels.md, KERNELS_TABLE=only from earlier runs
	@KERNELS="$(KERNELS)" tests/kernels/install-kernels.sh
	@for arch in $$(KERNELS="$(KERNELS)" tests/kernels/install-kernels.sh --architectures); do \
		$(MAKE) --no-print-directory build kernel-guest ARCH=$$arch || exit; done
	@KERNELS="$(KERNELS)" SCENES="$(SCENES)" SCENES_ARM64="$(SCENES_ARM64)" $(CARGO) test --package kernels --test kernels -- --include-ignored --nocapture

test-emulated: openssl python ## the demo and the tests on arm64 in QEMU, which takes hours; PROGRAMS="demo sds renewal" for some, TESTS="order::" for some of their tests
	@KERNELS=6.12-arm64 tests/kernels/install-kernels.sh
	@tests/testkit/install-envoy.sh arm64
	@$(MAKE) --no-print-directory build ARCH=arm64
	@PROGRAMS="$(PROGRAMS)" TESTS="$(TESTS)" tests/kernels/emulated/run.sh arm64

# The guest's part, for the architecture of the kernels, with the tests of the crate that holds all unsafe code.
kernel-guest:
	@$(STATIC) build --quiet --release --target $(FOR_TARGET) --package kernels --package locked --bin kernel-guest --example secret_pages
	@set -o pipefail; $(STATIC) test --quiet --no-run --release --target $(FOR_TARGET) --package locked --message-format json \
		| sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep /deps/ >target/$(FOR_TARGET)/guest-tests

conformance-istio: build pilot-agent ## run the SDS conformance rules against Istio's agent as well; writes src/manual/evidence/conformance.md
	@CONFORMANCE_TABLE=1 $(CARGO) test --test sds_conformance -- --nocapture

bench: PLATFORMS =
bench: build image envoy pilot-agent perf valgrind vegeta ## benchmark the shim, Istio's agent and a bare program; tables, JSON and plots in target/bench; BENCH_QUICK=1 takes 3 minutes instead of 20
	@$(DIST) --quiet --package floor
	@install -D target/$(TARGET)/dist/floor target/bench/floor
	@export CARGO_PROFILE_DIST_STRIP=false; $(DIST) --quiet --bin sds-shim --target-dir target/with-symbols
	@install target/with-symbols/$(TARGET)/dist/sds-shim target/bench/sds-shim-with-symbols
	@$(CARGO) build --quiet --release --package bench
	@target/release/bench

soak: build envoy ## ten minutes of hostile clients and a CA that floods, and of faults under load; SOAK_SECONDS=n for another time
	@$(CARGO) build --quiet --package testkit --bins
	@SOAK_SECONDS=$(or $(SOAK_SECONDS),600) $(CARGO) test --test soak --test soak_rotation -- --nocapture

fleet: build pilot-agent ## what a fleet costs its CA: 100,000 sidecars simulated, and as many real ones as the machine bears; report in target/fleet
	@$(CARGO) build --quiet --package fleet
	@target/debug/fleet

recovery: build pilot-agent pod-network ## how soon a sidecar without a certificate has one when the CA is back or what kept it away changes, beside Istio's agent; writes src/manual/evidence/recovery.md
	@RECOVERY_TABLE=1 $(CARGO) test --test recovery the_table -- --nocapture

without-sandbox: build $(TEST_TOOLS) ## the whole suite with SDS_SHIM_SECCOMP=off and SDS_SHIM_LANDLOCK=off
	@$(CARGO) build --quiet --package testkit --bins
	@SHIM_SANDBOX=off $(CARGO) test

check: openssl ## format and lints, warnings as errors
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check
	@$(CARGO) fmt --manifest-path tests/workload_api/rust-spiffe/Cargo.toml --check
	@$(CARGO) clippy --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --workspace --no-deps

fuzz: openssl ## each fuzz target for FUZZ_SECONDS (60), from where the last run stopped; TARGETS="a b" names some
	@tests/fuzz/run.sh $(FUZZ_SECONDS) $(TARGETS)

fuzz-short: openssl ## each fuzz target for some thousand inputs, the same in every run
	@tests/fuzz/run.sh short

asan: openssl ## the crate with all unsafe code under AddressSanitizer; the stable compiler will do
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_PROFILE_DEV_OPT_LEVEL=1 $(CARGO) test --quiet \
		--package locked --target $(HOST) --target-dir target/asan

distribution: ## a plain build with the distribution's libssl; tests/install/distribution.rs says what it keeps
	@tests/testkit/install-libssl.sh
	@env -u OPENSSL_DIR -u OPENSSL_STATIC -u OPENSSL_IS_OURS $(CARGO) build --quiet --bin sds-shim --target-dir target/distribution

openssl:
	@packaging/openssl/build.sh

envoy:
	@tests/testkit/install-envoy.sh $(ARCH)

perf:
	@$(PACKAGES) linux-perf perf

valgrind:
	@$(PACKAGES) valgrind valgrind

vegeta:
	@tests/testkit/install-vegeta.sh

strace:
	@$(PACKAGES) strace strace

lintian:
	@$(PACKAGES) lintian lintian

debian-roots:
	@tests/testkit/install-debian-roots.sh

gdb:
	@$(PACKAGES) gdb gcore

pilot-agent:
	@tests/testkit/install-pilot-agent.sh

podman:
	@$(PACKAGES) "podman runc" podman runc

gvisor:
	@tests/testkit/install-gvisor.sh

seccomp-profiles:
	@tests/testkit/install-seccomp-profiles.sh

pod-network:
	@$(PACKAGES) "iproute2 iptables" ip iptables-restore

python:
	@$(PACKAGES) python3 python3

prometheus:
	@tests/testkit/install-prometheus.sh

prometheus-operator: ## Prometheus and its operator for the tests, at target/prometheus-operator
	@tests/testkit/install-prometheus-operator.sh

kube-router: ## what enforces NetworkPolicies in the tests, at target/kube-router
	@$(PACKAGES) ipset ipset
	@tests/testkit/install-kube-router.sh

workload-api:
	@tests/testkit/install-workload-api.sh

spire: build envoy ## SPIRE's own server and agent as the source of an Envoy's identity; the first build takes ten minutes
	@tests/testkit/install-spire.sh
	@$(CARGO) test --test spiffe -- --include-ignored --nocapture spire::

istio-ca: ## Istio's own CA for the tests, at target/istio-ca/istio-ca
	@tests/testkit/install-istio-ca.sh

istiod: ## Istio's own control plane for the tests, at target/istiod
	@tests/testkit/install-istiod.sh

istio-injector: ## Istio's own injector and its chart for the tests, at target/istio-injector
	@tests/testkit/install-istio-injector.sh

curl:
	@$(PACKAGES) curl /usr/bin/curl

kubernetes: ## Kubernetes and Helm for the tests, at target/kubernetes
	@tests/testkit/install-kubernetes.sh

node: ## containerd with its plugins, and runc, for the tests, at target/node-programs
	@tests/testkit/install-node.sh

systemd:
	@$(PACKAGES) systemd systemd-analyze

manual: openssl ## write the generated pages anew: the variables, where links lead in rustdoc, the man page, completions of shells
	@MANUAL=1 $(CARGO) test --quiet --test repository -- command_files:: environment:: manual::

clean: ## remove everything that was built
	@rm -rf target
