//! The manual: why things are as they are.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("differences.md")]
pub mod differences {}

#[doc = include_str!("conformance.md")]
pub mod conformance {}

#[doc = include_str!("threat_model.md")]
pub mod threat_model {}

#[doc = include_str!("budgets.md")]
pub mod budgets {}

#[doc = include_str!("capacity.md")]
pub mod capacity {}
