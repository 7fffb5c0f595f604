//! Makes another process crash: it goes on at an address where nothing is. For root.

use nix::{
    sys::{ptrace, wait::waitpid},
    unistd::Pid,
};

fn main() {
    let pid = std::env::args().nth(1).and_then(|pid| pid.parse().ok()).map(Pid::from_raw).expect("a process");
    ptrace::attach(pid).expect("attach to it");
    waitpid(pid, None).expect("wait for it to stop");
    let mut registers = ptrace::getregs(pid).expect("read its registers");
    #[cfg(target_arch = "x86_64")]
    {
        registers.rip = 8;
        // Else a system call that was interrupted would be made again, two bytes before.
        registers.orig_rax = u64::MAX;
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.pc = 8;
    }
    ptrace::setregs(pid, registers).expect("write its registers");
    ptrace::detach(pid, None).expect("let it go on");
}
