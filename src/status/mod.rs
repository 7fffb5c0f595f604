//! What may be told in public: makers and servers of secrets write it, whoever shows it reads it. No key and no token
//! ever comes here.

mod peers;
mod upstream;
mod workload;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::store::SecretStore;

pub use peers::{Client, Peer, Peers, PeersView, Refusal, Requested, ResourceCounts, StreamFacts, StreamHandle};
pub use upstream::{BUCKETS, Endpoint, EndpointFacts, Latencies, Reason, Tls};
pub use workload::{NotReady, RenewalFacts, RevocationFacts, Trouble, Workload};

/// The public state of the process.
pub struct Status {
    /// When the process started, Unix seconds.
    pub started: i64,
    /// Who is connected to the SDS socket.
    pub peers: Peers,
    /// Who is connected to the Workload API, where that is served.
    pub applications: Option<Peers>,
    min_life: i64,
    sources: Sources,
    /// Whether the CA has issued a certificate.
    by_ca: AtomicBool,
    endpoints: Vec<Arc<Endpoint>>,
    output: Mutex<Option<Outcomes>>,
    on_change: Mutex<Option<Outcomes>>,
    files: Vec<PathBuf>,
    /// Why the admin endpoints are not served at one or the other address.
    admin: Mutex<[Option<String>; 2]>,
    /// What the process denies itself, in words.
    sandbox: OnceLock<String>,
    workloads: Mutex<Vec<Weak<Workload>>>,
    renewals: Mutex<Renewals>,
    changes: watch::Sender<()>,
}

/// Where certificates come from, in words.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The mounted files that are served until the CA issues, if any.
    pub files: Option<String>,
    /// The CA.
    pub ca: String,
}

/// What came of something that is done at each change.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// When it was done last, Unix seconds.
    pub last: Option<i64>,
    /// How often it was done.
    pub done: u64,
    /// How often it failed.
    pub failed: u64,
    /// Why it is not done for what is served now.
    pub trouble: Option<String>,
}

impl Outcomes {
    fn note(&mut self, now: i64, outcome: Result<(), String>) {
        self.trouble = outcome.err();
        match &self.trouble {
            None => (self.last, self.done) = (Some(now), self.done + 1),
            Some(_) => self.failed += 1,
        }
    }
}

/// What came of the attempts to get certificates, over all workloads of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Renewals {
    /// Certificates that were issued and published.
    pub issued: u64,
    /// Attempts that brought none, by the class of the reason.
    pub failed: [u64; Reason::ALL.len()],
}

impl Status {
    /// Nothing is known yet. `min_life` is how much of a certificate's life (seconds) must be left to be ready, and
    /// `endpoints` is where the CA may be asked.
    pub fn new(started: i64, min_life: i64, sources: Sources, endpoints: impl IntoIterator<Item = String>) -> Self {
        let changes = watch::Sender::new(());
        Self {
            sources,
            by_ca: AtomicBool::new(false),
            started,
            peers: Peers::new(changes.clone()),
            applications: None,
            min_life,
            endpoints: endpoints.into_iter().map(|address| Arc::new(Endpoint::new(address))).collect(),
            files: Vec::new(),
            output: Mutex::default(),
            on_change: Mutex::default(),
            admin: Mutex::default(),
            sandbox: OnceLock::new(),
            workloads: Mutex::default(),
            renewals: Mutex::default(),
            changes,
        }
    }

    /// The same, with the files that are followed.
    #[must_use]
    pub fn following(self, files: Vec<PathBuf>) -> Self {
        Self { files, ..self }
    }

    /// The same, with the Workload API.
    #[must_use]
    pub fn with_applications(self) -> Self {
        Self { applications: Some(Peers::new(self.changes.clone())), ..self }
    }

    /// The files that are followed, by the names that the configuration has for them.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The process has entered its sandbox, of which this tells what holds.
    pub fn confined(&self, what: String) {
        // It is entered once.
        let _ = self.sandbox.set(what);
    }

    /// What holds of the sandbox, once it has been entered.
    pub fn sandbox(&self) -> Option<&str> {
        self.sandbox.get().map(String::as_str)
    }

    /// Where what is served comes from now, in words.
    pub fn source(&self) -> &str {
        match &self.sources.files {
            Some(files) if !self.by_ca.load(Ordering::Relaxed) => files,
            _ => &self.sources.ca,
        }
    }

    /// Adds a workload, which is shown for as long as somebody holds what is returned.
    pub fn workload(self: &Arc<Self>, identity: String, store: &Arc<SecretStore>) -> Arc<Workload> {
        let workload = Arc::new(Workload::new(identity, Arc::downgrade(store), Arc::clone(self)));
        let mut workloads = self.workloads.lock().unwrap_or_else(PoisonError::into_inner);
        workloads.retain(|workload| workload.strong_count() > 0);
        workloads.push(Arc::downgrade(&workload));
        workload
    }

    /// The workloads that are served.
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        let workloads = self.workloads.lock().unwrap_or_else(PoisonError::into_inner);
        workloads.iter().filter_map(Weak::upgrade).collect()
    }

    /// One of the CA's addresses.
    pub fn endpoint(&self, address: &str) -> Option<Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| endpoint.address == address).map(Arc::clone)
    }

    /// All addresses of the CA in the order of preference.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// What came of all attempts.
    pub fn renewals(&self) -> Renewals {
        *self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At `now` (Unix seconds) the files of `OUTPUT_CERTS` were written, or could not be.
    pub fn wrote(&self, now: i64, outcome: Result<(), String>) {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().note(now, outcome);
    }

    /// There is something to be done at each change, so that it is counted from now on.
    pub fn acts_on_changes(&self) {
        self.on_change.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
    }

    /// At `now` (Unix seconds) what `SDS_SHIM_ON_CHANGE` says was done, or could not be.
    pub fn acted(&self, now: i64, outcome: Result<(), String>) {
        self.on_change.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().note(now, outcome);
    }

    /// What came of that, where there is something to be done.
    pub fn on_change(&self) -> Option<Outcomes> {
        self.on_change.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it goes with the files of `OUTPUT_CERTS`, once they were to be written.
    pub fn output(&self) -> Option<Outcomes> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the admin endpoints are not served from now on, in clear or over TLS; `None` when they are.
    pub fn admin_is(&self, over_tls: bool, trouble: Option<String>) {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(over_tls)] = trouble;
    }

    /// Why the admin endpoints are not served, if they should be and are not. Who is told has asked over the SDS socket.
    pub fn admin(&self) -> Option<String> {
        let [clear, tls] = self.admin.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (clear, tls) {
            (Some(clear), Some(tls)) => Some(format!("{clear}; {tls}")),
            (clear, tls) => clear.or(tls),
        }
    }

    /// Whether every secret that a workload needs is held, can be used at `now` (Unix seconds), will be for long enough,
    /// and was not refused by an Envoy that has no other.
    ///
    /// # Errors
    /// What is missing, and why.
    pub fn readiness(&self, now: i64) -> Result<(), NotReady> {
        let workloads = self.workloads();
        if workloads.is_empty() {
            return Err(NotReady::Nobody);
        }
        workloads.iter().try_for_each(|workload| workload.readiness(now, self.min_life))
    }

    /// What is wrong with lists of revoked certificates while what was served before is served still.
    pub fn revocation_trouble(&self) -> Option<String> {
        self.workloads().iter().find_map(|workload| workload.renewal().revocation.trouble).map(|(_, text)| text)
    }

    /// When (Unix seconds) somebody who is ready now stops to be, if nothing else happens.
    pub fn ready_until(&self) -> i64 {
        let ends = self.workloads();
        ends.iter().map(|workload| workload.usable_until().saturating_sub(self.min_life)).min().unwrap_or(i64::MAX)
    }

    /// Tells each change that may have changed the readiness.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn changed(&self, count: impl FnOnce(&mut Renewals)) {
        count(&mut self.renewals.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_replace(());
    }
}

/// One document of those that are shown to whoever asks.
pub struct Page {
    /// The HTTP status.
    pub status: u16,
    /// The type of its content.
    pub content_type: &'static str,
    /// Its content.
    pub body: Bytes,
}

/// What there is to show.
pub trait Pages: Send + Sync + 'static {
    /// The document at this path, in a form that who asks accepts (HTTP's `Accept`), if there are several.
    fn page(&self, path: &str, accept: Option<&str>) -> Page;
}
