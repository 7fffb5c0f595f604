use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use super::{
    SourceConfig,
    env::Env,
    file_resource::FileResource,
    names,
    reader::{Mistake, Reader},
    variables::{self, Variable},
};

/// Directory of the workload SDS socket, relative to the working directory (contract with Istio's agent).
pub const SOCKET_DIRECTORY: &str = "./var/run/secrets/workload-spiffe-uds";

/// A socket on which gRPC is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Envoy's SDS.
    Sds,
    /// The SPIFFE Workload API.
    WorkloadApi,
}

impl Service {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sds => "SDS",
            Self::WorkloadApi => "Workload API",
        }
    }

    /// Who comes to it.
    pub fn clients(self) -> &'static str {
        match self {
            Self::Sds => "Envoy",
            Self::WorkloadApi => "applications",
        }
    }

    fn variables(self) -> [&'static Variable; 2] {
        match self {
            Self::Sds => [&variables::WORKLOAD_IDENTITY_SOCKET_FILE, &variables::SDS_SHIM_ALLOW_UIDS],
            Self::WorkloadApi => [&variables::SDS_SHIM_WORKLOAD_API, &variables::SDS_SHIM_WORKLOAD_API_UIDS],
        }
    }

    /// The variable that says where the socket is.
    pub fn place(self) -> &'static str {
        self.variables()[0].name
    }

    /// The variable with the users who may connect.
    pub fn users(self) -> &'static str {
        self.variables()[1].name
    }
}

/// How SDS, or the Workload API, is served.
#[derive(Clone, Debug)]
pub struct SdsConfig {
    /// Which of them.
    pub service: Service,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Users who may connect beside our own.
    pub allowed_uids: BTreeSet<u32>,
    /// Where files lie that these users may have by their names.
    pub file_directories: Vec<PathBuf>,
    /// Where tokens lie that may be named.
    pub token_directories: Vec<PathBuf>,
    /// Names of the user's own, each with the files that it stands for.
    pub names: BTreeMap<String, FileResource>,
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

/// The number that the kernel tells of each user without one in our user namespace, as it was when this was asked first.
/// Images often call it `nobody`.
pub fn overflow_uid() -> u32 {
    static TOLD: OnceLock<u32> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let told = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        told.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_OVERFLOW_UID)
    })
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
    let allowed_uids = users(reader, Service::Sds);
    let token_directories = directories(reader, &variables::SDS_SHIM_TOKEN_DIRECTORIES);
    SdsConfig {
        service: Service::Sds,
        socket: PathBuf::from(SOCKET_DIRECTORY).join(file),
        allowed_uids,
        file_directories: directories(reader, &variables::SDS_SHIM_FILE_DIRECTORIES),
        names: names::read(reader, &token_directories),
        token_directories,
    }
}

/// The first of these directories that a path lies below, by its text alone.
pub fn directory_of<'a>(directories: &'a [PathBuf], path: &Path) -> Option<&'a Path> {
    let path = std::path::absolute(path).ok()?;
    let climbs = path.components().any(|part| part == Component::ParentDir);
    directories.iter().map(PathBuf::as_path).find(|directory| path.starts_with(directory) && !climbs)
}

fn directories(reader: &mut Reader<'_>, variable: &Variable) -> Vec<PathBuf> {
    let directories = reader.parse_with(variable, |text| {
        let directory = |text: &str| Some(PathBuf::from(text.trim())).filter(|directory| directory.is_absolute());
        let directories: Option<Vec<_>> = text.split(',').map(directory).collect();
        directories.ok_or("expected absolute paths of directories, such as /etc/certs,/run/credentials")
    });
    directories.unwrap_or_default()
}

fn users(reader: &mut Reader<'_>, service: Service) -> BTreeSet<u32> {
    let [_, variable] = service.variables();
    let uids = reader.parse_with(variable, |text| {
        text.split(',')
            .map(|uid| uid.trim().parse::<u32>().map_err(|_| "expected user IDs, such as 1337,2000"))
            .collect::<Result<BTreeSet<_>, _>>()
    });
    let (uids, nobody) = (uids.unwrap_or_default(), overflow_uid());
    if uids.contains(&nobody) {
        let what = format!(
            "{nobody} is what the kernel reports for every user that our user namespace does not map: all of them \
             would be admitted; run {} as another user, in the shim's user namespace",
            match service {
                Service::Sds => "Envoy",
                Service::WorkloadApi => "the application",
            }
        );
        reader.mistake(variable, what);
    }
    uids
}

/// Where the Workload API is served, if anywhere.
pub(super) fn workload_api(
    reader: &mut Reader<'_>,
    from_request: bool,
    sds: &SdsConfig,
    source: &SourceConfig,
) -> Option<SdsConfig> {
    let place = &variables::SDS_SHIM_WORKLOAD_API;
    let socket = reader.parse_with(place, |text| match text {
        "off" => Ok(None),
        text => unix_path(text).map(Some).ok_or(NO_UNIX_PATH_OR_OFF),
    });
    let allowed_uids = users(reader, Service::WorkloadApi);
    let socket = socket.flatten()?;
    if from_request {
        reader.mistake(place, "with SDS_SHIM_TOKEN_SOURCE=request there is no certificate of our own");
    }
    let is_at = |other: &Path| is_same_file(&socket, other);
    if is_at(&sds.socket) {
        reader.mistake(place, "that is the SDS socket: the Workload API needs one of its own, for its own users");
    }
    if source.spiffe.as_ref().is_some_and(|source| is_at(&source.socket)) {
        reader.mistake(place, "that is SPIFFE_ENDPOINT_SOCKET, where our own identity comes from: choose another path");
    }
    let (file_directories, token_directories, names) = Default::default();
    let service = Service::WorkloadApi;
    Some(SdsConfig { service, socket, allowed_uids, file_directories, token_directories, names })
}

/// What is wrong with an address that [`unix_path`] does not take.
pub(super) const NO_UNIX_PATH: &str = "expected unix: and an absolute path, as in unix:/run/spiffe/agent.sock";
const NO_UNIX_PATH_OR_OFF: &str = "expected unix: and an absolute path, as in unix:/run/spiffe/agent.sock, or off";

/// The socket at this address ("SPIFFE Workload Endpoint", section 4).
pub(super) fn unix_path(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("unix:")?;
    // Some write an address as a URL, with an empty host.
    let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
    (path.is_absolute() && path.file_name().is_some()).then_some(path)
}

/// Refuses to ask ourselves: the SDS socket takes the place of whatever socket is there.
pub(super) fn check_source(reader: &mut Reader<'_>, sds: &SdsConfig, source: &SourceConfig) {
    if source.spiffe.as_ref().is_some_and(|source| is_same_file(&source.socket, &sds.socket)) {
        reader.mistake(
            &variables::SPIFFE_ENDPOINT_SOCKET,
            "that is the SDS socket, which we serve ourselves: mount the agent's socket elsewhere",
        );
    }
}

/// Whether both are the same file, there or not.
fn is_same_file(one: &Path, other: &Path) -> bool {
    one.file_name() == other.file_name() && one.parent().is_some_and(|parent| is_same(parent, other))
}

/// Whether this is the directory of the file.
fn is_same(directory: &Path, file: &Path) -> bool {
    let found = file.parent().map(Path::canonicalize);
    matches!((directory.canonicalize(), found), (Ok(one), Some(Ok(other))) if one == other)
}
