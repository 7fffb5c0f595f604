//! Forbids `memfd_secret(2)` to itself, as a container runtime's seccomp profile may, and becomes another program.

use std::{collections::BTreeMap, os::unix::process::CommandExt, process::Command};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

const MEMFD_SECRET: i64 = 447;
const EPERM: u32 = 1;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().expect("a program to become");
    let architecture = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture that seccomp knows");
    let rules = BTreeMap::from([(MEMFD_SECRET, Vec::new())]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM), architecture);
    let program_of_filter: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    apply_filter(&program_of_filter).expect("the kernel takes the filter");
    let error = Command::new(&program).args(arguments).exec();
    panic!("{}: {error}", program.display());
}
