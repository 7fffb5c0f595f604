//! Takes system calls away from itself and becomes another program: `filtered WORD... -- PROGRAM ARGUMENT...`.

use std::{collections::BTreeMap, os::unix::process::CommandExt, process::Command};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

// x86-64's numbers.
const MADVISE: i64 = 28;
const KILL: i64 = 62;
const PRCTL: i64 = 157;
const SETRLIMIT: i64 = 160;
const INOTIFY_INIT1: i64 = 294;
const PRLIMIT64: i64 = 302;
const LANDLOCK_CREATE_RULESET: i64 = 444;
const MEMFD_SECRET: i64 = 447;
const PR_SET_DUMPABLE: u64 = 4;
const RLIMIT_CORE: u64 = 4;
const MADV_DONTDUMP: u64 = 16;

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
            "without-secret-memory" => refuse(EPERM, vec![(MEMFD_SECRET, Vec::new())]),
            // As a kernel that was built without.
            "without-landlock" => refuse(ENOSYS, vec![(LANDLOCK_CREATE_RULESET, Vec::new())]),
            "without-signals" => refuse(EPERM, vec![(KILL, Vec::new())]),
            // As when all instances of the user are taken.
            "without-inotify" => refuse(EMFILE, vec![(INOTIFY_INIT1, Vec::new())]),
            "dumpable" => refuse(
                PRETEND,
                vec![
                    (PRCTL, vec![argument_is(0, PR_SET_DUMPABLE)]),
                    (SETRLIMIT, vec![argument_is(0, RLIMIT_CORE)]),
                    (PRLIMIT64, vec![argument_is(1, RLIMIT_CORE)]),
                ],
            ),
            "nothing-left-out-of-cores" => refuse(PRETEND, vec![(MADVISE, vec![argument_is(2, MADV_DONTDUMP)])]),
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
