//! The manual: why things are as they are.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("differences.md")]
pub mod differences {}
