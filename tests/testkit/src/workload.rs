//! A directory that looks like the root of a workload's pod.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use development_ca::ProjectedVolume;

/// Path of the SDS socket in the pod.
pub const SOCKET: &str = "./var/run/secrets/workload-spiffe-uds/socket";
/// Path of the CA's root in the pod.
pub const ROOT_CERTIFICATE: &str = "./var/run/secrets/istio/root-cert.pem";
/// Directory of the projected service-account token in the pod.
pub const TOKEN_DIRECTORY: &str = "./var/run/secrets/tokens";
/// Name of the token file.
pub const TOKEN_FILE: &str = "istio-token";

/// A workload: its names and its directory, in which its processes run and against which their paths are resolved.
pub struct Workload {
    directory: PathBuf,
    namespace: String,
    service_account: String,
    token: Option<ProjectedVolume>,
}

impl Workload {
    /// Makes `directory` with what the pod has before any process starts, except for the token.
    pub fn create(directory: &Path, namespace: &str, service_account: &str, root_pem: &str) -> io::Result<Self> {
        for file in [SOCKET, ROOT_CERTIFICATE] {
            if let Some(parent) = directory.join(file).parent() {
                fs::create_dir_all(parent)?;
            }
        }
        let workload = Self {
            directory: directory.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            token: None,
        };
        workload.write_root(root_pem)?;
        Ok(workload)
    }

    /// `SERVICE_ACCOUNT.NAMESPACE`, the name that the demo uses.
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_account, self.namespace)
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Its SPIFFE ID in the trust domain `cluster.local`.
    pub fn spiffe_id(&self) -> String {
        spiffe_id(&self.namespace, &self.service_account)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// The SDS socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// The token file.
    pub fn token_file(&self) -> PathBuf {
        self.directory.join(TOKEN_DIRECTORY).join(TOKEN_FILE)
    }

    /// The file with the CA's root.
    pub fn root_certificate(&self) -> PathBuf {
        self.directory.join(ROOT_CERTIFICATE)
    }

    /// Writes the CA's root anew, by rename as a mounted volume does it.
    pub fn write_root(&self, root_pem: &str) -> io::Result<()> {
        let file = self.root_certificate();
        let fresh = file.with_extension("new");
        fs::write(&fresh, root_pem)?;
        fs::rename(fresh, file)
    }

    /// Puts a token into the projected volume, or replaces the one that is there as kubelet does.
    pub fn write_token(&mut self, token: &str) -> io::Result<()> {
        self.write_token_volume(&[(TOKEN_FILE, token)])
    }

    /// Empties the projected volume: the token's link stays and leads nowhere.
    pub fn remove_token(&mut self) -> io::Result<()> {
        self.write_token_volume(&[])
    }

    fn write_token_volume(&mut self, files: &[(&str, &str)]) -> io::Result<()> {
        match &self.token {
            Some(volume) => volume.replace(files),
            None => {
                self.token = Some(ProjectedVolume::create(&self.directory.join(TOKEN_DIRECTORY), files)?);
                Ok(())
            }
        }
    }
}

/// The SPIFFE ID of a service account in the trust domain `cluster.local`.
pub fn spiffe_id(namespace: &str, service_account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
}
