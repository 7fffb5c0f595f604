//! All `unsafe` code of `sds-shim`, behind a safe door.
//!
//! One arena holds every byte that could be part of a key: what Rust allocates ([`LockedAllocator`]), what OpenSSL
//! allocates ([`adopt_openssl`]), but for the tables that it makes before there is any secret
//! ([`fill_openssl_tables`]), and the main stack ([`on_arena_stack`]). It is secret memory where the kernel has
//! it, else anonymous memory that is locked, else anonymous memory; [`report`] says which, and what is missing.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

mod arena;
mod child;
mod mapping;
mod openssl;
mod pool;
mod process;
mod readable;
mod registers;
mod report;
mod seccomp;
mod stack;
mod tables;

pub use arena::{LockedAllocator, Usage, extend, has_room, mapped, usage};
#[cfg(feature = "dump")]
pub use arena::{for_each_arena_byte_range, for_the_tables_bytes};
pub use child::{Inherited, reap};
pub use mapping::Kind;
pub use openssl::{TooLate, adopt_openssl};
#[cfg(fuzzing)]
pub use pool::model::exercise_pool;
pub use process::{ProcessLock, harden_process, lock_process};
pub use readable::Readable;
pub use registers::clear_vector_registers;
pub use report::{Level, Report, report};
pub use seccomp::restrict_system_calls;
#[cfg(target_arch = "x86_64")]
pub use seccomp::{FOLLOWING_CALLS, SERVING_CALLS};
pub use stack::{clear_idle_stack, on_arena_stack};
pub use tables::fill_openssl_tables;
