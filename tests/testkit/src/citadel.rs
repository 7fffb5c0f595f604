//! A bare client of a CA: one call at a time, exactly as a test words it.

use std::net::SocketAddr;

use openssl::{
    ec::{EcGroup, EcKey},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::PKey,
    stack::Stack,
    x509::{X509Req, extension::SubjectAlternativeName},
};
use sds_shim_proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Request, Status};

use crate::{Failure, OrFail, PATIENCE, development_ca::Issued, sds::Http2, tls};

const ORIGIN: &str = "https://istiod.istio-system.svc";

/// What is asked, and by whom.
pub struct Asked<'a> {
    /// The CSR, PEM.
    pub csr: &'a str,
    /// The lifetime in seconds.
    pub validity: i64,
    /// The bearer token.
    pub token: Option<&'a str>,
    /// The client certificate of the connection.
    pub certificate: Option<&'a Issued>,
}

/// `CreateCertificate` over a connection of its own to a CA under `root_pem`: the answer's chain, or the CA's error.
pub async fn create_certificate(
    ca: SocketAddr,
    root_pem: &str,
    asked: &Asked<'_>,
) -> Result<Result<Vec<String>, Status>, Failure> {
    let stream = TcpStream::connect(ca).await.or_fail("connect to the CA")?;
    let stream = tls::connect_for(b"\x02h2", stream, root_pem, asked.certificate).await?;
    let connection = Http2::over(stream).await.or_fail("open HTTP/2 to the CA")?;
    let mut client = IstioCertificateServiceClient::with_origin(connection, http::Uri::from_static(ORIGIN));
    let message = IstioCertificateRequest {
        csr: asked.csr.to_owned(),
        validity_duration: asked.validity,
        ..IstioCertificateRequest::default()
    };
    let mut request = Request::new(message);
    if let Some(token) = asked.token {
        let value = format!("Bearer {token}").parse().or_fail("use a token as a header")?;
        request.metadata_mut().insert("authorization", value);
    }
    let answer = timeout(PATIENCE, client.create_certificate(request)).await.or_fail("call the CA")?;
    Ok(answer.map(|answer| answer.into_inner().cert_chain))
}

/// A CSR by a fresh P-256 key with these URI names and nothing else.
pub fn csr(uris: &[&str]) -> Result<String, Failure> {
    let pem = try_csr(uris).or_fail("make a CSR")?;
    String::from_utf8(pem).or_fail("make a CSR")
}

fn try_csr(uris: &[&str]) -> Result<Vec<u8>, ErrorStack> {
    let key = PKey::from_ec_key(EcKey::generate(&*EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?)?)?;
    let mut builder = X509Req::builder()?;
    builder.set_pubkey(&key)?;
    if !uris.is_empty() {
        let mut names = SubjectAlternativeName::new();
        for uri in uris {
            names.uri(uri);
        }
        let mut extensions = Stack::new()?;
        extensions.push(names.build(&builder.x509v3_context(None))?)?;
        builder.add_extensions(&extensions)?;
    }
    builder.sign(&key, MessageDigest::sha256())?;
    builder.build().to_pem()
}
