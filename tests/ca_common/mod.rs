//! One workload, its CA and its shim, for the tests of what happens between shim and CA.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod attempts;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail, Workload,
    development_ca::{
        CaOptions, Call, DevelopmentCa, Issued, Leaf, Outcome, Pki, TlsVersions, TokenIssuer, TokenRequest,
    },
    scratch::Scratch,
    sds::{self, SdsClient, SdsStream, Secret},
    shim::{Shim, ShimBuilder},
};

pub(crate) type Tested = Result<(), Failure>;

/// The cluster's keys: making an RSA key for each test would be most of the tests' time.
pub(crate) fn tokens() -> Arc<TokenIssuer> {
    static TOKENS: OnceLock<Arc<TokenIssuer>> = OnceLock::new();
    Arc::clone(TOKENS.get_or_init(Arc::default))
}

/// The workload `sleep` in `foo`, and a CA that trusts its tokens.
pub(crate) struct Scene {
    pub(crate) pki: Arc<Pki>,
    pub(crate) ca: DevelopmentCa,
    pub(crate) workload: Workload,
    scratch: Scratch,
}

impl Scene {
    /// A CA as istiod is, and a good token in the workload's volume.
    pub(crate) async fn new() -> Result<Self, Failure> {
        Self::with(CaOptions::default()).await
    }

    pub(crate) async fn with_tls(tls: TlsVersions) -> Result<Self, Failure> {
        Self::with(CaOptions { tls, ..CaOptions::default() }).await
    }

    pub(crate) async fn with(options: CaOptions) -> Result<Self, Failure> {
        let mut scene = Self::without_token(options).await?;
        scene.write_token(&token())?;
        Ok(scene)
    }

    pub(crate) async fn without_token(options: CaOptions) -> Result<Self, Failure> {
        Self::with_pki(Arc::new(Pki::new("test")), options).await
    }

    pub(crate) async fn with_pki(pki: Arc<Pki>, options: CaOptions) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let ca = DevelopmentCa::start(Arc::clone(&pki), tokens(), options).await.or_fail("start the CA")?;
        let directory = scratch.path().join("w");
        let workload = Workload::create(&directory, "foo", "sleep", &ca.root_pem()).or_fail("lay out the workload")?;
        Ok(Self { pki, ca, workload, scratch })
    }

    /// The shim of this workload and CA, not started yet.
    pub(crate) fn shim(&self) -> ShimBuilder {
        Shim::for_workload(&self.workload, self.ca.address())
    }

    pub(crate) fn write_token(&mut self, token: &str) -> Tested {
        self.workload.write_token(token).or_fail("write the token")
    }

    pub(crate) fn write_root(&self, pem: &str) -> Tested {
        self.workload.write_root(pem).or_fail("write the root")
    }

    /// A workload certificate of this PKI for `spiffe_id`.
    pub(crate) fn issue(&self, spiffe_id: &str) -> Issued {
        self.pki.issue(&Leaf::workload(spiffe_id, std::time::Duration::from_secs(3600)))
    }

    /// The file with revocation lists, in a directory that is there from then on.
    pub(crate) fn lists(&self) -> Result<PathBuf, Failure> {
        let directory = self.workload.path().join("./var/run/secrets/istio/crl");
        std::fs::create_dir_all(&directory).or_fail("make the directory of the lists")?;
        Ok(directory.join("ca-crl.pem"))
    }

    /// Writes the files of PROV_CERT, in place when they are there.
    pub(crate) fn provision(&self, issued: &Issued) -> Result<PathBuf, Failure> {
        let directory = self.scratch.path().join("provisioned");
        std::fs::create_dir_all(&directory).or_fail("make the directory of PROV_CERT")?;
        write(&directory.join("cert-chain.pem"), &issued.chain_pem)?;
        write(&directory.join("key.pem"), &issued.key_pem)?;
        write(&directory.join("root-cert.pem"), &self.ca.root_pem())?;
        Ok(directory)
    }

    /// Serial numbers that the CA has signed for, in the form of [`Secret::serial`].
    pub(crate) fn issued(&self) -> Vec<String> {
        self.ca.calls().iter().filter_map(issued_serial).collect()
    }

    /// The latest call, once there are `n`, each with an outcome.
    pub(crate) async fn call(&self, n: usize, shim: &Shim) -> Result<Call, Failure> {
        within(shim, &format!("{n} finished calls"), self.ca.wait_for_outcomes(n)).await?;
        let calls = self.ca.calls();
        if calls.len() != n {
            return Err(shim.failure(format!("{} calls instead of {n}", calls.len())));
        }
        calls.last().cloned().ok_or_else(|| shim.failure("no call"))
    }
}

/// A good token of the workload.
pub(crate) fn token() -> String {
    tokens().mint(&TokenRequest::new("foo", "sleep"))
}

pub(crate) fn write(file: &Path, content: &str) -> Tested {
    std::fs::write(file, content).or_fail(format!("write {}", file.display()))
}

/// The serial number that a call brought, in the form of [`Secret::serial`].
pub(crate) fn issued_serial(call: &Call) -> Option<String> {
    match &call.outcome {
        Outcome::Issued { serial, .. } => Some(plain_serial(serial)),
        _ => None,
    }
}

pub(crate) fn plain_serial(serial: &str) -> String {
    serial.to_ascii_lowercase().trim_start_matches('0').to_owned()
}

/// Awaits something that the shim must bring about; its log explains why it did not.
pub(crate) async fn within<F: Future>(shim: &Shim, what: &str, event: F) -> Result<F::Output, Failure> {
    let patience = testkit::PATIENCE;
    let awaited = tokio::time::timeout(patience, event).await;
    awaited.map_err(|_| shim.failure(format!("waited {patience:?} for {what}")))
}

/// Asks for a renewal now.
pub(crate) fn renew(shim: &Shim) -> Tested {
    shim.signal(Signal::SIGUSR1)
}

/// An open `StreamSecrets` for one resource, as Envoy has it: each answer is accepted.
pub(crate) struct Open {
    stream: SdsStream,
    name: &'static str,
}

impl Open {
    pub(crate) fn new(client: &SdsClient, name: &'static str) -> Self {
        let stream = client.stream();
        stream.send(sds::request(&[name]));
        Self { stream, name }
    }

    /// A stream on a connection of its own.
    pub(crate) async fn connect(shim: &mut Shim, name: &'static str) -> Result<Self, Failure> {
        Ok(Self::new(&shim.connect().await?, name))
    }

    /// The next secret that is pushed.
    pub(crate) async fn next(&mut self, shim: &Shim) -> Result<Secret, Failure> {
        let answer = self.stream.recv().await.map_err(|failure| shim.explain(failure))?;
        self.stream.send(sds::ack(&answer, &[self.name]));
        let mut secrets = sds::secrets(&answer)?;
        match (secrets.pop(), secrets.is_empty()) {
            (Some(secret), true) if secret.name == self.name => Ok(secret),
            _ => Err(shim.failure(format!("not exactly the resource {} in an answer", self.name))),
        }
    }

    /// Open, and nothing to read at this moment.
    pub(crate) async fn expect_silence(&mut self, shim: &Shim) -> Tested {
        let moment = std::time::Duration::from_millis(50);
        self.stream.expect_silence(moment).await.map_err(|failure| shim.explain(failure))
    }

    pub(crate) async fn expect_closed(&mut self, shim: &Shim) -> Result<sds::Closed, Failure> {
        self.stream.expect_closed().await.map_err(|failure| shim.explain(failure))
    }
}

/// Connects `count` times anew, each time with streams for both resources, and goes away again.
pub(crate) async fn reconnect(shim: &mut Shim, count: usize) -> Tested {
    for _ in 0..count {
        let client = shim.connect().await?;
        for name in ["default", "ROOTCA"] {
            Open::new(&client, name).expect_any_or_silence().await;
        }
    }
    Ok(())
}

impl Open {
    async fn expect_any_or_silence(mut self) {
        // Long enough for the request to arrive; what comes back, if anything, is another test's matter.
        drop(self.stream.recv_within(std::time::Duration::from_millis(5)).await);
    }
}
