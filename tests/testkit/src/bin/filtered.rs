//! Takes system calls away from itself and becomes another program: `filtered WORD... -- PROGRAM ARGUMENT...`.

use std::{collections::BTreeMap, os::unix::process::CommandExt, process::Command};

use nix::libc::{
    SYS_inotify_init1, SYS_kill, SYS_landlock_create_ruleset, SYS_madvise, SYS_memfd_secret, SYS_prctl, SYS_prlimit64,
    SYS_setrlimit,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

const PR_SET_DUMPABLE: u64 = nix::libc::PR_SET_DUMPABLE as u64;
const RLIMIT_CORE: u64 = nix::libc::RLIMIT_CORE as u64;
const MADV_DONTDUMP: u64 = nix::libc::MADV_DONTDUMP as u64;

const EPERM: u32 = 1;
const EMFILE: u32 = 24;
const ENOSYS: u32 = 38;
/// The call does nothing, and its caller is told that it did.
const PRETEND: u32 = 0;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    for word in arguments.by_ref().map(|word| word.to_string_lossy().into_owned()) {
        match word.as_str() {
            "--" => break,
            // As the seccomp profile of a container runtime may.
            "without-secret-memory" => refuse(EPERM, vec![(SYS_memfd_secret, Vec::new())]),
            // As a kernel that was built without.
            "without-landlock" => refuse(ENOSYS, vec![(SYS_landlock_create_ruleset, Vec::new())]),
            "without-signals" => refuse(EPERM, vec![(SYS_kill, Vec::new())]),
            // As when all instances of the user are taken.
            "without-inotify" => refuse(EMFILE, vec![(SYS_inotify_init1, Vec::new())]),
            "dumpable" => refuse(
                PRETEND,
                vec![
                    (SYS_prctl, vec![argument_is(0, PR_SET_DUMPABLE)]),
                    (SYS_setrlimit, vec![argument_is(0, RLIMIT_CORE)]),
                    (SYS_prlimit64, vec![argument_is(1, RLIMIT_CORE)]),
                ],
            ),
            "nothing-left-out-of-cores" => refuse(PRETEND, vec![(SYS_madvise, vec![argument_is(2, MADV_DONTDUMP)])]),
            _ => panic!("{word:?} is not known"),
        }
    }
    let program = arguments.next().expect("a program to become");
    let error = Command::new(&program).args(arguments).exec();
    panic!("{}: {error}", program.display());
}

fn refuse(errno: u32, calls: Vec<(i64, Vec<SeccompRule>)>) {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture that seccomp knows");
    let rules = BTreeMap::from_iter(calls);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), architecture);
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    apply_filter(&program).expect("the kernel takes the filter");
}

fn argument_is(index: u8, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    SeccompRule::new(vec![condition.expect("an argument's index")]).expect("a rule")
}
