//! `CreateCertificate`: authenticate, read the CSR, sign, or fail as scripted.

use std::future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use openssl::error::ErrorStack;
use openssl::x509::{X509, X509Ref};
use sds_shim_proto::google::protobuf::{Struct, value::Kind};
use sds_shim_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use sds_shim_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::sync::Notify;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Request, Response, Status};

use crate::csr::Csr;
use crate::fault::{Fault, PlainAnswer, SignOverrides};
use crate::identity::Identity;
use crate::options::CaOptions;
use crate::pki::Leaf;
use crate::record::{Authorization, Call, Outcome, Peer, Settle};
use crate::server::Shared;
use crate::token::Unverified;

/// The service of one connection.
pub(crate) struct Citadel {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Option<ClientCertificate>,
    /// Tells the connection's task to close it.
    pub(crate) close: Arc<Notify>,
    /// What the connection's task answers in place of the next gRPC answer.
    pub(crate) instead: Arc<Mutex<Option<PlainAnswer>>>,
}

/// A client certificate that the handshake has verified.
pub(crate) struct ClientCertificate {
    pub(crate) peer: Peer,
    pub(crate) identity: Option<Identity>,
}

/// A refusal with the reason that only the record gets.
struct Refusal {
    status: Status,
    reason: String,
}

/// istiod's words for every authentication failure.
const OPAQUE: &str = "request authenticate failure";

#[tonic::async_trait]
impl IstioCertificateService for Citadel {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.call(&headers, &request);
        let settle = Settle::arrived(&self.shared.record, call);
        let result = match self.shared.faults.take_for_call() {
            Some(Fault::Hang) => future::pending().await,
            Some(Fault::DropConnection | Fault::Break) => {
                settle.settle(Outcome::Abandoned);
                self.close.notify_one();
                future::pending().await
            }
            Some(Fault::Status(code, message)) => {
                Err(Refusal { reason: message.clone(), status: Status::new(code, message) })
            }
            Some(Fault::Refuse(status)) => Err(Refusal { reason: status.message().to_owned(), status: *status }),
            Some(Fault::Http(answer)) => {
                let reason = format!("HTTP {}", answer.status);
                *self.instead.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                Err(Refusal { status: Status::unknown(&reason), reason })
            }
            Some(Fault::Chain(chain)) => Ok((chain, Outcome::Scripted)),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                self.issue(&headers, &request, None).await
            }
            Some(Fault::Mutate(edit)) => {
                self.issue(&headers, &request, None).await.map(|(chain, outcome)| (edit(chain), outcome))
            }
            other => self.issue(&headers, &request, other.as_ref()).await,
        };
        match result {
            Ok((cert_chain, outcome)) => {
                settle.settle(outcome);
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(Refusal { status, reason }) => {
                settle.settle(Outcome::Refused { code: status.code(), reason });
                Err(status)
            }
        }
    }
}

impl Citadel {
    async fn issue(
        &self,
        headers: &MetadataMap,
        request: &IstioCertificateRequest,
        fault: Option<&Fault>,
    ) -> Result<(Vec<String>, Outcome), Refusal> {
        let result = self.verify_and_sign(headers, request, fault).await;
        // A verification that says "no" leaves its errors in the thread's queue, and the next TLS read or write on
        // this thread would take them for its own and break a connection that is fine.
        drop(ErrorStack::get());
        result
    }

    async fn verify_and_sign(
        &self,
        headers: &MetadataMap,
        request: &IstioCertificateRequest,
        fault: Option<&Fault>,
    ) -> Result<(Vec<String>, Outcome), Refusal> {
        let csr = Csr::parse(&request.csr);
        let asked = csr.as_ref().ok().and_then(|csr| trust_domain(&csr.uri));
        let caller = self.authenticate(headers, &self.shared.trust_domain(asked)).await?;
        let csr = csr?;
        csr.check_identity(&caller)?;
        self.check_lifetime(request.validity_duration)?;
        let leaf = self.leaf(&caller, request.validity_duration);
        let certificate = self.sign(&csr, leaf, fault).map_err(|error| Status::internal(error.to_string()))?;
        let spiffe_id = caller.to_string();
        Ok((self.chain(&certificate)?, Outcome::Issued { serial: serial(&certificate), spiffe_id }))
    }

    /// The token, the client certificate, or both when they agree. A token says nothing of a trust domain.
    async fn authenticate(&self, headers: &MetadataMap, trust_domain: &str) -> Result<Identity, Refusal> {
        let refuse = |reason: String| Refusal { status: Status::unauthenticated(OPAQUE), reason };
        let by_certificate = self.client.as_ref().and_then(|client| client.identity.as_ref());
        let mut values = headers.get_all("authorization").iter();
        match (values.next(), values.next(), by_certificate) {
            (None, _, Some(identity)) => Ok(identity.clone()),
            (None, _, None) => Err(refuse("neither a token nor a client certificate with an identity".to_owned())),
            (Some(_), Some(_), _) => Err(refuse("more than one authorization header".to_owned())),
            (Some(value), None, by_certificate) => {
                let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
                let token = token.ok_or_else(|| refuse("the authorization header holds no bearer token".to_owned()))?;
                let by_token = self.shared.authority.verify(token, trust_domain).await.map_err(refuse)?;
                match by_certificate {
                    Some(other) if *other != by_token => {
                        Err(refuse(format!("the token is of {by_token}, the client certificate of {other}")))
                    }
                    _ => Ok(by_token),
                }
            }
        }
    }

    /// istiod's words.
    fn check_lifetime(&self, asked: i64) -> Result<(), Status> {
        let CaOptions { refuse_longer, max_ttl, .. } = &self.shared.options;
        match u64::try_from(asked) {
            Ok(asked) if *refuse_longer && asked > max_ttl.as_secs() => Err(Status::invalid_argument(format!(
                "CSR signing error (requested TTL {} is greater than the max allowed TTL {})",
                in_hours(asked),
                in_hours(max_ttl.as_secs()),
            ))),
            _ => Ok(()),
        }
    }

    fn leaf(&self, caller: &Identity, validity_duration: i64) -> Leaf {
        let options = &self.shared.options;
        let asked = u64::try_from(validity_duration).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let ttl = self.shared.ttl().unwrap_or_else(|| asked.unwrap_or(options.max_ttl).min(options.max_ttl));
        let mut leaf = Leaf::workload(&caller.to_string(), ttl);
        leaf.not_before = 0i64.saturating_sub_unsigned(options.backdate.as_secs());
        leaf
    }

    fn sign(&self, csr: &Csr, leaf: Leaf, fault: Option<&Fault>) -> Result<X509, ErrorStack> {
        let pki = &self.shared.pki;
        let Some(Fault::Sign(edit)) = fault else {
            return pki.certify_key(&leaf, &csr.key);
        };
        let mut overrides = SignOverrides { leaf, other_key: false, signed_by: None };
        edit(&mut overrides);
        let signer = overrides.signed_by.as_ref().unwrap_or(pki);
        if overrides.other_key {
            X509::from_pem(signer.issue(&overrides.leaf).chain_pem.as_bytes())
        } else {
            signer.certify_key(&overrides.leaf, &csr.key)
        }
    }

    /// Leaf, intermediates, each an element, and last the bundle of roots.
    fn chain(&self, certificate: &X509) -> Result<Vec<String>, Status> {
        let leaf = certificate.to_pem().map_err(|error| Status::internal(error.to_string()))?;
        let pki = &self.shared.pki;
        let roots = pki.root_pem() + &self.shared.extra_roots().concat();
        let leaf = String::from_utf8_lossy(&leaf).into_owned();
        Ok(std::iter::once(leaf).chain(pki.intermediates()).chain([roots]).collect())
    }

    fn call(&self, headers: &MetadataMap, request: &IstioCertificateRequest) -> Call {
        Call {
            at: SystemTime::now(),
            csr: request.csr.clone(),
            validity_duration: request.validity_duration,
            metadata: string_fields(request.metadata.as_ref()),
            headers: visible_headers(headers),
            authorization: headers.get("authorization").map(|value| redact(value.to_str().unwrap_or_default())),
            peer: self.client.as_ref().map(|client| client.peer.clone()),
            outcome: Outcome::Pending,
            settled: None,
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal { reason: status.message().to_owned(), status }
    }
}

/// The trust domain of a SPIFFE ID.
fn trust_domain(uri: &str) -> Option<&str> {
    Some(uri.strip_prefix("spiffe://")?.split_once('/')?.0)
}

/// A duration of an hour or more as Go writes it.
fn in_hours(seconds: u64) -> String {
    format!("{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Serial number in upper-case hexadecimal.
pub(crate) fn serial(certificate: &X509Ref) -> String {
    let number = certificate.serial_number().to_bn().and_then(|number| Ok(number.to_hex_str()?.to_string()));
    number.expect("OpenSSL prints a serial number")
}

fn string_fields(metadata: Option<&Struct>) -> Vec<(String, String)> {
    let fields = metadata.iter().flat_map(|metadata| &metadata.fields);
    let text = fields.filter_map(|(name, value)| match &value.kind {
        Some(Kind::StringValue(text)) => Some((name.clone(), text.clone())),
        _ => None,
    });
    text.collect()
}

fn visible_headers(headers: &MetadataMap) -> Vec<(String, String)> {
    let visible = headers.iter().filter_map(|header| match header {
        KeyAndValueRef::Ascii(name, _) if name == "authorization" => None,
        KeyAndValueRef::Ascii(name, value) => {
            Some((name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()))
        }
        KeyAndValueRef::Binary(name, _) => Some((name.as_str().to_owned(), String::new())),
    });
    visible.collect()
}

fn redact(authorization: &str) -> Authorization {
    let (scheme, token) = authorization.split_once(' ').unwrap_or((authorization, ""));
    let is_scheme = scheme.len() <= 16 && scheme.chars().all(|c| c.is_ascii_alphabetic());
    // A bare token must not slip into the record as a "scheme".
    let scheme = if is_scheme { scheme.to_owned() } else { String::new() };
    let Unverified { sub, jti, .. } = Unverified::read(token);
    Authorization { scheme, subject: sub, id: jti }
}
