use std::{collections::BTreeMap, sync::Arc};

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

use super::{answer::Reader, channel::Channel, client_certificate::ClientCertificate, error::CaError};
use crate::{
    config::{CaAddress, CaConfig, CaHeader, ServerName},
    identity::{Answer, BearerToken},
};

/// The one call of the service.
const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Istio's certificate service, called Citadel (`istio.v1.auth.IstioCertificateService`), at one address.
pub struct CitadelClient {
    config: Arc<CaConfig>,
    address: CaAddress,
    origin: Uri,
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
        Ok(Self { config, address, origin })
    }

    /// What the client was made from.
    pub fn config(&self) -> &CaConfig {
        &self.config
    }

    /// Where it asks.
    pub fn address(&self) -> &CaAddress {
        &self.address
    }

    /// Asks for a certificate: one call, with a deadline. Answers with Citadel's list, leaf first, root bundle last,
    /// of which nothing is verified yet.
    ///
    /// # Errors
    /// What kept the CA from answering, or its answer.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        token: Option<&BearerToken>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Answer, CaError> {
        let call = self.call(csr_pem, token, certificate);
        tokio::time::timeout(self.config.timeout, call).await.unwrap_or(Err(CaError::Deadline(self.config.timeout)))
    }

    async fn call(
        &self,
        csr_pem: &str,
        token: Option<&BearerToken>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Answer, CaError> {
        let channel = Channel::connect(&self.config, &self.address, certificate).await?;
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: self.config.ttl.as_secs() as i64,
            metadata: self.config.cert_signer.as_deref().map(cert_signer),
        });
        request.set_timeout(self.config.timeout);
        self.add_metadata(request.metadata_mut(), token)?;
        let failed = |status: Status| match channel.is_broken() || std::error::Error::source(&status).is_some() {
            true if is_calm(&status) => CaError::Calm,
            // A status that came from the connection, not from the CA.
            true => channel.explain(certificate.is_some(), &root_cause(&status)),
            false => CaError::from_status(&status, channel.retry_after()),
        };
        let mut client = Grpc::with_origin(channel.sender(), self.origin.clone());
        client.ready().await.map_err(|error| channel.explain(certificate.is_some(), &error))?;
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
                .map_err(|_| CaError::Transport("a metadata value has characters that cannot be sent".to_owned()))
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
    Struct { fields: BTreeMap::from([("CertSigner".to_owned(), value)]) }
}

/// Whether the other side has ended the stream or the connection because it has too much to do.
fn is_calm(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<h2::Error>() {
            return error.is_remote() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        }
        cause = inner.source();
    }
    false
}

/// The innermost error of a status: its outer layers only say that a call failed.
fn root_cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
