//! One workload and its CA, which is the development CA or Istio's own.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use testkit::{
    Failure, OrFail, PATIENCE, Workload,
    development_ca::{CaOptions, Call, DevelopmentCa, Issued, Outcome, Pki, PkiOptions, TokenRequest},
    fixture::{plain_serial, tokens},
    istio_ca::{IstioCa, IstioCaOptions, IstioCall},
    scratch::Scratch,
    shim::{Shim, ShimBuilder},
};
use tonic::Code;

/// Which CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Development,
    Istio,
}

/// What a test wants of its CA, whichever it is.
pub(crate) struct Settings {
    pub(crate) trust_domain: String,
    pub(crate) audience: String,
    pub(crate) max_ttl: Duration,
    pub(crate) extra_roots: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            audience: "istio-ca".to_owned(),
            max_ttl: Duration::from_secs(90 * 86_400),
            extra_roots: Vec::new(),
        }
    }
}

/// A running CA.
pub(crate) enum Server {
    Development(DevelopmentCa),
    Istio(Box<IstioCa>),
}

/// A call as both CAs can tell it; serial numbers are in the form of [`testkit::sds::Secret::serial`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) csr: String,
    pub(crate) asked: i64,
    pub(crate) signer: Option<String>,
    /// Whether there was a token.
    pub(crate) token: bool,
    /// The client certificate.
    pub(crate) peer: Option<String>,
    /// The certificate that was issued, or the error.
    pub(crate) end: Result<String, Code>,
}

impl Seen {
    /// The credentials: whether there was a token, and the client certificate.
    pub(crate) fn credentials(&self) -> (bool, Option<String>) {
        (self.token, self.peer.clone())
    }
}

impl Server {
    pub(crate) async fn start(kind: Kind, pki: &Arc<Pki>, settings: &Settings) -> Result<Self, Failure> {
        let Settings { trust_domain, audience, max_ttl, extra_roots } = settings;
        match kind {
            Kind::Development => {
                let options = CaOptions {
                    trust_domain: trust_domain.clone(),
                    audience: audience.clone(),
                    max_ttl: *max_ttl,
                    refuse_longer: true,
                    extra_roots: extra_roots.clone(),
                    ..CaOptions::default()
                };
                let ca = DevelopmentCa::start(pki.clone(), tokens(), options).await.or_fail("start the CA")?;
                Ok(Self::Development(ca))
            }
            Kind::Istio => {
                let options = IstioCaOptions {
                    trust_domain: trust_domain.clone(),
                    audience: audience.clone(),
                    max_ttl: *max_ttl,
                    extra_roots: extra_roots.clone(),
                };
                Ok(Self::Istio(Box::new(IstioCa::start(pki, &tokens(), &options).await?)))
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Development(ca) => ca.address(),
            Self::Istio(ca) => ca.address(),
        }
    }

    pub(crate) fn root_pem(&self) -> String {
        match self {
            Self::Development(ca) => ca.root_pem(),
            Self::Istio(ca) => ca.root_pem(),
        }
    }

    /// Every call that was answered, in order.
    pub(crate) fn calls(&self) -> Vec<Seen> {
        match self {
            Self::Development(ca) => ca.calls().into_iter().filter_map(of_development).collect(),
            Self::Istio(ca) => ca.calls().into_iter().map(of_istio).collect(),
        }
    }

    /// Returns once `n` calls have been answered.
    pub(crate) async fn wait_for_calls(&self, n: usize) -> testkit::Result {
        match self {
            Self::Development(ca) => {
                tokio::time::timeout(PATIENCE, ca.wait_for_outcomes(n)).await.or_fail(format!("wait for {n} calls"))
            }
            Self::Istio(ca) => ca.wait_for_calls(n).await,
        }
    }

    /// A token of the workload `sleep` in `foo` that this CA accepts, changed by `edit`.
    pub(crate) fn mint(&self, edit: impl FnOnce(&mut TokenRequest)) -> String {
        let mut request = TokenRequest::new("foo", "sleep");
        if let Self::Istio(ca) = self {
            request.issuer = ca.issuer();
        }
        edit(&mut request);
        tokens().mint(&request)
    }

    pub(crate) async fn stop(self) -> testkit::Result {
        match self {
            Self::Development(ca) => {
                ca.stop().await;
                Ok(())
            }
            Self::Istio(ca) => ca.stop().await,
        }
    }
}

fn of_development(call: Call) -> Option<Seen> {
    let end = match call.outcome {
        Outcome::Issued { serial, .. } => Ok(plain_serial(&serial)),
        Outcome::Refused { code, .. } => Err(code),
        _ => return None,
    };
    Some(Seen {
        signer: call.metadata.into_iter().find(|(name, _)| name == "CertSigner").map(|(_, signer)| signer),
        csr: call.csr,
        asked: call.validity_duration,
        token: call.authorization.is_some(),
        peer: call.peer.map(|peer| plain_serial(&peer.serial)),
        end,
    })
}

fn of_istio(call: IstioCall) -> Seen {
    Seen {
        csr: call.csr,
        asked: call.validity,
        signer: call.signer,
        token: call.token,
        peer: call.peer,
        end: call.issued.ok_or(call.code),
    }
}

/// The workload `sleep` in `foo`, and a CA that trusts its tokens.
pub(crate) struct Scene {
    pub(crate) pki: Arc<Pki>,
    pub(crate) ca: Server,
    pub(crate) workload: Workload,
    scratch: Scratch,
}

impl Scene {
    /// A CA with its defaults, and a good token in the workload's volume.
    pub(crate) async fn new(kind: Kind) -> Result<Self, Failure> {
        Self::with(kind, &Settings::default()).await
    }

    pub(crate) async fn with(kind: Kind, settings: &Settings) -> Result<Self, Failure> {
        Self::with_pki(kind, &PkiOptions::new("test"), settings).await
    }

    pub(crate) async fn with_pki(kind: Kind, pki: &PkiOptions, settings: &Settings) -> Result<Self, Failure> {
        let pki = Arc::new(Pki::with_options(pki));
        let ca = Server::start(kind, &pki, settings).await?;
        Self::around(pki, ca)
    }

    /// The workload of a CA that runs.
    pub(crate) fn around(pki: Arc<Pki>, ca: Server) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let directory = scratch.path().join("w");
        let workload = Workload::create(&directory, "foo", "sleep", &ca.root_pem()).or_fail("lay out the workload")?;
        let mut scene = Self { pki, ca, workload, scratch };
        scene.write_token(|_| {})?;
        Ok(scene)
    }

    /// The shim of this workload and CA, not started yet.
    pub(crate) fn shim(&self) -> ShimBuilder {
        Shim::for_workload(&self.workload, self.ca.address()).env("SDS_SHIM_LOG", "debug")
    }

    /// Writes a good token, changed by `edit`.
    pub(crate) fn write_token(&mut self, edit: impl FnOnce(&mut TokenRequest)) -> testkit::Result {
        let token = self.ca.mint(edit);
        self.workload.write_token(&token).or_fail("write the token")
    }

    /// Writes the files of PROV_CERT.
    pub(crate) fn provision(&self, issued: &Issued) -> Result<PathBuf, Failure> {
        let directory = self.scratch.path().join("provisioned");
        std::fs::create_dir_all(&directory).or_fail("make the directory of PROV_CERT")?;
        let write = |name: &str, pem: &str| testkit::fixture::write(&directory.join(name), pem);
        write("cert-chain.pem", &issued.chain_pem)?;
        write("key.pem", &issued.key_pem)?;
        write("root-cert.pem", &self.ca.root_pem())?;
        Ok(directory)
    }

    /// The latest call, once exactly `n` have been answered.
    pub(crate) async fn call(&self, n: usize, shim: &Shim) -> Result<Seen, Failure> {
        self.ca.wait_for_calls(n).await.map_err(|failure| shim.explain(failure))?;
        let mut calls = self.ca.calls();
        match calls.pop() {
            Some(last) if calls.len() + 1 == n => Ok(last),
            _ => Err(shim.failure(format!("not {n} calls"))),
        }
    }

    /// The credentials of all calls, once `n` have been answered.
    pub(crate) async fn credentials(&self, n: usize) -> Result<Vec<(bool, Option<String>)>, Failure> {
        self.ca.wait_for_calls(n).await?;
        Ok(self.ca.calls().iter().map(Seen::credentials).collect())
    }
}
