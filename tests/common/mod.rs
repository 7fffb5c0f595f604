//! One pod as the tests of the served side need it: a workload's directory, its CA, its shim, a client.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::sys::signal::Signal;
use sds_shim_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use testkit::{
    Failure, OrFail, Workload,
    development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer, TokenRequest},
    scratch::Scratch,
    sds::{self, DeltaStream, SdsClient, SdsStream, Secret},
    shim::{Shim, ShimBuilder},
};
use tonic::Code;

/// How long nothing must come where nothing else tells that it will not. It can only hide a mistake, never make one.
pub(crate) const QUIET: Duration = Duration::from_millis(250);

/// What a request that holds too much may be answered with: it depends on which limit is met first.
pub(crate) const TOO_MUCH: &[Code] = &[Code::InvalidArgument, Code::ResourceExhausted, Code::OutOfRange];

/// The issuer of all tokens in this test binary: its RSA key takes a while to make.
pub(crate) fn tokens() -> Arc<TokenIssuer> {
    static TOKENS: OnceLock<Arc<TokenIssuer>> = OnceLock::new();
    Arc::clone(TOKENS.get_or_init(|| Arc::new(TokenIssuer::new())))
}

/// What a pod finds when it starts, and the CA that it belongs to.
pub(crate) struct Site {
    pub(crate) workload: Workload,
    pub(crate) ca: DevelopmentCa,
    pub(crate) pki: Arc<Pki>,
    scratch: Scratch,
}

impl Site {
    /// The workload `sleep` in `foo`, with its token.
    pub(crate) async fn new() -> Result<Self, Failure> {
        Self::with_options(CaOptions::default()).await
    }

    pub(crate) async fn with_options(options: CaOptions) -> Result<Self, Failure> {
        let mut site = Self::without_token(options).await?;
        site.write_token()?;
        Ok(site)
    }

    pub(crate) async fn without_token(options: CaOptions) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let pki = Arc::new(Pki::new("tests"));
        let ca = DevelopmentCa::start(Arc::clone(&pki), tokens(), options).await.or_fail("start the CA")?;
        let workload = Workload::create(&scratch.path().join("pod"), "foo", "sleep", &ca.root_pem());
        Ok(Self { workload: workload.or_fail("lay out the pod")?, ca, pki, scratch })
    }

    pub(crate) fn token(&self) -> String {
        tokens().mint(&TokenRequest::new(self.workload.namespace(), self.workload.service_account()))
    }

    pub(crate) fn write_token(&mut self) -> Result<(), Failure> {
        let token = self.token();
        self.workload.write_token(&token).or_fail("write the token")
    }

    pub(crate) fn shim(&self) -> ShimBuilder {
        Shim::for_workload(&self.workload, self.ca.address())
    }

    /// Starts a shim here and connects to it.
    pub(crate) async fn serve(self) -> Result<Pod, Failure> {
        let shim = self.shim();
        self.serve_with(shim).await
    }

    pub(crate) async fn serve_with(self, shim: ShimBuilder) -> Result<Pod, Failure> {
        let mut shim = Logged(shim.start()?);
        let client = shim.connect().await?;
        Ok(Pod { client, shim, site: self })
    }
}

/// A shim whose log is printed at the end: the test harness shows it when the test has failed.
pub(crate) struct Logged(pub(crate) Shim);

impl Drop for Logged {
    fn drop(&mut self) {
        eprintln!("log of {}:\n  {}", self.0.name(), self.0.log().lines().join("\n  "));
    }
}

impl Deref for Logged {
    type Target = Shim;

    fn deref(&self) -> &Shim {
        &self.0
    }
}

impl DerefMut for Logged {
    fn deref_mut(&mut self) -> &mut Shim {
        &mut self.0
    }
}

/// A site with a running shim and a connection to it.
pub(crate) struct Pod {
    pub(crate) client: SdsClient,
    pub(crate) shim: Logged,
    pub(crate) site: Site,
}

impl Pod {
    /// All is well from the start.
    pub(crate) async fn new() -> Result<Self, Failure> {
        Site::new().await?.serve().await
    }

    /// Has the shim renew its certificate now. It must hold one.
    pub(crate) fn rotate(&self) -> Result<(), Failure> {
        self.shim.signal(Signal::SIGUSR1)
    }

    /// A stream that has asked for `names` and got its first answer, not yet acknowledged.
    pub(crate) async fn ask(&self, names: &[&str]) -> Result<(SdsStream, DiscoveryResponse), Failure> {
        let mut stream = self.client.stream();
        stream.send(sds::request(names));
        let answer = stream.recv().await?;
        Ok((stream, answer))
    }

    /// The same with `DeltaSecrets`.
    pub(crate) async fn ask_delta(&self, names: &[&str]) -> Result<(DeltaStream, DeltaDiscoveryResponse), Failure> {
        let mut stream = self.client.delta();
        stream.send(sds::delta_request(names, &[]));
        let answer = stream.recv().await?;
        Ok((stream, answer))
    }

    /// Rotates, and returns once another stream has seen it.
    pub(crate) async fn rotate_and_see(&self) -> Result<DiscoveryResponse, Failure> {
        let (mut witness, _) = self.ask(&["default"]).await?;
        self.rotate()?;
        witness.recv().await
    }
}

/// The names in an answer, sorted.
pub(crate) fn names(answer: &DiscoveryResponse) -> Result<Vec<String>, Failure> {
    Ok(sorted(sds::secrets(answer)?))
}

/// The names in an incremental answer, sorted.
pub(crate) fn delta_names(answer: &DeltaDiscoveryResponse) -> Result<Vec<String>, Failure> {
    Ok(sorted(sds::delta_secrets(answer)?))
}

fn sorted(secrets: Vec<Secret>) -> Vec<String> {
    let mut names: Vec<_> = secrets.into_iter().map(|secret| secret.name).collect();
    names.sort();
    names
}

/// The secret `name` of an answer.
pub(crate) fn secret(answer: &DiscoveryResponse, name: &str) -> Result<Secret, Failure> {
    let found = sds::secrets(answer)?.into_iter().find(|secret| secret.name == name);
    found.ok_or_else(|| Failure::new(format!("the answer has no {name}")))
}

/// The certificate's serial number in an answer that has `default`.
pub(crate) fn serial(answer: &DiscoveryResponse) -> Result<String, Failure> {
    secret(answer, "default")?.serial()
}
