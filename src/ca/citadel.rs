use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use http::{Uri, uri::PathAndQuery};
use sds_shim_proto::{
    BytesCodec,
    google::protobuf::{Struct, Value, value::Kind},
    istio::v1::auth::IstioCertificateRequest,
};
use tonic::{
    Request, Status,
    client::Grpc,
    metadata::{AsciiMetadataKey, MetadataMap, MetadataValue},
};

use super::{
    answer::Reader, channel::Channel, client_certificate::ClientCertificate, dial::Resolved, error::CaError,
    tls::Negotiated, way::Way,
};
use crate::{
    config::{CaAddress, CaConfig, CaHeader, ServerName},
    identity::{Answer, BearerToken},
};

/// The one call of the service.
const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// How often a name is looked up again while nobody answers where it led.
const LOOK_UP: Duration = Duration::from_secs(3);

/// Istio's certificate service, called Citadel (`istio.v1.auth.IstioCertificateService`), at one address.
pub struct CitadelClient {
    config: Arc<CaConfig>,
    address: CaAddress,
    origin: Uri,
    resolved: Resolved,
    /// What the last connection has come to.
    before: Mutex<Option<Negotiated>>,
}

impl CitadelClient {
    /// A client for one of the configuration's addresses; nothing is connected before the first call.
    ///
    /// # Errors
    /// When the CA's name cannot stand in a request.
    pub fn new(config: Arc<CaConfig>, address: CaAddress) -> Result<Self, http::Error> {
        let host = match &address.server_name {
            ServerName::Dns(name) => name.clone(),
            ServerName::Ip(address) if address.is_ipv6() => format!("[{address}]"),
            ServerName::Ip(address) => address.to_string(),
        };
        let scheme = if address.is_plaintext() { "http" } else { "https" };
        let origin =
            Uri::builder().scheme(scheme).authority(format!("{host}:{}", address.port)).path_and_query("/").build()?;
        Ok(Self { config, address, origin, resolved: Resolved::default(), before: Mutex::default() })
    }

    /// What the client was made from.
    pub fn config(&self) -> &CaConfig {
        &self.config
    }

    /// Where it asks.
    pub fn address(&self) -> &CaAddress {
        &self.address
    }

    /// The way there as it is after the last call.
    pub fn way(&self) -> Way {
        Way::new(&self.address, &self.resolved)
    }

    /// Asks for a certificate: one call, with a deadline for reaching the CA and one for its answer, which may take as
    /// long as `answer`: whoever issues by hand or in turn keeps a call open for long. Answers with Citadel's list, leaf
    /// first, root bundle last, of which nothing is verified yet. `negotiated` is set where TLS came about.
    ///
    /// # Errors
    /// What kept the CA from answering, or its answer.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        token: Option<&BearerToken>,
        certificate: Option<&ClientCertificate>,
        answer: Duration,
        negotiated: &mut Option<Negotiated>,
    ) -> Result<Answer, CaError> {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reached = timeout(self.config.timeout, self.reach(certificate, before, answer)).await;
        let unreached = |_| CaError::Unreached { address: self.address.to_string(), limit: self.config.timeout };
        let channel = reached.map_err(unreached)??;
        *negotiated = channel.negotiated;
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = channel.negotiated;
        let call = self.call(&channel, csr_pem, token, certificate.is_some(), answer);
        let late = CaError::Deadline(answer, answer < self.config.answer_timeout);
        timeout(answer, call).await.unwrap_or(Err(late))
    }

    /// A connection, from the start again when the name leads elsewhere meanwhile.
    async fn reach(
        &self,
        certificate: Option<&ClientCertificate>,
        before: Option<Negotiated>,
        answer: Duration,
    ) -> Result<Channel, CaError> {
        loop {
            tokio::select! {
                biased;
                reached = Channel::connect(&self.config, &self.address, certificate, before, &self.resolved, answer) => {
                    return reached;
                }
                () = self.moved() => {}
            }
        }
    }

    /// Returns when the name leads to none of the addresses any more that are being tried.
    async fn moved(&self) {
        loop {
            sleep(LOOK_UP).await;
            let way = self.way();
            if way.is_named() && way.was_found() && way.leads_elsewhere(self.config.timeout).await {
                return;
            }
        }
    }

    async fn call(
        &self,
        channel: &Channel,
        csr_pem: &str,
        token: Option<&BearerToken>,
        presented: bool,
        answer: Duration,
    ) -> Result<Answer, CaError> {
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: self.config.ttl.as_secs() as i64,
            metadata: self.config.cert_signer.as_deref().map(cert_signer),
        });
        request.set_timeout(answer);
        self.add_metadata(request.metadata_mut(), token)?;
        let failed = |status: Status| match channel.is_broken() || causes(&status).next().is_some() {
            true if is_calm(&status) => CaError::Calm,
            true if is_dead(&status) => CaError::Dead(root_cause(&status)),
            // A status that came from the connection, not from the CA.
            true => channel.explain(presented, &root_cause(&status)),
            false => CaError::from_status(&status, channel.retry_after()),
        };
        let mut client = Grpc::with_origin(channel.sender(), self.origin.clone());
        client.ready().await.map_err(|error| channel.explain(presented, &error))?;
        let codec = BytesCodec::<IstioCertificateRequest>::default();
        let answer = client.server_streaming(request, PathAndQuery::from_static(PATH), codec).await;
        let (mut portions, mut reader) = (answer.map_err(&failed)?.into_inner(), Reader::default());
        let mut came = false;
        while let Some(portion) = portions.message().await.map_err(&failed)? {
            came = true;
            reader.read(&portion).map_err(|reason| channel.give_up(reason))?;
        }
        match came {
            true => reader.end().map_err(|reason| channel.give_up(reason)),
            false => Err(channel.give_up("the CA answered OK without a message")),
        }
    }

    fn add_metadata(&self, metadata: &mut MetadataMap, token: Option<&BearerToken>) -> Result<(), CaError> {
        let value = |text: &str| {
            MetadataValue::try_from(text)
                .map_err(|_| CaError::Transport("a metadata value contains characters that cannot be sent".to_owned()))
        };
        metadata.insert("clusterid", value(&self.config.cluster_id)?);
        for CaHeader { name, value: text } in &self.config.headers {
            let key = AsciiMetadataKey::from_bytes(name.as_bytes())
                .map_err(|_| CaError::Transport(format!("{name} cannot be sent as metadata")))?;
            let mut header = value(text)?;
            header.set_sensitive(true);
            metadata.insert(key, header);
        }
        if let Some(token) = token {
            let mut authorization = value(&token.authorization())?;
            // Keeps it out of the header compression's table and of every debug output.
            authorization.set_sensitive(true);
            metadata.insert("authorization", authorization);
        }
        Ok(())
    }
}

/// The request's metadata as istiod reads it (`security/pkg/server/ca`).
fn cert_signer(name: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(name.to_owned())) };
    // Not made of a list: that would bring the code for sorting one, some 4 KiB.
    let mut fields = BTreeMap::new();
    fields.insert("CertSigner".to_owned(), value);
    Struct { fields }
}

/// What a status came of, the innermost last.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |cause| cause.source())
}

/// Whether the other side has ended the stream or the connection because it has too much to do.
fn is_calm(status: &Status) -> bool {
    let ended = causes(status).find_map(|cause| cause.downcast_ref::<h2::Error>());
    ended.is_some_and(|error| error.is_remote() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Whether a PING was not answered.
fn is_dead(status: &Status) -> bool {
    causes(status).any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout))
}

/// The innermost error of a status: its outer layers only say that a call failed.
fn root_cause(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.to_string(), ToString::to_string)
}
