//! For tests whose processes are the test program itself, started once more: nothing forks, because a forked child has no
//! arena.

use std::{env, panic, process::ExitCode};

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// Runs all tests whose name has what the command line says in it.
pub(crate) fn run(tests: &[(&str, fn())]) -> ExitCode {
    // The standard library's hook would look for symbols: with more memory than the arena has, so it would hang.
    panic::set_hook(Box::new(|panic| println!("{panic}")));
    let filter = env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&*filter)) {
        let passed = panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes this process one of a user without capabilities; it was root's.
pub(crate) fn become_user() -> nix::Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(1337))?;
    setuid(Uid::from_raw(1337))
}
