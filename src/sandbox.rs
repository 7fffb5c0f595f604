//! What the process denies itself once all is open: system calls that serving does not take (seccomp), files that it
//! does not write and ports that it does not use (Landlock). The command of `exec` was started before and is bound by
//! neither.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use locked::Ruleset;
use nix::{fcntl::OFlag, libc, unistd::geteuid};
use tracing::info;

use crate::config::{
    AdminAddress, AdminUrl, Config, FileResource, Landlock, OnChange, SandboxConfig, overflow_uid, system_roots,
};

/// Rights to files, as in the kernel's `landlock.h`: to execute, write, remove, and make what is no device.
const FILES: u64 = 0b1_1111_1111_0011;
const EXECUTE: u64 = 1 << 0;
const READ_FILE: u64 = 1 << 2;
/// To read files and directories.
const READ: u64 = READ_FILE | 1 << 3;
const WRITE_FILE: u64 = 1 << 1;
/// Since version 3 (Linux 6.2).
const TRUNCATE: u64 = 1 << 14;
/// `ioctl` on devices, since version 5 (Linux 6.10).
const IOCTL_DEVICE: u64 = 1 << 15;
/// What stays where we write: to write, remove, and make directories, regular files, sockets and symbolic links.
const WRITE: u64 = WRITE_FILE | TRUNCATE | READ | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 12;
/// Rights to TCP ports, since version 4 (Linux 6.7).
const BIND: u64 = 1 << 0;
const CONNECT: u64 = 1 << 1;
/// Reach beyond the domain, since version 6 (Linux 6.12).
const ABSTRACT_SOCKETS: u64 = 1 << 0;
const SIGNALS: u64 = 1 << 1;

/// Where nameservers are asked over TCP.
const DNS: u16 = 53;
/// What is read to look up names. Both are replaced by whoever writes them, so it is the directory that counts.
const RESOLVER: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];
/// What the kernel tells of us. Not `/proc/self`: the kernel may make that directory anew, and what was allowed for the
/// one before would not count. What tells secrets of other processes is closed to whoever is in a domain anyway.
const KERNEL: &str = "/proc";

/// What is left, from the environment.
pub struct Sandbox {
    config: SandboxConfig,
    /// Directories, and what may be done below them.
    places: Vec<(PathBuf, u64)>,
    /// The file for the reason of a fatal end.
    reason: PathBuf,
    ports: Vec<(u16, u64)>,
}

impl Sandbox {
    /// What this configuration needs.
    pub fn new(config: &Config) -> Self {
        let (reason, ports) = (config.termination_log.clone(), vec![(DNS, CONNECT)]);
        let mut this = Self { config: config.sandbox, places: Vec::new(), reason, ports };
        this.beside(&config.sds.socket, WRITE);
        if let Some(api) = &config.workload_api {
            this.beside(&api.socket, WRITE);
        }
        if let Some(output) = &config.output {
            this.places.push((output.directory.clone(), WRITE));
        }
        match &config.admin.listen {
            Some(AdminAddress::Tcp(address)) => this.ports.push((address.port(), BIND)),
            Some(AdminAddress::Unix(path)) => this.beside(path, WRITE),
            None => {}
        }
        this.ports.extend(config.admin.tls.iter().map(|tls| (tls.address.port(), BIND)));
        if let Some(OnChange::Post(AdminUrl { address: AdminAddress::Tcp(address), .. })) = &config.on_change {
            this.ports.push((address.port(), CONNECT));
        }
        for address in config.ca.addresses.iter().filter(|_| config.source.ca) {
            this.ports.push((address.port, CONNECT));
        }
        if this.restricts_reading() {
            this.read(config);
        }
        this
    }

    /// Not unless that is wanted: requests may name any file, and what a link leads to may lie elsewhere tomorrow.
    fn restricts_reading(&self) -> bool {
        self.config.landlock == Landlock::Strict
    }

    fn beside(&mut self, file: &Path, rights: u64) {
        self.places.push((file.parent().unwrap_or(Path::new("")).to_owned(), rights));
    }

    /// Where a file is, and where the links lead that it is reached by today.
    fn read(&mut self, config: &Config) {
        let mut files = config.named_files();
        files.extend([config.ca.roots_file(), system_roots()]);
        files.extend(config.ca.provisioned.iter().map(|directory| directory.join("key.pem")));
        files.extend(config.source.spiffe.iter().map(|api| api.socket.clone()));
        files.extend(RESOLVER.map(PathBuf::from));
        files.extend(config.sds.names.values().flat_map(FileResource::paths).map(Path::to_owned));
        for file in files {
            self.beside(&file, READ);
            if let Ok(target) = file.canonicalize() {
                self.beside(&target, READ);
            }
        }
        for directory in config.sds.file_directories.iter().chain(&config.sds.token_directories) {
            self.places.push((directory.clone(), READ));
        }
        self.places.push((KERNEL.into(), READ));
    }

    /// Enters it, and tells what holds: in the log, and as the answer. `following` is whether a command was started, which
    /// is not bound, and which is still signalled; nothing can be started after this but a successor of this process, and
    /// that is in it from its first instruction. Landlock is entered as far as the kernel has it.
    ///
    /// # Errors
    /// When the kernel refuses a filter of system calls that `SDS_SHIM_SECCOMP` demands.
    pub fn enter(&self, following: bool) -> io::Result<String> {
        let held = match locked::inherited_confinement() {
            Some(bits) => Held::from_bits(bits),
            None => {
                let held = self.confine(following)?;
                locked::hand_on_confinement(held.bits());
                held
            }
        };
        let told = self.describe(held);
        info!("{told}");
        Ok(told)
    }

    fn confine(&self, following: bool) -> io::Result<Held> {
        let strict = self.config.strict_calls == Some(true);
        let image = locked::image().filter(|_| !strict);
        let mut image = image;
        let landlock = match self.config.landlock {
            Landlock::Off => Err(0),
            _ => self.restrict(following, &mut image).map_err(|error| number(&error)),
        };
        let executed = image.is_some();
        // Without a domain, what the filter leaves for a successor could execute any program.
        let image = image.filter(|_| landlock.is_ok());
        let calls = match self.config.strict_calls {
            Some(false) => return Ok(Held { landlock, calls: Err(0), succeeds: executed }),
            _ => locked::restrict_system_calls(following, image),
        };
        let succeeds = if calls.is_ok() { image.is_some() } else { executed };
        match calls {
            Err(error) if strict => {
                let what = format!("cannot install the filter of SDS_SHIM_SECCOMP=strict: {}", why(number(&error)));
                Err(io::Error::new(error.kind(), what))
            }
            calls => Ok(Held { landlock, calls: calls.map_err(|error| number(&error)), succeeds }),
        }
    }

    fn describe(&self, held: Held) -> String {
        let calls = match (self.config.strict_calls, held.calls) {
            (Some(false), _) => "seccomp is off (SDS_SHIM_SECCOMP)".to_owned(),
            (_, Ok(())) => "seccomp rejects system calls that serving does not need".to_owned(),
            (_, Err(error)) => format!("no seccomp filter: {}", why(error)),
        };
        let landlock = match (self.config.landlock, held.landlock) {
            (Landlock::Off, _) => "Landlock is off (SDS_SHIM_LANDLOCK)".to_owned(),
            (_, Err(error)) => format!("no Landlock: {}", why(error)),
            (_, Ok(version)) => {
                let what = if self.restricts_reading() { "reading and writing" } else { "writing" };
                let ports = if version >= 4 { " and TCP ports" } else { ", but not TCP ports, which takes Linux 6.7" };
                format!("Landlock (version {version}) restricts {what}{ports}")
            }
        };
        format!("{calls}; {landlock}{}", if held.succeeds { "" } else { "; a crash ends the process" })
    }

    /// Answers with the version of Landlock. `image` is what can still be executed, and is taken away where it cannot.
    fn restrict(&self, following: bool, image: &mut Option<BorrowedFd<'_>>) -> io::Result<u16> {
        let version = locked::landlock_version()?;
        let since = |first, bits| if version >= first { bits } else { 0 };
        let files =
            FILES | since(3, TRUNCATE) | since(5, IOCTL_DEVICE) | if self.restricts_reading() { READ } else { 0 };
        // A command that was started is outside of our domain. And where the kernel calls others as it calls us, peers
        // are told apart by whether they may be signalled (`sds::admission`).
        let signals = !following && geteuid().as_raw() != overflow_uid();
        let scopes = since(6, if signals { ABSTRACT_SOCKETS | SIGNALS } else { ABSTRACT_SOCKETS });
        let rules = Ruleset::new(files, since(4, BIND | CONNECT), scopes)?;
        for (directory, rights) in &self.places {
            allow(&rules, directory, rights & files)?;
        }
        if let Ok(reason) = open(&self.reason, OFlag::empty()) {
            rules.allow_below(reason.as_fd(), files & (WRITE_FILE | TRUNCATE))?;
        }
        // The kernel opens it for reading as well. Where it cannot be named, as in a memfd, a crash ends the process.
        if image.is_some_and(|image| rules.allow_below(image, files & (EXECUTE | READ_FILE)).is_err()) {
            *image = None;
        }
        for (port, right) in self.ports.iter().filter(|_| version >= 4) {
            rules.allow_port(*port, *right)?;
        }
        rules.enter()?;
        Ok(version as u16)
    }
}

/// What came of it: the version of Landlock, and the numbers of errors. It fits into a word, for a successor to tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    landlock: Result<u16, u16>,
    calls: Result<(), u16>,
    /// Whether a crash has a successor.
    succeeds: bool,
}

impl Held {
    const ENTERED: u64 = 1 << 63;
    const DOMAIN: u64 = 1 << 62;
    const FILTER: u64 = 1 << 61;
    const SUCCEEDS: u64 = 1 << 60;

    fn bits(self) -> u64 {
        let (landlock, calls) =
            (self.landlock.map_or_else(u64::from, |version| Self::DOMAIN | u64::from(version)), self.calls);
        let succeeds = if self.succeeds { Self::SUCCEEDS } else { 0 };
        Self::ENTERED | landlock | succeeds | calls.map_or_else(|error| u64::from(error) << 16, |()| Self::FILTER)
    }

    fn from_bits(bits: u64) -> Self {
        let (landlock, calls) = (bits as u16, (bits >> 16) as u16);
        Self {
            landlock: if bits & Self::DOMAIN != 0 { Ok(landlock) } else { Err(landlock) },
            calls: if bits & Self::FILTER != 0 { Ok(()) } else { Err(calls) },
            succeeds: bits & Self::SUCCEEDS != 0,
        }
    }
}

/// The directory, or the deepest one above it that exists. With the one above it, because it can be removed and made
/// anew, and would then be another to the kernel; but a mount stays what it is. The root is left open only to make there
/// what is missing.
fn allow(rules: &Ruleset, directory: &Path, rights: u64) -> io::Result<()> {
    let there = |path: &Path| {
        let place = open(if path.as_os_str().is_empty() { Path::new(".") } else { path }, OFlag::O_DIRECTORY).ok()?;
        let found = place.metadata().ok()?;
        Some((place, found.dev(), found.ino()))
    };
    let root = there(Path::new("/")).map(|(_, device, number)| (device, number));
    for path in directory.ancestors() {
        let Some((place, device, number)) = there(path) else { continue };
        if root != Some((device, number)) || (rights != READ && path != directory) {
            rules.allow_below(place.as_fd(), rights)?;
        }
        if path == directory
            && let Some((above, its_device, its_number)) = path.parent().and_then(there)
            && its_device == device
            && root != Some((its_device, its_number))
        {
            rules.allow_below(above.as_fd(), rights)?;
        }
        break;
    }
    Ok(())
}

/// Names it, and opens nothing of it.
fn open(path: &Path, kind: OFlag) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_PATH | kind).bits()).open(path)
}

fn number(error: &io::Error) -> u16 {
    error.raw_os_error().and_then(|number| number.try_into().ok()).unwrap_or_default()
}

/// Why there is none, in words that say who could change it.
fn why(error: u16) -> String {
    match error.into() {
        libc::ENOSYS => "this kernel does not have it".to_owned(),
        libc::EOPNOTSUPP => "this kernel was started without it (lsm=)".to_owned(),
        libc::EPERM => "the seccomp profile of the container or unit forbids it".to_owned(),
        error => io::Error::from_raw_os_error(error).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_tells_what_its_predecessor_has_entered() {
        for landlock in [Ok(1), Ok(7), Err(0), Err(libc::EOPNOTSUPP as u16)] {
            for calls in [Ok(()), Err(0), Err(libc::EPERM as u16)] {
                let held = Held { landlock, calls, succeeds: calls.is_err() };
                assert_ne!(held.bits(), 0);
                assert_eq!(Held::from_bits(held.bits()), held);
            }
        }
    }
}
