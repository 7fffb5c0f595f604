//! What code in a process could do that somebody else runs there: system calls made in its name, by ptrace. For tests as
//! root on x86-64.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    thread,
    time::Instant,
};

use nix::{
    errno::Errno,
    libc::{c_long, user_regs_struct},
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{Failure, OrFail, PATIENCE, POLL};

/// How far below the stack of the process our own things are.
const BELOW: u64 = 4096;
/// `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// A process that is stopped in a system call, until this is dropped.
pub struct Inside {
    pid: Pid,
    memory: File,
    stopped: user_regs_struct,
}

impl Inside {
    /// Stops it where it sleeps. All further calls have to come from this thread.
    pub fn of(pid: i32) -> Result<Self, Failure> {
        let (pid, start) = (Pid::from_raw(pid), Instant::now());
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        let memory = memory.or_fail("open its memory")?;
        loop {
            ptrace::attach(pid).or_fail("attach to it")?;
            waitpid(pid, None).or_fail("wait until it has stopped")?;
            let stopped = ptrace::getregs(pid).or_fail("read its registers")?;
            let mut before = [0; INSTRUCTION.len()];
            memory.read_exact_at(&mut before, stopped.rip - 2).or_fail("read its code")?;
            if before == INSTRUCTION {
                return Ok(Self { pid, memory, stopped });
            }
            ptrace::detach(pid, None).or_fail("leave it")?;
            if start.elapsed() > PATIENCE {
                return Err(Failure::new("it never sleeps"));
            }
            thread::sleep(POLL);
        }
    }

    /// What a call answers there.
    pub fn call(&self, number: c_long, arguments: &[u64]) -> Result<Result<u64, Errno>, Failure> {
        let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
        let mut registers = self.stopped;
        (registers.rax, registers.orig_rax) = (number.cast_unsigned(), u64::MAX);
        (registers.rdi, registers.rsi, registers.rdx) = (argument(0), argument(1), argument(2));
        (registers.r10, registers.r8, registers.r9) = (argument(3), argument(4), argument(5));
        registers.rip -= 2;
        ptrace::setregs(self.pid, registers).or_fail("set its registers")?;
        ptrace::step(self.pid, None).or_fail("have it make the call")?;
        match waitpid(self.pid, None).or_fail("wait for the call")? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            other => return Err(Failure::new(format!("it was to stop after the call: {other:?}"))),
        }
        let answer = ptrace::getregs(self.pid).or_fail("read the answer")?.rax;
        ptrace::setregs(self.pid, self.stopped).or_fail("give it its registers back")?;
        let error = answer.cast_signed();
        Ok(if (-4095..0).contains(&error) { Err(Errno::from_raw(-error as i32)) } else { Ok(answer) })
    }

    /// Its address of these bytes, until the next ones.
    pub fn place(&self, bytes: &[u8]) -> Result<u64, Failure> {
        let place = self.stopped.rsp - BELOW;
        self.memory.write_all_at(bytes, place).or_fail("write to its memory")?;
        Ok(place)
    }

    /// Its address of a path that ends with a zero.
    pub fn path(&self, path: &Path) -> Result<u64, Failure> {
        self.place(&[path.as_os_str().as_encoded_bytes(), b"\0"].concat())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.pid, None);
    }
}
