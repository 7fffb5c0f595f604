//! What the process takes from itself before it does anything.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
    stat::{Mode, umask},
};

/// No core dumps, no reading of our memory by other processes of our user, no new privileges, files for us alone.
///
/// # Errors
/// When the kernel refuses one of them.
pub fn process() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}
