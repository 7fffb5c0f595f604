//! The guest's part of `make test-kernels`: `kernel-guest run SCENE[=SHIMS]...` plays scenes with the shim under the
//! kernel that has just booted, and writes one line of JSON for each fact; `kernel-guest confine ... -- PROGRAM...`
//! becomes a program under limits. It judges nothing: that is done by `tests/kernels.rs`, which reads the facts.
#![forbid(unsafe_code)]

mod confine;
mod eater;
mod facts;
mod pod;
mod scenes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some("run") => scenes::run(&arguments.collect::<Vec<_>>()),
        Some("confine") => confine::become_program(&arguments.collect::<Vec<_>>()),
        _ => Err(testkit::Failure::new("usage: kernel-guest run SCENE[=SHIMS]... | confine ... -- PROGRAM...")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kernel-guest: {failure}");
            ExitCode::FAILURE
        }
    }
}
