//! Where the bytes of keys are: in the memory of a process as root reads it, and in core images.

mod core;
mod mappings;
mod needles;
mod pages;

pub use self::{
    core::{CoreImage, CorePattern, Gdb, gcore},
    mappings::{Mapping, Memory, mappings, memory},
    needles::Needles,
    pages::{Hit, Pages},
};

/// Bytes from an address on.
pub struct Range {
    /// Where they stand in the process.
    pub start: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}
