//! All `unsafe` code of `sds-shim`, behind a safe door.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

mod readable;
mod wiping;

pub use readable::Readable;
pub use wiping::WipingAllocator;
