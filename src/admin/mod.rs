//! What is shown to people and probes: health, metrics and status. It only reads what others have written into
//! [`crate::status`].

mod host;
mod listener;
mod metrics;
mod older_format;
mod pages;
mod places;
mod refusals;
mod row;
mod server;
mod status;
mod tls;

pub use pages::AdminPages;
pub use server::{serve, serve_tls};
