//! `sds-shim` gives an Envoy sidecar its identity: it reads the pod's service-account token, makes a key, asks an
//! upstream CA for a certificate, and serves both to Envoy with SDS.
//!
//! The modules in the order in which data flows: the environment becomes [`config`]; [`identity`] holds who we are
//! and how we prove it; [`ca`] asks for certificates (at hosts that
//! [`resolve`] finds), which [`rotation`] decides when to do; [`store`] is where
//! makers and servers of secrets meet; [`sds`] serves them; [`supervise`] starts and follows the command that needs
//! them. What may be told in public is written into [`status`], and [`admin`] shows it. What each of them may take of
//! the arena is said in [`budget`]. [`app`] puts all together.
#![forbid(unsafe_code)]
// The house rules for what ships: no panic can be reached from outside, nothing is printed past the log, and what
// `.clippy.toml` lists is called only where a reason stands. Unit tests do as they like.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::disallowed_methods,
        clippy::too_many_lines
    )
)]

pub mod admin;
pub mod app;
pub mod bounded;
pub mod budget;
pub mod ca;
pub mod check;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod files;
pub mod identity;
pub mod log;
pub mod manual;
pub mod memory;
pub mod on_change;
pub mod resolve;
pub mod rotation;
pub mod sandbox;
pub mod sds;
pub mod socket_file;
pub mod spiffe;
pub mod status;
pub mod store;
pub mod supervise;
pub mod wire;
pub mod workload_api;
