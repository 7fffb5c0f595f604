use std::fmt;

use nix::sys::signal::Signal;

use super::hang::{HANGS, SPINS, WAITS};

/// A crash of this process that it has survived, or a hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// How often the process has crashed.
    pub crashes: u64,
    /// The signal of the last crash.
    pub signal: i32,
    /// What the kernel or the sender says of it (`si_code`); for a hang, which kind it is.
    pub code: i32,
    /// Where in the program it was, in bytes from its begin; `None` outside of it.
    pub offset: Option<u64>,
    /// What it reached for, where that was memory. The address itself is not told: it could be part of a key.
    pub reached: Option<Reached>,
}

/// What kind of address a crash reached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Near to 0.
    Null,
    /// Near to the stack pointer: the stack may be too small.
    Stack,
    /// Any other.
    Elsewhere,
}

/// One sentence. No address is in it, which could be a part of a key.
impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.signal, self.code) {
            (HANGS, SPINS) => f.write_str("hung: 20 s of CPU time without returning to its events")?,
            (HANGS, WAITS) => f.write_str("hung: blocked for 30 s")?,
            (signal, code) => {
                let signal = Signal::try_from(signal).map_or("a signal", Signal::as_str);
                write!(f, "crashed with {signal} (code {code})")?;
            }
        }
        match self.offset {
            Some(offset) => write!(f, " at program offset {offset:#x}")?,
            None => f.write_str(" outside of the program")?,
        }
        f.write_str(match self.reached {
            Some(Reached::Null) => ", accessing an address near 0",
            Some(Reached::Stack) => ", accessing an address near the stack pointer",
            Some(Reached::Elsewhere) => ", accessing an invalid address",
            None => "",
        })?;
        write!(f, "; crash {} of this process", self.crashes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_described_in_one_sentence() {
        let crash = Crash { crashes: 2, signal: 11, code: 1, offset: Some(0x1A2B), reached: Some(Reached::Null) };
        let told = "crashed with SIGSEGV (code 1) at program offset 0x1a2b, accessing an address near 0; crash 2 of this \
                    process";
        assert_eq!(crash.to_string(), told);
        let crash = Crash { offset: None, signal: 6, code: -6, reached: None, ..crash };
        assert_eq!(crash.to_string(), "crashed with SIGABRT (code -6) outside of the program; crash 2 of this process");
        for (code, how) in [(SPINS, "20 s of CPU time without returning to its events"), (WAITS, "blocked for 30 s")] {
            let told = format!("hung: {how} outside of the program; crash 2 of this process");
            assert_eq!(Crash { signal: HANGS, code, ..crash }.to_string(), told);
        }
    }
}
