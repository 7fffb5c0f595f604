//! A gRPC client over OpenSSL, CSRs, and a CA to talk to.
#![allow(dead_code, reason = "each test file is a crate of its own and uses a part")]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use development_ca::{CaOptions, DevelopmentCa, Issued, Pki, TokenIssuer, TokenRequest};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslVerifyMode, SslVersion};
use openssl::stack::Stack;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Name, X509Req};
use sds_shim_proto::istio::v1::auth::IstioCertificateRequest;
use sds_shim_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;
use tonic::codegen::Service;
use tonic::{Request, Status};

/// The identity that the tests use.
pub(crate) const SLEEP: &str = "spiffe://cluster.local/ns/foo/sa/sleep";

/// A running CA with its PKI and token issuer.
pub(crate) struct Scene {
    pub(crate) ca: DevelopmentCa,
    pub(crate) pki: Arc<Pki>,
    pub(crate) tokens: Arc<TokenIssuer>,
}

impl Scene {
    pub(crate) async fn new() -> Scene {
        Scene::with(CaOptions::default()).await
    }

    pub(crate) async fn with(options: CaOptions) -> Scene {
        let (pki, tokens) = (Arc::new(Pki::new("test")), Arc::new(TokenIssuer::new()));
        let ca = DevelopmentCa::start(pki.clone(), tokens.clone(), options).await.expect("the CA starts");
        Scene { ca, pki, tokens }
    }

    pub(crate) fn token(&self) -> String {
        self.tokens.mint(&TokenRequest::new("foo", "sleep"))
    }

    /// Connects as a client that knows the CA's root.
    pub(crate) async fn client(&self) -> Client {
        self.try_client(&Connect::default()).await.expect("the handshake succeeds")
    }

    pub(crate) async fn try_client(&self, connect: &Connect) -> io::Result<Client> {
        connect.to(self.ca.address(), &self.ca.root_pem()).await
    }

    pub(crate) async fn plaintext_client(&self) -> io::Result<Client> {
        let stream = TcpStream::connect(self.ca.address()).await?;
        Ok(Client { grpc: grpc(stream).await?, server_certificate: None })
    }

    /// One call with a token over a new connection.
    pub(crate) async fn call(&self, csr: &str, token: &str) -> Result<Vec<String>, Status> {
        self.client().await.call(csr, Some(token)).await
    }

    /// A right call over a new connection.
    pub(crate) async fn call_right(&self) -> Result<Vec<String>, Status> {
        self.call(&csr(SLEEP), &self.token()).await
    }
}

/// How to connect.
pub(crate) struct Connect {
    pub(crate) server_name: &'static str,
    pub(crate) certificate: Option<Issued>,
    pub(crate) max_version: SslVersion,
}

impl Default for Connect {
    fn default() -> Self {
        Connect { server_name: "istiod.istio-system.svc", certificate: None, max_version: SslVersion::TLS1_3 }
    }
}

impl Connect {
    pub(crate) fn with(certificate: Issued) -> Connect {
        Connect { certificate: Some(certificate), ..Connect::default() }
    }

    pub(crate) async fn to(&self, address: SocketAddr, root_pem: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(address).await?;
        let ssl = self.session(X509::from_pem(root_pem.as_bytes())?)?;
        let mut stream = SslStream::new(ssl, stream)?;
        Pin::new(&mut stream).connect().await.map_err(io::Error::other)?;
        assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
        let server_certificate = stream.ssl().peer_certificate();
        Ok(Client { grpc: grpc(stream).await?, server_certificate })
    }

    fn session(&self, root: X509) -> Result<Ssl, openssl::error::ErrorStack> {
        let mut store = X509StoreBuilder::new()?;
        store.add_cert(root)?;
        let mut context = SslContext::builder(SslMethod::tls_client())?;
        context.set_cert_store(store.build());
        context.set_verify(SslVerifyMode::PEER);
        context.set_alpn_protos(b"\x02h2")?;
        context.set_max_proto_version(Some(self.max_version))?;
        if let Some(Issued { chain_pem, key_pem }) = &self.certificate {
            let chain = X509::stack_from_pem(chain_pem.as_bytes())?;
            context.set_certificate(&chain[0])?;
            chain[1..].iter().try_for_each(|certificate| context.add_extra_chain_cert(certificate.clone()))?;
            context.set_private_key(&*PKey::private_key_from_pem(key_pem.as_bytes())?)?;
        }
        let mut ssl = Ssl::new(&context.build())?;
        ssl.set_hostname(self.server_name)?;
        ssl.param_mut().set_host(self.server_name)?;
        Ok(ssl)
    }
}

/// One connection.
pub(crate) struct Client {
    grpc: IstioCertificateServiceClient<Channel>,
    pub(crate) server_certificate: Option<X509>,
}

impl Client {
    pub(crate) async fn call(&mut self, csr: &str, token: Option<&str>) -> Result<Vec<String>, Status> {
        self.request(request(csr, token)).await
    }

    pub(crate) async fn request(&mut self, request: Request<IstioCertificateRequest>) -> Result<Vec<String>, Status> {
        Ok(self.grpc.create_certificate(request).await?.into_inner().cert_chain)
    }
}

async fn grpc<S>(stream: S) -> io::Result<IstioCertificateServiceClient<Channel>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let origin = "https://istiod.istio-system.svc".parse().expect("a constant URI");
    Ok(IstioCertificateServiceClient::with_origin(Channel(sender), origin))
}

/// A request for one hour.
pub(crate) fn request(csr: &str, token: Option<&str>) -> Request<IstioCertificateRequest> {
    let mut request =
        Request::new(IstioCertificateRequest { csr: csr.to_owned(), validity_duration: 3600, metadata: None });
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("a token is a header value");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

struct Channel(SendRequest<tonic::body::Body>);

impl Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// What a CSR asks for.
#[derive(Default)]
pub(crate) struct CsrContent<'a> {
    pub(crate) uris: &'a [&'a str],
    pub(crate) dns: &'a [&'a str],
    pub(crate) common_name: Option<&'a str>,
    pub(crate) second_san_extension: Option<&'a str>,
    pub(crate) ca: bool,
}

/// A CSR for one SPIFFE ID, by a fresh P-256 key.
pub(crate) fn csr(uri: &str) -> String {
    csr_by(&p256(), &CsrContent { uris: &[uri], ..CsrContent::default() })
}

pub(crate) fn p256() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("OpenSSL knows P-256");
    PKey::from_ec_key(EcKey::generate(&group).expect("OpenSSL makes a key")).expect("an EC key is a key")
}

pub(crate) fn csr_by(key: &PKey<Private>, content: &CsrContent<'_>) -> String {
    let pem = build_csr(key, content).and_then(|request| request.to_pem()).expect("OpenSSL makes a CSR");
    String::from_utf8(pem).expect("PEM is ASCII")
}

pub(crate) fn build_csr(key: &PKey<Private>, content: &CsrContent<'_>) -> Result<X509Req, openssl::error::ErrorStack> {
    let mut request = X509Req::builder()?;
    request.set_pubkey(key)?;
    let mut name = X509Name::builder()?;
    if let Some(common_name) = content.common_name {
        name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    }
    request.set_subject_name(&name.build())?;
    let mut extensions = Stack::new()?;
    if !content.uris.is_empty() || !content.dns.is_empty() {
        let mut names = SubjectAlternativeName::new();
        for uri in content.uris {
            names.uri(uri);
        }
        for name in content.dns {
            names.dns(name);
        }
        extensions.push(names.build(&request.x509v3_context(None))?)?;
    }
    if let Some(uri) = content.second_san_extension {
        extensions.push(SubjectAlternativeName::new().uri(uri).build(&request.x509v3_context(None))?)?;
    }
    if content.ca {
        extensions.push(openssl::x509::extension::BasicConstraints::new().ca().build()?)?;
    }
    if !extensions.is_empty() {
        request.add_extensions(&extensions)?;
    }
    request.sign(key, MessageDigest::sha256())?;
    Ok(request.build())
}

pub(crate) fn x509(pem: &str) -> X509 {
    X509::from_pem(pem.as_bytes()).unwrap_or_else(|error| panic!("not a certificate: {error}\n{pem}"))
}

/// A directory of one test, removed with it.
pub(crate) struct TestDir(PathBuf);

impl TestDir {
    pub(crate) fn new(name: &str) -> TestDir {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        TestDir(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // A directory that cannot be removed is no reason to hide the test's own result.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
