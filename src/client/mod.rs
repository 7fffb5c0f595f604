//! The short-lived commands that ask a running shim: over its own socket, which only its user can reach.

mod render;

use std::{fs, io, path::Path, time::Duration};

use http_body_util::{BodyExt, Limited};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost::Message;
use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{Secret, secret::Type},
        service::{
            discovery::v3::DiscoveryRequest, secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    grpc::health::v1::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
};
use serde_json::Value;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tower_service::Service;

use crate::{bounded::foreign_text, clock, wire::Connection};

pub use render::render;

const ORIGIN: &str = "http://localhost";
/// Pause while the socket's queue of connections is full, for which there is no event.
const FULL_QUEUE: Duration = Duration::from_millis(10);
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one document.
const DOCUMENT: usize = 512 * 1024;
/// Pause between two looks at a socket that is not there yet, or at a renewal that runs.
const PAUSE: Duration = Duration::from_millis(50);

/// What a running shim is asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Question {
    /// How it is: as a table, as JSON, or what fits where the answer goes.
    Status(Form),
    /// Whether it is ready.
    Health,
    /// To become ready, within this time.
    Wait(Duration),
    /// To renew its certificate.
    Renew,
    /// The public part of a secret.
    Get(String),
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table on a terminal, else JSON.
    Fitting,
    /// A table.
    Table,
    /// JSON.
    Json,
    /// The fields of a row in a table of many, with tabs between them.
    Row,
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("no shim answers at {path}: {cause}")]
    Unreachable {
        /// The socket.
        path: String,
        /// What went wrong.
        cause: String,
    },
    /// Somebody else serves it.
    #[error("the server at {0} is not sds-shim")]
    Stranger(String),
    /// It is not ready.
    #[error("not ready: {0}")]
    NotReady(String),
    /// There is no such secret, or not yet.
    #[error("{0}")]
    NoSecret(String),
    /// The renewal failed.
    #[error("the renewal failed: {0}; {1}")]
    NotRenewed(String, &'static str),
}

/// Asks the shim that serves this socket. Returns what to print.
///
/// # Errors
/// When it cannot be reached, or the answer is no.
pub async fn ask(question: Question, socket: &Path, terminal: bool) -> Result<String, ClientError> {
    let shim = Shim(socket);
    match question {
        Question::Status(form) => {
            let (connection, _) = shim.connect().await?;
            let path = if form == Form::Row { "/status/row" } else { "/status" };
            let document = shim.document(&connection, path).await?;
            if form == Form::Row {
                return String::from_utf8(document).map_err(|_| shim.stranger());
            }
            let status = shim.parse(&document)?;
            Ok(match form {
                Form::Table => render(&status, clock::now(), terminal),
                Form::Fitting if terminal => render(&status, clock::now(), true),
                _ => format!("{status:#}\n"),
            })
        }
        Question::Health => shim.health().await,
        Question::Wait(within) => shim.wait(Instant::now() + within).await,
        Question::Renew => shim.renew().await,
        Question::Get(name) => shim.get(name).await,
    }
}

struct Shim<'a>(&'a Path);

impl Shim<'_> {
    async fn connect(&self) -> Result<(Connection, Option<Pid>), ClientError> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(self.0).await {
                // The socket's queue is full: somebody connects without an end, and the shim comes to us in a moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && started.elapsed() < PATIENCE => {
                    sleep(FULL_QUEUE).await;
                }
                connected => break connected.map_err(|error| self.unreachable(&error))?,
            }
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0).map(Pid::from_raw);
        let connection = timeout(PATIENCE, Connection::new(Box::new(stream), None)).await;
        let connection = connection.map_err(|_| self.unreachable(&"it accepts connections but sends nothing"))?;
        Ok((connection.map_err(|error| self.unreachable(&error))?, pid))
    }

    fn unreachable(&self, cause: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable { path: self.0.display().to_string(), cause: cause.to_string() }
    }

    /// The status and the content of a document.
    async fn page(&self, connection: &Connection, path: &str) -> Result<(u16, Vec<u8>), ClientError> {
        let request = http::Request::get(format!("{ORIGIN}{path}")).body(tonic::body::Body::empty());
        let request = request.map_err(|error| self.unreachable(&error))?;
        let answer = async {
            let answer = connection.sender().call(request).await.map_err(io::Error::other)?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), DOCUMENT).collect().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((status, body.to_bytes().to_vec()))
        };
        let answer = timeout(PATIENCE, answer).await.map_err(|_| self.unreachable(&"it does not answer requests"))?;
        answer.map_err(|error| self.unreachable(&error))
    }

    async fn status_on(&self, connection: &Connection) -> Result<Value, ClientError> {
        self.parse(&self.document(connection, "/status").await?)
    }

    fn parse(&self, document: &[u8]) -> Result<Value, ClientError> {
        serde_json::from_slice(document).map_err(|_| self.stranger())
    }

    async fn document(&self, connection: &Connection, path: &str) -> Result<Vec<u8>, ClientError> {
        match self.page(connection, path).await? {
            (200, body) => Ok(body),
            (503, body) => Err(self.unreachable(&String::from_utf8_lossy(&body).trim_end())),
            _ => Err(self.stranger()),
        }
    }

    fn stranger(&self) -> ClientError {
        ClientError::Stranger(self.0.display().to_string())
    }

    async fn health(&self) -> Result<String, ClientError> {
        let (connection, _) = self.connect().await?;
        match self.page(&connection, "/readyz").await? {
            // After the first line stands what is wrong beside the certificates.
            (200, body) => {
                let more =
                    String::from_utf8_lossy(&body).lines().skip(1).map(|line| format!("{line}\n")).collect::<String>();
                Ok("ready\n".to_owned() + &more)
            }
            (503, body) => Err(ClientError::NotReady(String::from_utf8_lossy(&body).trim_end().to_owned())),
            _ => Err(ClientError::Stranger(self.0.display().to_string())),
        }
    }

    async fn wait(&self, deadline: Instant) -> Result<String, ClientError> {
        let waited = timeout_at(deadline, async {
            loop {
                // Whatever is wrong may be right in a moment: the shim may not run yet, or anew.
                if self.watch().await.is_some() {
                    return;
                }
                sleep(PAUSE).await;
            }
        });
        match waited.await {
            Ok(()) => Ok("ready\n".to_owned()),
            Err(_) => self.health().await,
        }
    }

    /// Follows the health until it is well; nothing when it cannot be followed any more.
    async fn watch(&self) -> Option<()> {
        let (connection, _) = self.connect().await.ok()?;
        let mut client = HealthClient::with_origin(connection.sender(), http::Uri::from_static(ORIGIN));
        let mut told = client.watch(HealthCheckRequest::default()).await.ok()?.into_inner();
        while let Ok(Some(response)) = told.message().await {
            if response.status() == ServingStatus::Serving {
                return Some(());
            }
        }
        None
    }

    async fn renew(&self) -> Result<String, ClientError> {
        let (connection, pid) = self.connect().await?;
        let mut before = self.status_on(&connection).await?;
        let pid = pid.ok_or_else(|| self.unreachable(&"its process is not visible from here"))?;
        // The signal would end a process that does not know it: only one that is surely ours gets it.
        let pid = match before["pid"].as_i64().and_then(|told| i32::try_from(told).ok()).map(Pid::from_raw) {
            Some(told) if before["version"].is_string() && (pid == told || pid == Pid::this() && is_shim(told)) => told,
            _ => return Err(self.stranger()),
        };
        // An attempt that is under way is not the one that is asked for: what comes of it says nothing of that one.
        while is_asking(&before) {
            sleep(PAUSE).await;
            before = self.status_on(&connection).await?;
        }
        kill(pid, Signal::SIGUSR1).map_err(|error| self.unreachable(&format!("process {pid}: {}", error.desc())))?;
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.status_on(&connection).await?;
            if now["renewals"]["issued"] != before["renewals"]["issued"] {
                return Ok(format!("renewed: process {pid} serves a new certificate\n"));
            }
            if let Some(read) = read_again(&before, &now) {
                return read;
            }
            let confirmed = |status: &Value| status["workloads"][0]["confirmed"].as_u64();
            if confirmed(&now) != confirmed(&before) {
                let source = now["source"].as_str().unwrap_or_default();
                return Ok(format!("{source} returned the certificate already served: it decides when to renew\n"));
            }
            let held =
                if has_certificate(&now) { "still serving the current certificate" } else { "nothing is served yet" };
            if now["renewals"]["failed"] != before["renewals"]["failed"] {
                let text = list(&now["workloads"]).find_map(|one| one["trouble"]["text"].as_str());
                return Err(ClientError::NotRenewed(text.unwrap_or("see its log").to_owned(), held));
            }
            if is_asking(&now) {
                // It has limits of its own: a deadline for each address of the CA, and a wait for the begin of a
                // certificate and for those who take the anchors first.
                deadline = Instant::now() + PATIENCE;
            }
            if Instant::now() > deadline {
                let text = format!("no result within {} s", PATIENCE.as_secs());
                return Err(ClientError::NotRenewed(text, held));
            }
            sleep(PAUSE).await;
        }
    }

    async fn get(&self, name: String) -> Result<String, ClientError> {
        let (connection, _) = self.connect().await?;
        let mut client = SecretDiscoveryServiceClient::with_origin(connection.sender(), http::Uri::from_static(ORIGIN));
        let request = DiscoveryRequest {
            resource_names: vec![name.clone()],
            type_url: SECRET_TYPE_URL.to_owned(),
            ..DiscoveryRequest::default()
        };
        let none = |why: &str| ClientError::NoSecret(format!("{name}: {why}"));
        let answer = timeout(PATIENCE, client.fetch_secrets(request)).await;
        let answer = answer.map_err(|_| none("it is not available yet"))?;
        let answer = answer.map_err(|status| none(&foreign_text(status.message(), 256)))?.into_inner();
        let found = answer.resources.into_iter().find_map(|any| Secret::decode(any.value).ok());
        // The key is in the answer, as it is for Envoy, and goes no further.
        let public = match found.and_then(|secret| secret.r#type) {
            Some(Type::TlsCertificate(certificate)) => certificate.certificate_chain,
            Some(Type::ValidationContext(context)) => context.trusted_ca,
            _ => None,
        };
        match public {
            Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)) }) => {
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => Err(none("it has no public part")),
        }
    }
}

/// Whether a process of this number is a shim, as far as its name tells. For where the kernel tells of whoever has
/// connected that it is ourselves, which nobody is (gVisor before November 2025). Into the process we may not look.
fn is_shim(pid: Pid) -> bool {
    let name = |pid: Pid| fs::read(format!("/proc/{pid}/comm")).ok();
    pid.as_raw() > 0 && pid != Pid::this() && name(pid).is_some_and(|told| name(Pid::this()) == Some(told))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What came of it where only mounted files are served: they are read anew, and nobody is asked.
fn read_again(before: &Value, now: &Value) -> Option<Result<String, ClientError>> {
    let look = |status: &Value| status["workloads"][0]["files_read"].as_u64();
    if list(&now["ca"]).next().is_some() || look(before) == look(now) {
        return None;
    }
    let version = |status: &Value| {
        let held = list(&status["workloads"][0]["resources"]).find(|held| held["name"] == "default");
        held.map(|held| held["version"].clone())
    };
    let (source, trouble) = (now["source"].as_str().unwrap_or_default(), &now["workloads"][0]["trouble"]);
    if trouble["reason"] == "files" {
        let held = if has_certificate(now) { "still serving the current certificate" } else { "nothing is served yet" };
        return Some(Err(ClientError::NotRenewed(trouble["text"].as_str().unwrap_or_default().to_owned(), held)));
    }
    let what = match version(before) == version(now) {
        true => "hold the certificate that is already served: it is renewed by whatever writes them, not by a CA",
        false => "were re-read, and their new certificate is served",
    };
    Some(Ok(format!("{source} {what}\n")))
}

/// Whether the CA is being asked for a certificate.
fn is_asking(status: &Value) -> bool {
    list(&status["workloads"]).any(|workload| workload["asking"] == true)
}

fn has_certificate(status: &Value) -> bool {
    list(&status["workloads"]).flat_map(|workload| list(&workload["resources"])).any(|held| held["name"] == "default")
}
