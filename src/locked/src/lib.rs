//! All `unsafe` code of `sds-shim`, behind a safe door.
//!
//! Keys and nothing else lie in a few pages of secret memory ([`open_secret_memory`]): whatever is allocated inside of
//! [`secretly`], by Rust or OpenSSL, and the stack that it runs on. All else that is allocated ([`LockedAllocator`],
//! [`adopt_openssl`]) and the main stack ([`on_arena_stack`]) lie in the arena, which is locked; so do keys where there
//! is no secret memory to be had. Blocks of both are wiped when they are freed. Public tables that OpenSSL makes lie
//! beside ([`fill_openssl_tables`]). [`report`] says what holds, and what is missing.
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
// The house rules for what ships: no panic can be reached from outside, nothing is printed past the log, and what
// `.clippy.toml` lists is called only where a reason stands. Unit tests do as they like.
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::disallowed_methods,
        clippy::too_many_lines
    )
)]

mod arena;
mod certificate;
mod child;
mod filling;
mod keys;
mod landlock;
mod mapping;
mod memory_functions;
mod methods;
mod peer;
mod pool;
mod process;
mod readable;
mod registers;
mod report;
mod scope;
mod seccomp;
mod secret;
mod small;
mod stack;
#[cfg(any(test, target_feature = "crt-static"))]
mod stand_ins;
mod successor;
mod tables;
mod tls;
mod verified;

pub use arena::{
    ARENA_KIB, LockedAllocator, Usage, extend, has_room, keys_are_secret, mapped, open_secret_memory,
    reopen_secret_memory, secret_usage, usage,
};
#[cfg(feature = "dump")]
pub use arena::{
    for_each_arena_byte_range, for_each_secret_byte_range, for_the_tables_bytes, forget_secret_peak, secret_misses,
};
pub use certificate::{curve_of, has_basic_constraints, is_ca};
pub use child::{Inherited, Started, reap};
pub use filling::fill_openssl_tables;
pub use keys::{
    Structure, as_if_new, generate_ec_key, generate_rsa_key, pkcs8, public_half, read_pkcs8, read_private_key,
    write_private_key,
};
pub use landlock::{Ruleset, landlock_version};
pub use memory_functions::{TooLate, adopt_openssl, with_blocks_up_to};
pub use peer::peer_process;
#[cfg(fuzzing)]
pub use pool::model::exercise_pool;
pub use process::{ProcessLock, harden_process, lock_process, on_gvisor, was_open_to_others};
pub use readable::{Events, Readable};
pub use registers::clear_vector_registers;
pub use report::{Counting, Level, Report, report};
#[cfg(feature = "dump")]
pub use scope::secret_stack_peak;
pub use scope::secretly;
pub use seccomp::{FOLLOWING_CALLS, NEWER_CALLS, OLDER_CALLS, SERVING_CALLS, restrict_system_calls};
pub use secret::{Need, SecretUsage};
pub use stack::{clear_idle_stack, on_arena_stack};
pub use successor::{
    Crash, Listener, Reached, answer, asleep, awake, hand_on_confinement, hand_on_key, hand_on_listener,
    hand_on_no_key, hand_on_patience, image, inherited_command, inherited_confinement, inherited_key,
    inherited_listener, inherited_patience, inherited_signal, last_crash, signal_is_handled, stand_by, stand_down,
    take_signal, watch_for_hangs,
};
pub use tls::{AnchorsFor, find_anchors, limit_certificate_chain, negotiated_group};
