//! Renewal: when, with which credentials, and what is published.

mod backoff;
mod caller;
mod projected;
mod renewal;
mod request_borne;
mod schedule;

pub use backoff::Backoff;
pub use projected::ProjectedToken;
pub use renewal::{Renewal, RenewalEnded, TokenSource};
pub use request_borne::{RequestBorne, RequestToken};
pub use schedule::renewal_after;
