//! Mounted files of a workload, and a shim with streams for what it serves.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::time::Duration;

use serde_json::Value;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{Issued, Leaf, Pki, ProjectedVolume},
    fixture::{Open, Site},
    sds::Secret,
    shim::{Shim, ShimBuilder},
};
use tokio::time::{Instant, sleep};

pub(crate) const WELL_KNOWN: &str = "./var/run/secrets/workload-spiffe-credentials";
pub(crate) const ISTIO: [&str; 3] = ["cert-chain.pem", "key.pem", "root-cert.pem"];
pub(crate) const GKE: [&str; 3] = ["certificates.pem", "private_key.pem", "ca_certificates.pem"];
pub(crate) const ID: &str = "spiffe://cluster.local/ns/foo/sa/sleep";

/// A mount of the workload, written as kubelet does it.
pub(crate) struct Mount {
    pub(crate) volume: ProjectedVolume,
    names: [&'static str; 3],
    pub(crate) pki: Pki,
}

impl Mount {
    pub(crate) fn new(scene: &Site, directory: &str, names: [&'static str; 3]) -> Result<Self, Failure> {
        let volume = ProjectedVolume::create(&scene.workload.path().join(directory), &[]).or_fail("make a volume")?;
        let mount = Self { volume, names, pki: Pki::new("mounted") };
        mount.rotate().map(|_| mount)
    }

    /// Another generation; its serial number.
    pub(crate) fn rotate(&self) -> Result<String, Failure> {
        self.write(&self.pki, &self.pki.root_pem())
    }

    pub(crate) fn write(&self, pki: &Pki, roots: &str) -> Result<String, Failure> {
        self.write_issued(&issue(pki), roots)
    }

    /// A certificate that lives otherwise.
    pub(crate) fn write_leaf(&self, leaf: &Leaf) -> Result<String, Failure> {
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

pub(crate) fn issue(pki: &Pki) -> Issued {
    pki.issue(&Leaf::workload(ID, Duration::from_secs(3600)))
}

pub(crate) fn serial(chain_pem: &str) -> Result<String, Failure> {
    testkit::tls::serial(&openssl::x509::X509::from_pem(chain_pem.as_bytes()).or_fail("parse the leaf")?)
}

/// A shim with streams for both secrets.
pub(crate) struct Served {
    pub(crate) scene: Site,
    pub(crate) shim: Shim,
    pub(crate) default: Open,
    pub(crate) roots: Open,
}

impl Served {
    pub(crate) async fn start(scene: Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        let mut shim = edit(scene.shim()).start()?;
        let client = shim.connect().await?;
        let (default, roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
        Ok(Self { scene, shim, default, roots })
    }

    pub(crate) async fn certificate(&mut self) -> Result<Secret, Failure> {
        let secret = self.default.next(&self.shim).await?;
        assert!(secret.key_fits_leaf()?, "key and chain are of two generations");
        Ok(secret)
    }

    pub(crate) async fn anchors(&mut self) -> Result<String, Failure> {
        Ok(self.roots.next(&self.shim).await?.trusted_ca_pem)
    }

    pub(crate) async fn quiet(&mut self) -> testkit::Result {
        self.default.expect_silence(&self.shim).await?;
        self.roots.expect_silence(&self.shim).await
    }

    pub(crate) async fn status(&mut self) -> Result<Value, Failure> {
        serde_json::from_str(&self.shim.admin("/status").await?.text()).or_fail("read the status")
    }

    /// Waits until it is ready, and for where certificates come from then.
    pub(crate) async fn source(&mut self) -> Result<String, Failure> {
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
