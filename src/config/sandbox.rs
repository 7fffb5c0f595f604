use super::{reader::Reader, variables};

/// What the process denies itself once all is open.
#[derive(Clone, Copy, Debug)]
pub struct SandboxConfig {
    /// Whether only the system calls that serving takes are left; `None` when nobody has said it, which means where the
    /// kernel allows it.
    pub strict_calls: Option<bool>,
    /// Which files and ports are left.
    pub landlock: Landlock,
}

/// Which files and ports are left (`SDS_SHIM_LANDLOCK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// All.
    Off,
    /// Of files to write and of TCP ports, those that are needed.
    On,
    /// Of files to read as well.
    Strict,
}

pub(super) fn read(reader: &mut Reader<'_>) -> SandboxConfig {
    SandboxConfig {
        strict_calls: reader.choice_if_set(&variables::SDS_SHIM_SECCOMP, [true, false]),
        landlock: reader.choice(&variables::SDS_SHIM_LANDLOCK, [Landlock::On, Landlock::Strict, Landlock::Off]),
    }
}
