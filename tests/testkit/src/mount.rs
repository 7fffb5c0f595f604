//! Mounted files of a workload, and a shim with streams for what it serves.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{Issued, Leaf, Pki, ProjectedVolume},
    fixture::{Open, Site},
    sds::Secret,
    shim::{Shim, ShimBuilder},
    tls,
};

/// Where a platform mounts credentials for the workload.
pub const WELL_KNOWN: &str = "./var/run/secrets/workload-spiffe-credentials";
/// Names of chain, key and trust anchors there.
pub const ISTIO: [&str; 3] = ["cert-chain.pem", "key.pem", "root-cert.pem"];
/// The names that GKE gives them.
pub const GKE: [&str; 3] = ["certificates.pem", "private_key.pem", "ca_certificates.pem"];
/// The identity of the mounted certificates.
pub const ID: &str = "spiffe://cluster.local/ns/foo/sa/sleep";

/// A mount of the workload, written as kubelet does it.
pub struct Mount {
    /// Where the files lie.
    pub volume: ProjectedVolume,
    names: [&'static str; 3],
    /// Who issues them.
    pub pki: Pki,
}

impl Mount {
    /// A mount in this directory of the workload, with a first generation.
    pub fn new(scene: &Site, directory: &str, names: [&'static str; 3]) -> Result<Self, Failure> {
        let volume = ProjectedVolume::create(&scene.workload.path().join(directory), &[]).or_fail("make a volume")?;
        let mount = Self { volume, names, pki: Pki::new("mounted") };
        mount.rotate().map(|_| mount)
    }

    /// Another generation; its serial number.
    pub fn rotate(&self) -> Result<String, Failure> {
        self.write(&self.pki, &self.pki.root_pem())
    }

    /// A generation of this PKI with these anchors; its serial number.
    pub fn write(&self, pki: &Pki, roots: &str) -> Result<String, Failure> {
        self.write_issued(&issue(pki), roots)
    }

    /// A certificate that lives otherwise.
    pub fn write_leaf(&self, leaf: &Leaf) -> Result<String, Failure> {
        self.write_issued(&self.pki.issue(leaf), &self.pki.root_pem())
    }

    fn write_issued(&self, issued: &Issued, roots: &str) -> Result<String, Failure> {
        let Issued { chain_pem, key_pem } = issued;
        let contents = [chain_pem.as_str(), key_pem, roots];
        let files: Vec<_> = self.names.into_iter().zip(contents).collect();
        self.volume.replace(&files).or_fail("write the volume")?;
        serial(chain_pem)
    }
}

/// A certificate as it is mounted.
pub fn issue(pki: &Pki) -> Issued {
    pki.issue(&Leaf::workload(ID, Duration::from_secs(3600)))
}

/// The serial number of a chain's leaf.
pub fn serial(chain_pem: &str) -> Result<String, Failure> {
    tls::serial(&openssl::x509::X509::from_pem(chain_pem.as_bytes()).or_fail("parse the leaf")?)
}

/// A shim with streams for both secrets.
pub struct Served {
    /// Its pod.
    pub scene: Site,
    /// The process.
    pub shim: Shim,
    /// The stream for the certificate.
    pub default: Open,
    /// The stream for the trust anchors.
    pub roots: Open,
}

impl Served {
    /// Starts it and opens both streams.
    pub async fn start(scene: Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        let mut shim = edit(scene.shim()).start()?;
        let client = shim.connect().await?;
        let (default, roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
        Ok(Self { scene, shim, default, roots })
    }

    /// The next certificate, whose key fits.
    pub async fn certificate(&mut self) -> Result<Secret, Failure> {
        let secret = self.default.next(&self.shim).await?;
        assert!(secret.key_fits_leaf()?, "key and chain are of two generations");
        Ok(secret)
    }

    /// The next trust anchors, PEM.
    pub async fn anchors(&mut self) -> Result<String, Failure> {
        Ok(self.roots.next(&self.shim).await?.trusted_ca_pem)
    }

    /// Fails if anything is pushed on either stream.
    pub async fn quiet(&mut self) -> crate::Result {
        self.default.expect_silence(&self.shim).await?;
        self.roots.expect_silence(&self.shim).await
    }

    /// What `/status` says.
    pub async fn status(&mut self) -> Result<Value, Failure> {
        serde_json::from_str(&self.shim.admin("/status").await?.text()).or_fail("read the status")
    }

    /// Waits until it is ready, and for where certificates come from then.
    pub async fn source(&mut self) -> Result<String, Failure> {
        let deadline = Instant::now() + PATIENCE;
        while self.shim.admin("/readyz").await?.status != 200 {
            if Instant::now() > deadline {
                return Err(self.shim.failure("it does not become ready"));
            }
            sleep(POLL).await;
        }
        Ok(self.status().await?["source"].as_str().unwrap_or_default().to_owned())
    }
}
