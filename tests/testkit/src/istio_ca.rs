//! Istio's own CA, as `tests/go/istio-ca` serves it.

use std::{fs, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tonic::Code;

use crate::{
    Failure, OrFail,
    development_ca::{Pki, TokenIssuer},
    discovery::Discovery,
    process::{Process, binary},
    scratch::Scratch,
};

/// Settings of an [`IstioCa`]; the defaults are istiod's.
#[derive(Clone)]
pub struct IstioCaOptions {
    /// Trust domain of the identities.
    pub trust_domain: String,
    /// Audience that a token must name.
    pub audience: String,
    /// Longest lifetime that may be asked for.
    pub max_ttl: Duration,
    /// Further roots (PEM) behind the signing one in `root-cert.pem`.
    pub extra_roots: Vec<String>,
}

impl Default for IstioCaOptions {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            audience: "istio-ca".to_owned(),
            max_ttl: Duration::from_secs(90 * 86_400),
            extra_roots: Vec::new(),
        }
    }
}

/// The running CA; it stops when it is dropped.
pub struct IstioCa {
    process: Process,
    address: SocketAddr,
    root_pem: String,
    discovery: Discovery,
}

/// One `CreateCertificate` that was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct IstioCall {
    /// The CSR as sent.
    pub csr: String,
    /// The lifetime asked for, in seconds.
    pub validity: i64,
    /// `CertSigner` of the request's metadata.
    pub signer: Option<String>,
    /// Whether an `authorization` header came with it.
    pub token: bool,
    /// Serial number of the connection's client certificate, in lower-case hexadecimal.
    pub peer: Option<String>,
    /// How it was answered.
    pub code: Code,
    /// Serial number of the certificate that was issued, in lower-case hexadecimal.
    pub issued: Option<String>,
}

impl IstioCa {
    /// Plugs the intermediate of `pki` into it, as istiod's secret `cacerts` does; it believes the tokens of `tokens`
    /// when they name [`IstioCa::issuer`].
    pub async fn start(pki: &Pki, tokens: &TokenIssuer, options: &IstioCaOptions) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        for (name, mut pem) in pki.plugged_in().or_fail("write the CA as PEM")? {
            if name == "root-cert.pem" {
                pem.extend(options.extra_roots.iter().map(String::as_str));
            }
            fs::write(scratch.path().join(name), pem).or_fail(format!("write {name}"))?;
        }
        let cacerts = format!("-cacerts={}", scratch.path().display());
        Self::start_with(&scratch, vec![cacerts], tokens, options).await
    }

    /// It makes itself a root and signs with that, as istiod does when nobody plugs in a CA.
    pub async fn start_self_signed(tokens: &TokenIssuer, options: &IstioCaOptions) -> Result<Self, Failure> {
        Self::start_with(&Scratch::new("tests")?, Vec::new(), tokens, options).await
    }

    async fn start_with(
        scratch: &Scratch,
        mut arguments: Vec<String>,
        tokens: &TokenIssuer,
        options: &IstioCaOptions,
    ) -> Result<Self, Failure> {
        let program = binary("ISTIO_CA_BINARY", "target/istio-ca/istio-ca", "run `make istio-ca`")?;
        let discovery = Discovery::start(tokens).await?;
        let roots = scratch.path().join("roots.pem");
        let rule = json!({ "issuer": discovery.issuer(), "audiences": [&options.audience] });
        arguments.extend([
            format!("-root-file={}", roots.display()),
            format!("-trust-domain={}", options.trust_domain),
            format!("-max-ttl={}s", options.max_ttl.as_secs()),
            format!("-jwt-rule={rule}"),
        ]);
        let process = Process::start_tethered("Istio's CA", &program, &arguments)?;
        let address = |lines: &[String]| lines.iter().find_map(|line| line.parse().ok());
        let address = process.wait_until("its address", address).await?;
        // Read by now, so the scratch directory may go.
        let root_pem = fs::read_to_string(&roots).or_fail("read the roots of Istio's CA")?;
        Ok(Self { process, address, root_pem, discovery })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its roots: the server's certificate chains to the first of them.
    pub fn root_pem(&self) -> String {
        self.root_pem.clone()
    }

    /// The issuer that tokens must name.
    pub fn issuer(&self) -> String {
        self.discovery.issuer()
    }

    /// Every `CreateCertificate` that was answered, in order.
    pub fn calls(&self) -> Vec<IstioCall> {
        calls(&self.process.log().lines())
    }

    /// Returns once `n` calls have been answered since the start.
    pub async fn wait_for_calls(&self, n: usize) -> crate::Result {
        self.process.wait_until(&format!("{n} calls"), |lines| (calls(lines).len() >= n).then_some(())).await
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops it and waits for its end.
    pub async fn stop(mut self) -> crate::Result {
        self.process.terminate().await.map(|_| ())
    }
}

/// Calls are lines of JSON; the other lines are Istio's log.
fn calls(lines: &[String]) -> Vec<IstioCall> {
    lines.iter().filter(|line| line.starts_with('{')).filter_map(|line| call(line)).collect()
}

fn call(line: &str) -> Option<IstioCall> {
    let object: Value = serde_json::from_str(line).ok()?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Some(IstioCall {
        csr: text(&object["csr"])?,
        validity: object["validity"].as_i64()?,
        signer: text(&object["metadata"]["CertSigner"]),
        token: object["token"].as_bool()?,
        peer: text(&object["peer"]),
        code: Code::from(i32::try_from(object["code"].as_i64()?).ok()?),
        issued: text(&object["issued"]),
    })
}
