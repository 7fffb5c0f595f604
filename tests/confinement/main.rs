//! What the process denies itself and others: system calls, files, ports, memory, other users.

mod attach;
mod landlock;
mod memory_ladder;
mod seccomp;
mod user_namespaces;
