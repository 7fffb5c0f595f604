//! Kubernetes' API server, asked about tokens.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method as Verb, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// A cluster whose API server knows the tokens; the defaults are what a pod in it finds.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// How tokens are verified.
    pub method: Method,
    /// `https://HOST` or `https://HOST:PORT` of the API server.
    pub api_server: String,
    /// File with the roots (PEM) that the API server's certificate chains to; read anew for each request.
    pub ca_file: PathBuf,
    /// File with the token of our own service account; read anew for each request.
    pub token_file: PathBuf,
}

/// Who verifies a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// We, by the keys that the API server publishes. A token is good until it ends, also when its pod or service
    /// account has gone.
    Jwks,
    /// The API server, by a TokenReview, which also sees that the pod and service account of the token still exist.
    TokenReview,
}

/// Longest answer that is read.
const LONGEST: usize = 1 << 20;

impl Kubernetes {
    /// The API server as pods find it.
    pub fn in_cluster(method: Method) -> Kubernetes {
        let mounted = |name: &str| PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount").join(name);
        Kubernetes {
            method,
            api_server: "https://kubernetes.default.svc".to_owned(),
            ca_file: mounted("ca.crt"),
            token_file: mounted("token"),
        }
    }

    /// The issuer of the cluster's tokens.
    pub(crate) async fn issuer(&self) -> Result<String, String> {
        let document = self.ask(Verb::GET, "/.well-known/openid-configuration", None).await?;
        let issuer = document["issuer"].as_str().ok_or("the API server's discovery document names no issuer")?;
        Ok(issuer.to_owned())
    }

    /// The keys (JWKS) that tokens are signed with. The discovery document's `jwks_uri` is where others find them,
    /// which need not be reachable from here.
    pub(crate) async fn keys(&self) -> Result<String, String> {
        Ok(self.ask(Verb::GET, "/openid/v1/jwks", None).await?.to_string())
    }

    /// The user that the API server takes the bearer of `token` for, or why it takes it for none.
    pub(crate) async fn review(&self, token: &str, audience: &str) -> Result<String, String> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let answer = self.ask(Verb::POST, "/apis/authentication.k8s.io/v1/tokenreviews", Some(&review)).await?;
        let status = &answer["status"];
        if status["authenticated"] != true {
            return Err(format!("TokenReview: {}", status["error"].as_str().unwrap_or("not authenticated")));
        }
        // An API server that does not know of audiences answers without any: it has not looked at them.
        if !status["audiences"].as_array().is_some_and(|named| named.iter().any(|one| one == audience)) {
            return Err("TokenReview: wrong audience".to_owned());
        }
        Ok(status["user"]["username"].as_str().unwrap_or_default().to_owned())
    }

    async fn ask(&self, verb: Verb, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let what = format!("{verb} {path} from {}", self.api_server);
        match self.exchange(verb, path, body).await {
            Ok((200..=299, answer)) => serde_json::from_slice(&answer).map_err(|error| format!("{what}: {error}")),
            Ok((status, answer)) => Err(format!("{what}: {status} {}", String::from_utf8_lossy(&answer))),
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    async fn exchange(&self, verb: Verb, path: &str, body: Option<&Value>) -> io::Result<(u16, Bytes)> {
        let authority = self.api_server.strip_prefix("https://").unwrap_or(&self.api_server).trim_end_matches('/');
        let token = std::fs::read_to_string(&self.token_file).map_err(|error| naming(&self.token_file, error))?;
        let request = Request::builder()
            .method(verb)
            .uri(path)
            .header(HOST, authority)
            .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
            .map_err(io::Error::other)?;
        let stream = self.connect(authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // It ends with the answer, because the sender is dropped then; its error is the answer's as well.
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, LONGEST).collect().await.map_err(io::Error::other)?;
        Ok((head.status.as_u16(), body.to_bytes()))
    }

    async fn connect(&self, authority: &str) -> io::Result<SslStream<TcpStream>> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(io::Error::other)?),
            None => (authority, 443),
        };
        let roots = std::fs::read(&self.ca_file).map_err(|error| naming(&self.ca_file, error))?;
        let mut store = X509StoreBuilder::new()?;
        X509::stack_from_pem(&roots)?.into_iter().try_for_each(|root| store.add_cert(root))?;
        let mut connector = SslConnector::builder(SslMethod::tls_client())?;
        // In the place of the system's roots.
        connector.set_cert_store(store.build());
        let session = connector.build().configure()?.into_ssl(host)?;
        let mut stream = SslStream::new(session, TcpStream::connect((host, port)).await?)?;
        Pin::new(&mut stream).connect().await.map_err(io::Error::other)?;
        Ok(stream)
    }
}

fn naming(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
