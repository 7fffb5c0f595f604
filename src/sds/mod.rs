//! Envoy's Secret Discovery Service on a Unix socket: protocol rules, streams, socket. Another service may have a socket
//! of its own here, within the same limits.

mod account;
mod admission;
mod authority;
mod blame;
mod body;
mod crowd;
mod frames;
#[cfg(fuzzing)]
#[path = "../../tests/fuzz/inside/mod.rs"]
pub mod fuzz;
mod health;
mod intake;
mod lease;
mod limits;
mod message;
mod openers;
mod pace;
mod payload;
mod report;
mod rights;
mod server;
mod service;
mod socket;
mod stream;
mod subscription;

pub use body::Responses;
pub use lease::Leases;
pub use message::{PREFIX, Pieces, encode_length, framed};
pub use payload::{encode, ending_in_key};
pub use rights::Names;
pub use server::Clients;
pub use service::{Calls, Connected, MayLog, Served};
pub use socket::{BindError, SdsSocket};
