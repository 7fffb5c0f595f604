//! Forbids itself to copy its memory for a child (`fork`), and becomes another program. What starts its children
//! with `vfork` or `posix_spawn`, which share the memory until the child has its own, notices nothing.

use std::{collections::BTreeMap, os::unix::process::CommandExt, process::Command};

use nix::libc::{CLONE_VM, ENOSYS, EPERM, SYS_clone, SYS_clone3};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().expect("a program to become");
    let shared = CLONE_VM as u64;
    let copies = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(shared), 0);
    let copies = copies.and_then(|copies| SeccompRule::new(vec![copies])).expect("a rule");
    let forbidden = [
        (SYS_clone, vec![copies]),
        #[cfg(target_arch = "x86_64")]
        (nix::libc::SYS_fork, Vec::new()),
    ];
    apply(BTreeMap::from(forbidden), EPERM);
    // A filter cannot see the flags of this one; without it, libc takes the other.
    apply(BTreeMap::from([(SYS_clone3, Vec::new())]), ENOSYS);
    let error = Command::new(&program).args(arguments).exec();
    panic!("{}: {error}", program.display());
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture that seccomp knows");
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, architecture);
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    apply_filter(&filter).expect("the kernel takes the filter");
}
