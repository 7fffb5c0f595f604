//! Sidecars of both kinds that wait for one CA, and an Envoy's way to their certificates.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use testkit::{
    Failure, OrFail, POLL, Workload,
    development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer, TokenRequest},
    door::Door,
    nameserver::with_files,
    pilot_agent::{self, PilotAgent},
    process::Process,
    rng::Rng,
    scratch::Scratch,
    sds::{self, SdsClient},
    shim::Shim,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// The CA's name.
const NAME: &str = "istiod.istio-system.svc";
/// How long the last of them may take: Istio's agent waits for minutes at times.
const LIMIT: Duration = Duration::from_secs(300);
/// Envoy's waits for a stream that was ended: uniform up to a bound that doubles (`GrpcStream`).
const FIRST_BOUND: Duration = Duration::from_millis(500);
const LAST_BOUND: Duration = Duration::from_secs(30);

/// How many sidecars of each kind, and for how long they wait before the cure.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    pub(crate) each: usize,
    /// Whether there are Istio's agents as well.
    pub(crate) agents: bool,
    pub(crate) wait: Duration,
}

/// What all sidecars of a scene have in common.
#[derive(Default)]
pub(crate) struct Common {
    pub(crate) env: BTreeMap<&'static str, String>,
    /// Files that each sees in place of those in `/etc`; a hosts file with the way to the CA if there are none.
    pub(crate) files: Vec<(&'static str, String)>,
    /// The anchors in the mount, if not the CA's.
    pub(crate) root: Option<String>,
}

/// The CA, the way to it, and the sidecars.
pub(crate) struct Field {
    pub(crate) pki: Arc<Pki>,
    pub(crate) ca: DevelopmentCa,
    pub(crate) door: Door,
    sidecars: Vec<Sidecar>,
    scratch: Scratch,
}

struct Sidecar {
    is_agent: bool,
    workload: Workload,
    process: Running,
    receipts: Arc<Mutex<Vec<Instant>>>,
    envoy: JoinHandle<()>,
}

enum Running {
    Shim(Box<Shim>),
    Agent(Box<Process>),
}

impl Running {
    fn process(&self) -> &Process {
        match self {
            Self::Shim(shim) => shim,
            Self::Agent(agent) => agent,
        }
    }
}

/// A hosts file with the way to the CA.
pub(crate) fn hosts(ca: IpAddr) -> String {
    format!("127.0.0.1 localhost\n{ca} {NAME}\n")
}

fn tokens() -> Arc<TokenIssuer> {
    static TOKENS: OnceLock<Arc<TokenIssuer>> = OnceLock::new();
    Arc::clone(TOKENS.get_or_init(Arc::default))
}

impl Field {
    /// A CA and the way to it.
    pub(crate) async fn new() -> Result<Self, Failure> {
        let pki = Arc::new(Pki::new("test"));
        let ca = Self::ca_of(&pki).await?;
        let door = Door::to(ca.address()).await?;
        Ok(Self { pki, ca, door, sidecars: Vec::new(), scratch: Scratch::new("tests")? })
    }

    /// Another CA for the same sidecars.
    pub(crate) async fn ca_of(pki: &Arc<Pki>) -> Result<DevelopmentCa, Failure> {
        DevelopmentCa::start(Arc::clone(pki), tokens(), CaOptions::default()).await.or_fail("start a CA")
    }

    /// Where files of all sidecars may lie.
    pub(crate) fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Starts the sidecars.
    pub(crate) fn start(&mut self, crowd: Crowd, common: &Common) -> testkit::Result {
        for index in 0..crowd.each {
            self.start_one(index, false, common)?;
            if crowd.agents {
                self.start_one(index, true, common)?;
            }
        }
        Ok(())
    }

    fn start_one(&mut self, index: usize, is_agent: bool, common: &Common) -> testkit::Result {
        let kind = if is_agent { "agent" } else { "shim" };
        let directory = self.scratch.path().join(format!("{kind}-{index}"));
        let root = common.root.clone().unwrap_or_else(|| self.ca.root_pem());
        let mut workload = Workload::create(&directory, "foo", "sleep", &root).or_fail("lay out a workload")?;
        workload.write_token(&tokens().mint(&TokenRequest::new("foo", "sleep"))).or_fail("write a token")?;
        let door = self.door.address();
        let launcher = match common.files.is_empty() {
            true => launcher(&directory, &[("hosts", hosts(door.ip()))])?,
            false => launcher(&directory, &common.files)?,
        };
        let (process, socket) = match is_agent {
            true => agent(&workload, self.door.address(), &launcher, common)?,
            false => shim(&workload, self.door.address(), &launcher, common)?,
        };
        let receipts = Arc::new(Mutex::new(Vec::new()));
        let envoy = tokio::spawn(envoy(socket, Arc::clone(&receipts), self.sidecars.len() as u64));
        self.sidecars.push(Sidecar { is_agent, workload, process, receipts, envoy });
        Ok(())
    }

    /// Does something to each workload.
    pub(crate) fn each(&self, change: impl Fn(&Workload) -> std::io::Result<()>) -> testkit::Result {
        self.sidecars.iter().try_for_each(|sidecar| change(&sidecar.workload).or_fail("change a workload's files"))
    }

    /// Returns once each has a certificate that came after `moment`; the seconds that took, ours and theirs.
    pub(crate) async fn served_after(&self, moment: Instant) -> Result<[Vec<f64>; 2], Failure> {
        let mut seconds = [Vec::new(), Vec::new()];
        for sidecar in &self.sidecars {
            let received = loop {
                let receipts = sidecar.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(received) = receipts.into_iter().find(|receipt| *receipt >= moment) {
                    break received;
                }
                if moment.elapsed() > LIMIT {
                    return Err(sidecar.process.process().failure(format!("no certificate within {LIMIT:?}")));
                }
                sleep(POLL).await;
            };
            seconds[usize::from(sidecar.is_agent)].push((received - moment).as_secs_f64());
        }
        seconds.iter_mut().for_each(|seconds| seconds.sort_by(f64::total_cmp));
        Ok(seconds)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.envoy.abort();
    }
}

fn launcher(directory: &Path, files: &[(&'static str, String)]) -> Result<Vec<String>, Failure> {
    let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_str())).collect();
    Ok(with_files(directory, &files)?.into())
}

fn shim(
    workload: &Workload,
    ca: SocketAddr,
    launcher: &[String],
    common: &Common,
) -> Result<(Running, PathBuf), Failure> {
    let launcher: Vec<_> = launcher.iter().map(String::as_str).collect();
    let shim = Shim::for_workload(workload, ca).through(&launcher).env("SDS_SHIM_LOG", "debug");
    let shim = shim.env("CA_ADDR", format!("{NAME}:{}", ca.port()));
    let shim = common.env.iter().fold(shim, |shim, (name, value)| shim.env(*name, value.clone())).start()?;
    let socket = shim.socket().to_owned();
    Ok((Running::Shim(Box::new(shim)), socket))
}

fn agent(
    workload: &Workload,
    ca: SocketAddr,
    launcher: &[String],
    common: &Common,
) -> Result<(Running, PathBuf), Failure> {
    // It wants the name of CA_ADDR in the server's certificate, so there must be one.
    let agent = PilotAgent::for_workload(workload, ca)?.env("CA_ADDR", format!("{NAME}:{}", ca.port()));
    let agent = common.env.iter().fold(agent, |agent, (name, value)| agent.env(name, value.clone()));
    let env: Vec<_> = agent.variables().into_iter().collect();
    let program = pilot_agent::program()?;
    let words = pilot_agent::ARGUMENTS.map(str::to_owned);
    let (first, rest) = launcher.split_first().ok_or_else(|| Failure::new("there is no launcher"))?;
    let words = [rest, &[program.display().to_string()], &words].concat();
    let process = Process::start("pilot-agent", Path::new(first), &words, &env, workload.path())?;
    Ok((Running::Agent(Box::new(process)), workload.socket()))
}

/// A stream for `default` as Envoy has it: opened again when it was ended, after waits that grow until something comes.
async fn envoy(socket: PathBuf, receipts: Arc<Mutex<Vec<Instant>>>, seed: u64) {
    let (mut rng, mut bound) = (Rng::new(seed + 1), FIRST_BOUND);
    loop {
        if let Ok(client) = SdsClient::connect(&socket).await {
            let mut stream = client.stream();
            stream.send(sds::request(&["default"]));
            while let Ok(answer) = stream.recv_within(LIMIT).await {
                receipts.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                stream.send(sds::ack(&answer, &["default"]));
                bound = FIRST_BOUND;
            }
        }
        sleep(Duration::from_micros(rng.below(bound.as_micros() as u64))).await;
        bound = (bound * 2).min(LAST_BOUND);
    }
}
