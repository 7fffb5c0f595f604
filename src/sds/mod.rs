//! Envoy's Secret Discovery Service on a Unix socket: protocol rules, streams, socket.

mod account;
mod admission;
mod authority;
mod blame;
mod body;
mod crowd;
#[cfg(fuzzing)]
#[path = "../../tests/fuzz/inside/mod.rs"]
pub mod fuzz;
mod health;
mod intake;
mod lease;
mod limits;
mod message;
mod pace;
mod payload;
mod report;
mod rights;
mod server;
mod service;
mod socket;
mod stream;
mod subscription;

pub use payload::encode;
pub use server::serve;
pub use service::Served;
pub use socket::{BindError, SdsSocket};
