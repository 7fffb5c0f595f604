//! Breaks another process: it crashes, since it goes on at an address where nothing is, at once or when it has read its next
//! signal; or, once it has accepted its next connection, it spins or blocks for ever. For root.

use nix::{
    libc::{self, c_long},
    sys::{
        ptrace,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Code that goes round in a circle.
#[cfg(target_arch = "x86_64")]
const SPIN: [u8; 8] = [0xEB, 0xFE, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90];
#[cfg(target_arch = "aarch64")]
const SPIN: [u8; 8] = [0x00, 0x00, 0x00, 0x14, 0x1F, 0x20, 0x03, 0xD5];
/// A system call that is made again when a signal has ended it; its number is in r9, since the result takes its place.
#[cfg(target_arch = "x86_64")]
const BLOCK: [u8; 8] = [0x44, 0x89, 0xC8, 0x0F, 0x05, 0xEB, 0xF9, 0x90];
/// The result is where the first argument was, which is null; the time, no limit, comes from a register that stays.
#[cfg(target_arch = "aarch64")]
const BLOCK: [u8; 8] = [0x01, 0x00, 0x00, 0xD4, 0xFF, 0xFF, 0xFF, 0x17];

fn main() {
    let mut words = std::env::args().skip(1);
    let pid = words.next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw).expect("a process");
    let how = words.next().expect("crash, signalled, spin or block");
    ptrace::attach(pid).expect("attach to it");
    waitpid(pid, None).expect("wait for it to stop");
    match how.as_str() {
        "crash" => {}
        "signalled" => after(pid, libc::SYS_read, |result| result == size_of::<libc::signalfd_siginfo>() as c_long),
        _ => after(pid, libc::SYS_accept4, |result| result >= 0),
    }
    let mut registers = ptrace::getregs(pid).expect("read its registers");
    #[cfg(target_arch = "x86_64")]
    {
        match how.as_str() {
            "crash" | "signalled" => registers.rip = 8,
            "spin" => write(pid, registers.rip, SPIN),
            _ => {
                write(pid, registers.rip, BLOCK);
                // poll(null, 0, -1)
                (registers.r9, registers.rdi, registers.rsi, registers.rdx) = (libc::SYS_poll as u64, 0, 0, u64::MAX);
            }
        }
        // Else a system call that was interrupted would be made again, two bytes before.
        registers.orig_rax = u64::MAX;
    }
    #[cfg(target_arch = "aarch64")]
    {
        match how.as_str() {
            "crash" | "signalled" => registers.pc = 8,
            "spin" => write(pid, registers.pc, SPIN),
            _ => {
                write(pid, registers.pc, BLOCK);
                // ppoll(null, 0, null, null): a result that is an error is an address which is not read.
                registers.regs[..4].fill(0);
                registers.regs[8] = libc::SYS_ppoll as u64;
            }
        }
    }
    ptrace::setregs(pid, registers).expect("write its registers");
    ptrace::detach(pid, None).expect("let it go on");
}

/// Lets it go on until this call has had such a result.
fn after(pid: Pid, expected: c_long, is_it: impl Fn(c_long) -> bool) {
    let mut is_inside = false;
    loop {
        ptrace::syscall(pid, None).expect("let it go on");
        if !matches!(waitpid(pid, None).expect("wait for a system call"), WaitStatus::Stopped(..)) {
            continue;
        }
        let registers = ptrace::getregs(pid).expect("read its registers");
        #[cfg(target_arch = "x86_64")]
        let (call, result) = (registers.orig_rax as c_long, registers.rax as c_long);
        #[cfg(target_arch = "aarch64")]
        let (call, result) = (registers.regs[8] as c_long, registers.regs[0] as c_long);
        // Each is seen twice, before and after.
        is_inside = call == expected && !is_inside;
        if call == expected && !is_inside && is_it(result) {
            return;
        }
    }
}

fn write(pid: Pid, at: u64, code: [u8; 8]) {
    ptrace::write(pid, at as ptrace::AddressType, c_long::from_ne_bytes(code)).expect("write code");
}
