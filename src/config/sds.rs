use std::{collections::BTreeSet, fs, path::PathBuf};

use super::{
    env::Env,
    reader::{Mistake, Reader},
    variables,
};

/// Directory of the workload SDS socket, relative to the working directory (contract with Istio's agent).
pub const SOCKET_DIRECTORY: &str = "./var/run/secrets/workload-spiffe-uds";

/// How SDS is served.
#[derive(Clone, Debug)]
pub struct SdsConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Users who may connect beside our own.
    pub allowed_uids: BTreeSet<u32>,
    /// Where files lie that these users may have by their names.
    pub file_directories: Vec<PathBuf>,
}

impl SdsConfig {
    /// Whether the socket is open to more users than its mode can tell apart: our own and root.
    pub fn is_shared(&self) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        self.allowed_uids.iter().any(|uid| *uid != own && *uid != 0)
    }

    /// What the commands need that only ask: where the socket is. Other mistakes are not theirs.
    ///
    /// # Errors
    /// All mistakes in what concerns the socket.
    pub fn from_env(env: &dyn Env) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader::new(env);
        let config = read(&mut reader);
        let mistakes = reader.finish();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }
}

/// What kernels have when nobody has set it.
const USUAL_OVERFLOW_UID: u32 = 65534;

/// The number that the kernel tells of each user without one in our user namespace. Images often call it `nobody`.
pub fn overflow_uid() -> u32 {
    let told = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    told.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_OVERFLOW_UID)
}

pub(super) fn read(reader: &mut Reader<'_>) -> SdsConfig {
    let file = reader
        .parse_with(&variables::WORKLOAD_IDENTITY_SOCKET_FILE, |text| {
            if text.contains('/') || matches!(text, "." | "..") {
                Err("expected a file name, not a path: the directory is fixed")
            } else {
                Ok(text.to_owned())
            }
        })
        .unwrap_or_default();
    let allowed_uids: BTreeSet<u32> = reader
        .parse_with(&variables::SDS_SHIM_ALLOW_UIDS, |text| {
            text.split(',')
                .map(|uid| uid.trim().parse::<u32>().map_err(|_| "expected user IDs, such as 1337,2000"))
                .collect::<Result<_, _>>()
        })
        .unwrap_or_default();
    let nobody = overflow_uid();
    if allowed_uids.contains(&nobody) {
        let what = format!(
            "{nobody} is what the kernel reports for every user that our user namespace does not map: all of them \
             would be admitted; run Envoy as another user, in the shim's user namespace"
        );
        reader.mistake(&variables::SDS_SHIM_ALLOW_UIDS, what);
    }
    let file_directories = reader
        .parse_with(&variables::SDS_SHIM_FILE_DIRECTORIES, |text| {
            let directory = |text: &str| Some(PathBuf::from(text.trim())).filter(|directory| directory.is_absolute());
            let directories: Option<Vec<_>> = text.split(',').map(directory).collect();
            directories.ok_or("expected absolute paths of directories, such as /etc/certs,/run/credentials")
        })
        .unwrap_or_default();
    SdsConfig { socket: PathBuf::from(SOCKET_DIRECTORY).join(file), allowed_uids, file_directories }
}
