//! System calls of the shim beside those of serving, which `locked` lists: for the tests of what allows them.

/// What a process takes before it serves.
pub const STARTING: &[&str] = &[
    "arch_prctl",
    "close_range",
    "execve",
    "execveat",
    "ftruncate",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "memfd_secret",
    "mlock",
    "mlock2",
    "mlockall",
    "seccomp",
    "set_tid_address",
    "timer_create",
];

/// What the filter allows with some arguments only.
pub const LOOKED_AT: &[&str] = &["clone", "mmap", "mprotect", "socket"];
