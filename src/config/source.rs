use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{CaRoots, Config, reader::Reader, sds, variables};
use crate::identity::SpiffeId;

/// Where a platform mounts credentials for the workload (contract with Istio's agent), relative to the working
/// directory.
const WELL_KNOWN: &str = "./var/run/secrets/workload-spiffe-credentials";
/// Where they are with `FILE_MOUNTED_CERTS`.
const MOUNTED: &str = "./etc/certs";
/// Names of chain, key and trust anchors there.
const ISTIO: [&str; 3] = ["cert-chain.pem", "key.pem", "root-cert.pem"];
/// The names that GKE gives them.
const GKE: [&str; 3] = ["certificates.pem", "private_key.pem", "ca_certificates.pem"];

/// Where `default` and `ROOTCA` come from. At least one of these is there, and a Workload API alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// The SPIFFE Workload API that tells them, if one does.
    pub spiffe: Option<WorkloadApiSource>,
    /// The files that are mounted for the workload, if they are served.
    pub files: Option<MountedFiles>,
    /// Whether the CA is asked; with files as well, its certificate takes their place once it is there.
    pub ca: bool,
}

/// A SPIFFE Workload API, such as SPIRE's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApiSource {
    /// Its socket.
    pub socket: PathBuf,
    /// The identity that counts where it tells several; the first if unset.
    pub id: Option<SpiffeId>,
}

impl fmt::Display for WorkloadApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.socket.display())
    }
}

/// A key, its certificate chain and the trust anchors that go with them, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedFiles {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The key; the same file as the chain where both are in one (a credential bundle).
    pub key: PathBuf,
    /// The trust anchors.
    pub roots: PathBuf,
}

impl MountedFiles {
    fn within(directory: &str, [chain, key, roots]: [&str; 3]) -> Self {
        let file = |name| Path::new(directory).join(name);
        Self { chain: file(chain), key: file(key), roots: file(roots) }
    }
}

/// Files of which it is told when they were written.
const MOST_FOLLOWED: usize = 32;

impl Config {
    /// The files that others write and that are followed, each once.
    pub fn followed_files(&self) -> Vec<PathBuf> {
        let mut files = self.named_files();
        files.truncate(MOST_FOLLOWED);
        files
    }

    /// The files that others write, each once, however many.
    pub fn named_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = Vec::new();
        let mut add = |file: &PathBuf| {
            if !files.iter().any(|known| known.as_os_str() == file.as_os_str()) {
                files.push(file.clone());
            }
        };
        if self.source.ca {
            self.token.file.iter().for_each(&mut add);
            if let CaRoots::File(file) | CaRoots::System(Some(file)) = &self.ca.roots {
                add(file);
            }
        }
        if let Some(mounted) = &self.source.files {
            add(&mounted.chain);
            add(&mounted.key);
        }
        let roots = &self.rotation.roots;
        roots.files.iter().for_each(&mut add);
        roots.crl.iter().for_each(&mut add);
        roots.trust_domain_file.iter().for_each(&mut add);
        roots.domains.iter().for_each(|(_, file)| add(file));
        roots.bundle_map.iter().for_each(&mut add);
        files
    }
}

/// What is mounted, and whether that is served.
pub(super) fn read(reader: &mut Reader<'_>, from_request: bool) -> SourceConfig {
    let gke = reader.choice(&variables::CA_PROVIDER, [false, true]);
    let mounted = reader.boolean(&variables::FILE_MOUNTED_CERTS);
    let bundle = reader.text(&variables::SDS_SHIM_CREDENTIAL_BUNDLE);
    let anchors = reader.text(&variables::SDS_SHIM_TRUST_ANCHORS);
    // Whether files are served, and whether the CA is asked; with a Workload API neither.
    let (ca, files, auto, spiffe) = (Some((false, true)), Some((true, false)), Some((true, true)), None);
    let id = reader.parse_with(&variables::SDS_SHIM_SPIFFE_ID, |text| {
        SpiffeId::parse(text).ok_or("expected a SPIFFE ID with a path, such as spiffe://example.org/ns/foo/sa/bar")
    });
    let wanted = match reader.choice_if_set(&variables::SDS_SHIM_SOURCE, [ca, files, auto, spiffe]) {
        Some(None) => return SourceConfig { spiffe: workload_api(reader, from_request, id), files: None, ca: false },
        usual => usual.flatten(),
    };
    let (istio, google) = (MountedFiles::within(WELL_KNOWN, ISTIO), MountedFiles::within(WELL_KNOWN, GKE));
    let present = |files: &MountedFiles| reader.env().is_there(&files.chain) && reader.env().is_there(&files.key);
    let found = match &bundle {
        Some(bundle) => Some(MountedFiles { chain: bundle.into(), key: bundle.into(), roots: PathBuf::new() }),
        None if mounted == Some(true) => Some(MountedFiles::within(MOUNTED, ISTIO)),
        None if gke => Some(google),
        None => [istio.clone(), google].into_iter().find(present),
    };
    // Those who bring a token with each request have no certificate in common that could be mounted.
    let by_default = (found.is_some() && !from_request, found.is_none() || from_request);
    let (files, ca) = wanted.unwrap_or(by_default);
    if files && from_request {
        reader.mistake(&variables::SDS_SHIM_SOURCE, "only ca is possible with SDS_SHIM_TOKEN_SOURCE=request");
    }
    let mut files = files.then(|| found.unwrap_or(istio));
    if let Some(files) = &mut files {
        match anchors {
            Some(anchors) => files.roots = anchors.into(),
            None if bundle.is_some() => reader.mistake(
                &variables::SDS_SHIM_TRUST_ANCHORS,
                "required with SDS_SHIM_CREDENTIAL_BUNDLE: the file with the bundle's trust anchors",
            ),
            None => {}
        }
    }
    SourceConfig { spiffe: None, files, ca }
}

fn workload_api(reader: &mut Reader<'_>, from_request: bool, id: Option<SpiffeId>) -> Option<WorkloadApiSource> {
    if from_request {
        reader.mistake(&variables::SDS_SHIM_SOURCE, "only ca is possible with SDS_SHIM_TOKEN_SOURCE=request");
    }
    let place = &variables::SPIFFE_ENDPOINT_SOCKET;
    let socket = reader.parse_with(place, |text| sds::unix_path(text).ok_or(sds::NO_UNIX_PATH));
    if socket.is_none() && !reader.is_set(place) {
        reader.mistake(
            place,
            "required with SDS_SHIM_SOURCE=spiffe: the socket of SPIRE's agent, or of another Workload API",
        );
    }
    Some(WorkloadApiSource { socket: socket?, id })
}
