//! Starts a program many times and tries each time to attach to it as soon as it runs, as another process of its user
//! could. Says how often it came in time.

use std::process::{Command, Stdio};

use nix::{sys::ptrace, unistd::Pid};

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().expect("a program");
    let starts = arguments.next().and_then(|count| count.into_string().ok()?.parse::<u32>().ok()).expect("a number");
    let mut attached = 0;
    for _ in 0..starts {
        let mut command = Command::new(&program);
        command.arg("version").env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        // When this is back, the child is the program: before that it was us.
        let mut child = command.spawn().expect("start the program");
        let pid = Pid::from_raw(child.id().cast_signed());
        attached += u32::from(ptrace::seize(pid, ptrace::Options::empty()).is_ok());
        let ended = child.wait().expect("wait for the program");
        assert!(ended.success(), "{ended}");
    }
    println!("attached to {attached} of {starts}");
}
