//! An SDS server that shows an Envoy one secret after the other and hears what it says of each.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prost::Message;
use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret::Type},
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    },
    google::protobuf::Any,
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::Streaming;

use super::xds::{Answer, Service, accept};
use crate::{Failure, OrFail, PATIENCE, workload::SOCKET};

/// What Envoy says of a secret: nothing, or why it refuses it.
pub type Verdict = Result<(), String>;

/// A running server; it stops when it is dropped. Envoy has one stream for each secret.
pub struct Judge {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    streams: watch::Sender<BTreeMap<String, mpsc::Sender<Shown>>>,
    nonce: AtomicU64,
}

struct Shown {
    secret: Secret,
    verdict: oneshot::Sender<Verdict>,
}

impl Judge {
    /// Listens where an Envoy in this directory looks for its shim.
    pub fn start(directory: &Path) -> Result<Self, Failure> {
        let socket = directory.join(SOCKET);
        if let Some(parent) = socket.parent() {
            fs::create_dir_all(parent).or_fail("make the socket's directory")?;
        }
        let listener = UnixListener::bind(&socket).or_fail(format!("bind {}", socket.display()))?;
        let shared = Arc::<Shared>::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, accepting })
    }

    /// Shows a certificate and its key as `name`.
    pub async fn certificate(&self, name: &str, chain: &[u8], key: &[u8]) -> Result<Verdict, Failure> {
        let certificate = TlsCertificate { certificate_chain: inline(chain), private_key: inline(key) };
        self.show(name, Type::TlsCertificate(certificate)).await
    }

    /// Shows trust anchors as `name`.
    pub async fn anchors(&self, name: &str, pem: &[u8]) -> Result<Verdict, Failure> {
        let context =
            CertificateValidationContext { trusted_ca: inline(pem), ..CertificateValidationContext::default() };
        self.show(name, Type::ValidationContext(context)).await
    }

    /// Waits until Envoy asks for it, shows it, and hears what it says.
    async fn show(&self, name: &str, content: Type) -> Result<Verdict, Failure> {
        let mut streams = self.shared.streams.subscribe();
        let asked = timeout(PATIENCE, streams.wait_for(|streams| streams.contains_key(name))).await;
        let asked =
            asked.map_err(|_| Failure::new(format!("nobody asks for {name}")))?.or_fail("follow the streams")?;
        let stream = asked.get(name).cloned();
        drop(asked);
        let (verdict, heard) = oneshot::channel();
        let secret = Secret { name: name.to_owned(), r#type: Some(content) };
        let stream = stream.ok_or_else(|| Failure::new(format!("the stream for {name} has ended")))?;
        let sent = stream.send(Shown { secret, verdict }).await;
        sent.map_err(|_| Failure::new(format!("the stream for {name} has ended")))?;
        let heard = timeout(PATIENCE, heard).await.map_err(|_| Failure::new(format!("no verdict on {name}")))?;
        heard.or_fail(format!("hear of {name}: Envoy is gone"))
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) })
}

impl Service for Shared {
    const PATH: &'static str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";

    /// Each stream is for one name.
    async fn converse(&self, mut requests: Streaming<DiscoveryRequest>, answers: mpsc::Sender<Answer>) {
        let Ok(Some(first)) = requests.message().await else { return };
        let (sender, mut shown) = mpsc::channel(1);
        self.streams.send_modify(|streams| {
            streams.extend(first.resource_names.iter().map(|name| (name.clone(), sender.clone())));
        });
        let mut waiting: Option<(String, oneshot::Sender<Verdict>)> = None;
        loop {
            tokio::select! {
                next = shown.recv(), if waiting.is_none() => {
                    let Some(Shown { secret, verdict }) = next else { return };
                    let nonce = self.nonce.fetch_add(1, Ordering::Relaxed).to_string();
                    if answers.send(Ok(answer(&secret, nonce.clone()))).await.is_err() {
                        return;
                    }
                    waiting = Some((nonce, verdict));
                }
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    if let Some((_, verdict)) = waiting.take_if(|(nonce, _)| *nonce == request.response_nonce) {
                        let _ = verdict.send(request.error_detail.map_or(Ok(()), |refusal| Err(refusal.message)));
                    }
                }
            }
        }
    }
}

fn answer(secret: &Secret, nonce: String) -> DiscoveryResponse {
    let resource = Any { type_url: SECRET_TYPE_URL.to_owned(), value: secret.encode_to_vec().into() };
    DiscoveryResponse {
        version_info: nonce.clone(),
        resources: vec![resource],
        type_url: SECRET_TYPE_URL.to_owned(),
        nonce,
    }
}
