# sds-shim: `make help` lists what there is.
SHELL := /bin/bash
TARGET := $(shell uname -m)-unknown-linux-gnu
OPENSSL := $(CURDIR)/target/openssl/install
# One OpenSSL for all: the tests need no other, and a machine without libssl can build everything.
export OPENSSL_DIR := $(OPENSSL)
export OPENSSL_STATIC := 1
export SHIM_BINARY := $(CURDIR)/target/dist/sds-shim
export ENVOY_BINARY := $(CURDIR)/target/envoy/envoy
DIST_FLAGS := -C target-feature=+crt-static -C force-unwind-tables=no -C link-arg=-Wl,-z,pack-relative-relocs
CARGO := cargo --locked

.PHONY: help build openssl envoy demo test check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: openssl ## the shipped binary, at target/dist/sds-shim
	@RUSTFLAGS="$(DIST_FLAGS)" $(CARGO) build --profile dist --target $(TARGET) --bin sds-shim
	@install -D target/$(TARGET)/dist/sds-shim $(SHIM_BINARY)

demo: build envoy ## the acceptance scene: four workloads, real Envoys; KEEP=1 leaves it up
	@$(CARGO) build --quiet --package testkit --bin demo
	@target/debug/demo

test: check build envoy ## everything: format, lints, unit, integration and end-to-end tests
	@$(CARGO) build --quiet --package testkit --bins
	@$(CARGO) test --workspace --all-targets

check: openssl ## format and lints, warnings as errors
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --workspace --no-deps

openssl:
	@packaging/openssl/build.sh

envoy:
	@tests/testkit/install-envoy.sh

clean: ## remove everything that was built
	@rm -rf target
