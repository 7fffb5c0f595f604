//! Renewal: when, with which credentials, and what is published.

mod backoff;
mod caller;
mod cure;
mod failover;
mod failure;
mod federation;
mod forced;
mod frozen;
mod generation;
mod mounted;
mod patience;
mod projected;
mod publisher;
mod renewal;
mod request_borne;
mod revocation;
mod roots;
mod schedule;
mod settings;
mod spiffe;
mod trouble;

pub use backoff::Backoff;
pub use forced::Forced;
pub use frozen::FrozenVolume;
pub use mounted::Mounted;
pub use patience::{Setback, Strain, bearable, wait_after};
pub use projected::ProjectedToken;
pub use renewal::{Renewal, RenewalEnded, TokenSource};
pub use request_borne::{RequestBorne, RequestToken};
pub use schedule::renewal_after;
pub use settings::RenewalSettings;
pub use spiffe::Spiffe;
