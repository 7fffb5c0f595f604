//! Directories, processes and clients of many pods on one machine.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testkit::{
    Failure, OrFail, Workload,
    confined::{MEMLOCK, copy, own},
    development_ca::{CaOptions, DevelopmentCa, Pki, TokenIssuer, TokenRequest},
    door::Door,
    pilot_agent::PilotAgent,
    scratch::Scratch,
    sds::{SdsClient, ack, request},
    shim::Shim,
    workspace,
};
use tokio::task::JoinSet;

/// The first of the users that the shims run as: what may be locked is counted for each user.
const FIRST_USER: u32 = 200_000;
/// An answer may be hours away.
const FOR_LONG: Duration = Duration::from_secs(86_400);

/// A CA, and pods that have their certificates from it.
pub(super) struct Pods {
    pub(super) ca: DevelopmentCa,
    /// On the shims' way to the CA.
    pub(super) door: Door,
    token: String,
    program: PathBuf,
    scratch: Scratch,
    clients: JoinSet<()>,
}

impl Pods {
    pub(super) async fn new() -> Result<Self, Failure> {
        let tokens = Arc::new(TokenIssuer::new());
        let ca = DevelopmentCa::start(Arc::new(Pki::new("fleet")), Arc::clone(&tokens), CaOptions::default()).await;
        let scratch = Scratch::new("pods")?;
        // One file for all, as the containers of a node share it, where every user can reach it.
        let program = scratch.path().join("sds-shim");
        let built = std::env::var_os("SHIM_BINARY").map(PathBuf::from);
        copy(&built.unwrap_or_else(|| workspace().join("target/dist/sds-shim")), &program)?;
        let ca = ca.or_fail("start the CA")?;
        Ok(Self {
            door: Door::to(ca.address()).await?,
            ca,
            token: tokens.mint(&TokenRequest::new("foo", "sleep")),
            program,
            scratch,
            clients: JoinSet::new(),
        })
    }

    fn workload(&self, name: &str) -> Result<Workload, Failure> {
        let directory = self.scratch.path().join(name);
        let workload = Workload::create(&directory, "foo", "sleep", &self.ca.root_pem());
        let mut workload = workload.or_fail("lay out a pod")?;
        workload.write_token(&self.token).or_fail("write a token")?;
        Ok(workload)
    }

    /// Starts a shim as an ordinary user of its own, who may lock 8 MiB, with this level of the log.
    pub(super) fn shim(&self, index: u32, life: Duration, log: &str) -> Result<Shim, Failure> {
        let workload = self.workload(&format!("shim-{index}"))?;
        let user = FIRST_USER + index;
        own(workload.path(), user, user).or_fail("give the pod to its user")?;
        let (limit, id, program) = (format!("--memlock={MEMLOCK}:{MEMLOCK}"), user.to_string(), self.program.display());
        let program = program.to_string();
        let confined = ["prlimit", &limit, "setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
        let without = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];
        // What follows is the binary as it was built, which the user may not be able to reach.
        let ours = ["/bin/sh", "-c", "shift; exec \"$0\" \"$@\"", &program];
        Shim::for_workload(&workload, self.ca.address())
            .env("CA_ADDR", self.door.address().to_string())
            .env("ISTIOD_SAN", "istiod.istio-system.svc")
            .env("SECRET_TTL", format!("{}s", life.as_secs()))
            .env("SDS_SHIM_LOG", log)
            .env("SDS_SHIM_ALLOW_UIDS", nix::unistd::geteuid().to_string())
            .through(&[&confined[..], &without, &ours].concat())
            .start()
    }

    /// Starts one of Istio's agents, with the quicker of its kinds of keys.
    pub(super) fn agent(&self, name: &str, life: Duration) -> Result<PilotAgent, Failure> {
        PilotAgent::for_workload(&self.workload(name)?, self.ca.address())?
            .env("SECRET_TTL", format!("{}s", life.as_secs()))
            .env("ECC_SIGNATURE_ALGORITHM", "ECDSA")
            .start()
    }

    /// Keeps the two streams of a sidecar open, and acknowledges what comes.
    pub(super) fn follow(&mut self, client: SdsClient) {
        for name in ["default", "ROOTCA"] {
            let mut stream = client.stream();
            self.clients.spawn(async move {
                stream.send(request(&[name]));
                while let Ok(answer) = stream.recv_within(FOR_LONG).await {
                    stream.send(ack(&answer, &[name]));
                }
            });
        }
    }
}

/// Each process takes two pipes and a socket here.
pub(super) fn open_many_files() -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).or_fail("read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).or_fail("raise the limit of open files")
}
