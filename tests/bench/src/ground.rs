//! What all that is measured stands on: the development CA on a thread of its own, and pods.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use testkit::{
    Failure, OrFail, Workload,
    development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer, TokenRequest},
    scratch::Scratch,
};

/// How often the CA's thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// The CA, and a directory for pods.
pub(crate) struct Ground {
    pub(crate) ca: Arc<DevelopmentCa>,
    /// What it signs with.
    pub(crate) pki: Arc<Pki>,
    tokens: Arc<TokenIssuer>,
    end: Arc<AtomicBool>,
    scratch: Scratch,
    pods: Cell<usize>,
}

impl Ground {
    /// Starts the CA.
    pub(crate) fn new() -> Result<Self, Failure> {
        let tokens = Arc::new(TokenIssuer::new());
        let end = Arc::new(AtomicBool::new(false));
        let (started, start) = mpsc::channel();
        let pki = Arc::new(Pki::new("bench"));
        let (signer, issuer) = (Arc::clone(&pki), Arc::clone(&tokens));
        let ended = Arc::clone(&end);
        thread::spawn(move || serve(signer, issuer, &ended, &started));
        let ca = start.recv().or_fail("start the CA's thread")?.or_fail("start the CA")?;
        Ok(Self { ca, pki, tokens, end, scratch: Scratch::new("bench-runs")?, pods: Cell::new(0) })
    }

    /// A new pod for the workload `sleep` in `foo`, with its token.
    pub(crate) fn pod(&self) -> Result<Workload, Failure> {
        self.pod_of("foo", "sleep")
    }

    /// A new pod for this workload, with its token.
    pub(crate) fn pod_of(&self, namespace: &str, service_account: &str) -> Result<Workload, Failure> {
        self.pods.set(self.pods.get() + 1);
        let directory = self.scratch.path().join(self.pods.get().to_string());
        let pod = Workload::create(&directory, namespace, service_account, &self.ca.root_pem());
        let mut pod = pod.or_fail("lay out a pod")?;
        let token = self.tokens.mint(&TokenRequest::new(namespace, service_account));
        pod.write_token(&token).or_fail("write a token")?;
        Ok(pod)
    }

    /// When the CA sent its latest answer before this moment.
    pub(crate) fn answer_before(&self, moment: Instant) -> Option<Instant> {
        self.ca.calls().iter().filter_map(|call| call.settled).rfind(|settled| *settled <= moment)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

type Started = Result<Arc<DevelopmentCa>, std::io::Error>;

/// Runs the CA until `end`.
fn serve(pki: Arc<Pki>, tokens: Arc<TokenIssuer>, end: &AtomicBool, started: &mpsc::Sender<Started>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    runtime.block_on(async {
        let ca = match DevelopmentCa::start(pki, tokens, CaOptions::default()).await {
            Ok(ca) => Arc::new(ca),
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(Arc::clone(&ca)));
        while !end.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    });
}
