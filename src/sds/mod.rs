//! Envoy's Secret Discovery Service on a Unix socket: protocol rules, streams, socket.

mod authority;
mod body;
mod limits;
mod message;
mod payload;
mod report;
mod server;
mod service;
mod socket;
mod stream;
mod subscription;

pub use payload::encode;
pub use server::serve;
pub use socket::{BindError, SdsSocket};
