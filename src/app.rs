//! The composition root: the only module that knows all others.

use std::{
    fs::OpenOptions,
    future,
    io::{self, IsTerminal as _, Write as _},
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt as _,
    process::ExitStatus,
    sync::Arc,
};

use locked::Inherited;
use nix::{fcntl::OFlag, sys::signal::Signal};
use tokio::{
    runtime::{self, Runtime},
    sync::{Notify, watch},
};
use tracing::{error, info, subscriber::SetGlobalDefaultError, warn};

mod upkeep;

use upkeep::{Sockets, first_certificate, keep_in_place};

use crate::{
    admin::{self, AdminPages},
    check,
    cli::Command,
    client::{self, ClientError},
    clock,
    config::{self, Config, Mistake, OnChange, ProcessEnv, SdsConfig, TokenConfig},
    files::{FileAccess, FileSource, OutputWriter, RootFiles, tell_of_places},
    identity::BearerToken,
    log,
    memory::{self, TooLittleProtection},
    on_change::Follower,
    rotation::{Forced, FrozenVolume, Mounted, ProjectedToken, Renewal, RenewalSettings, RequestBorne, Spiffe},
    sandbox::Sandbox,
    sds::{self, BindError, Clients, Names, SdsSocket, Served},
    status::{Pages, Sources, Status},
    store::{AttachError, CERTIFICATE, Consumer, ROOTS, SecretStore, View, Workloads},
    supervise::{self, ARE_WE_ALIVE, Launch, LaunchError, Signals, Supervisor},
    workload_api::{self, WorkloadApi},
};

/// Why the process ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The environment has mistakes: all of them.
    #[error("invalid configuration:\n  {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
    Config(Vec<Mistake>),
    /// There is a log already.
    #[error("{0}")]
    Log(#[from] SetGlobalDefaultError),
    /// Keys cannot be protected as the configuration requires.
    #[error("{0}")]
    Memory(#[from] TooLittleProtection),
    /// The socket cannot be served.
    #[error("{0}")]
    Bind(#[from] BindError),
    /// The command that was to be started cannot be.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// A question to a running shim has no good answer.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The environment or the files have mistakes, which were printed.
    #[error("the configuration is invalid")]
    Checked,
    /// The kernel refused something that we cannot do without.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The workload whose token is in the projected file: there is only one, whoever asks.
struct OneWorkload(Arc<SecretStore>);

impl Workloads for OneWorkload {
    fn attach(&self, _: Option<BearerToken>) -> Result<Consumer, AttachError> {
        Ok(self.0.consumer())
    }
}

/// The workload's own names, and those of files where there is one workload alone.
struct KnownNames {
    access: FileAccess,
    files: bool,
}

impl Names for KnownNames {
    fn is_known(&self, name: &str) -> bool {
        [CERTIFICATE, ROOTS].contains(&name) || self.is_file(name)
    }

    fn is_file(&self, name: &str) -> bool {
        self.files && self.access.resource(name).is_some()
    }

    fn is_open(&self, name: &str) -> bool {
        self.access.is_open(name)
    }
}

/// Does what the command line says. Returns how the command ended that was started, if one was.
///
/// # Errors
/// When it cannot be done.
pub fn run(command: Command, inherited: Inherited) -> Result<Option<ExitStatus>, AppError> {
    match command {
        Command::Serve => {
            drop(inherited);
            serve(None).inspect_err(note_the_end)
        }
        Command::Exec { program, arguments } => {
            serve(Some(Launch::new(program, arguments, inherited))).inspect_err(note_the_end)
        }
        Command::Ask(question) => {
            let socket = SdsConfig::from_env(&ProcessEnv::capture()).map_err(AppError::Config)?.socket;
            print(&runtime()?.block_on(client::ask(question, &socket, io::stdout().is_terminal()))?)
        }
        Command::Check => {
            let found = check::check(&ProcessEnv::capture());
            print(&found.text)?;
            if found.mistakes == 0 { Ok(None) } else { Err(AppError::Checked) }
        }
        Command::Print(text) => print(&text),
    }
}

fn print(text: &str) -> Result<Option<ExitStatus>, AppError> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(None)
}

/// Kubernetes shows what stands in this file as the reason why the container ended.
fn note_the_end(error: &AppError) {
    let file = config::termination_log(&ProcessEnv::capture());
    // Only what is there already: outside of Kubernetes nobody wants such a file. A FIFO that nobody reads would keep
    // us from ending.
    let flags = OFlag::O_NONBLOCK.bits();
    if let Ok(mut file) = OpenOptions::new().write(true).truncate(true).custom_flags(flags).open(file) {
        let _ = writeln!(file, "sds-shim: {error}");
    }
}

fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread()
        .enable_all()
        // A sleeping process must not hold a key where the kernel could write it into a core.
        .on_thread_park(|| {
            locked::clear_vector_registers();
            locked::clear_idle_stack();
            locked::asleep();
        })
        .on_thread_unpark(locked::awake)
        .build()
}

/// Serves until the process is told to end, or until the command that it is to start has ended. When it cannot serve
/// it does not listen either, so that Envoy's other sources are not kept from it.
fn serve(launch: Option<Launch>) -> Result<Option<ExitStatus>, AppError> {
    Signals::block(launch.is_some())?;
    let config = Config::from_env(&ProcessEnv::capture()).map_err(AppError::Config)?;
    if let Some(Err(mistake)) = config.on_change.as_ref().map(|action| action.check(launch.is_some())) {
        return Err(AppError::Config(vec![mistake]));
    }
    log::start(config.log.clone())?;
    check::attachable().into_iter().for_each(|note| warn!("{note}"));
    memory::protect(&config.memory, config.secret_memory())?;
    clock::tell_of_the_kernel();
    supervise::stand_by();
    // Before anything else: whoever starts after us looks for the socket.
    let socket = SdsSocket::bind(&config.sds)?;
    let api = config.workload_api.as_ref().map(SdsSocket::bind).transpose()?;
    let launch = launch.map(|launch| match &api {
        Some(api) => launch.with_workload_api(api.path()),
        None => launch,
    });
    locked::fill_openssl_tables();
    let sockets = Sockets { sds: &socket, api: api.as_ref() };
    runtime()?.block_on(async {
        let ended = serve_on(sockets, config, launch).await;
        // A crash from here on must not bring us back, but for the command's exit code.
        if !matches!(ended, Ok(Some(_))) {
            locked::stand_down();
        }
        ended
    })
}

async fn serve_on(
    sockets: Sockets<'_>,
    config: Config,
    launch: Option<Launch>,
) -> Result<Option<ExitStatus>, AppError> {
    let signals = Signals::take(launch.is_some())?;
    let (force, mut forced) = (Arc::new(Notify::new()), Forced::new(config.rotation.forced_pause));
    warn_of(&config);
    info!(socket = %sockets.sds.path().display(), "serving SDS");
    let sandbox = Sandbox::new(&config);
    let (sds, api, wait) = (config.sds.clone(), config.workload_api.clone(), config.wait);
    let status = Arc::new(first_status(&config));
    if launch.is_none() {
        status.confined(sandbox.enter(false)?);
    }
    let pages: Arc<dyn Pages> = Arc::new(AdminPages::new(Arc::clone(&status)));
    if let Some(address) = config.admin.listen.clone() {
        tokio::spawn(admin::serve(address, Arc::clone(&pages), Arc::clone(&status)));
    }
    let access = FileAccess::new(&sds);
    let (changed, on_change) = (Arc::new(Notify::new()), config.on_change.clone());
    let over_tls = config.admin.tls.clone();
    let (workloads, view) =
        workloads(config, access.clone(), Arc::clone(&force), Arc::clone(&status), Arc::clone(&changed))?;
    if let Some((tls, view)) = over_tls.zip(view.clone()) {
        tokio::spawn(admin::serve_tls(tls, view, Arc::clone(&pages), Arc::clone(&status)));
    }
    let shown = Arc::clone(&status);
    let names = Arc::new(KnownNames { access, files: view.is_some() });
    let mut supervisor = Supervisor::new(launch, wait, view.clone());
    if let Some(ended) = supervisor.ended_before() {
        return Ok(Some(ended));
    }
    if supervisor.is_running() {
        shown.confined(sandbox.enter(true)?);
    }
    let clients = Clients::default();
    let kept = view.clone();
    let applications = serve_applications(&clients, sockets.api.zip(api.as_ref()).zip(view), Arc::clone(&status));
    let serving = clients.serve(sockets.sds, &sds, Served { workloads, status, pages, names });
    let keeping = keep_in_place(sockets, kept);
    tokio::pin!(serving, applications, keeping);
    loop {
        tokio::select! {
            // Nothing that a client does may keep a signal from us; and what is to be started finds us serving.
            biased;
            event = signals.next() => match event? {
                event if event.signal == ARE_WE_ALIVE => locked::answer(),
                event if event.signal == Signal::SIGUSR1 => forced.ask(),
                event => if let ControlFlow::Break(ended) = supervisor.signal(event) { return Ok(ended) },
            },
            () = forced.due() => force.notify_waiters(),
            () = changed.notified() => if let Some(OnChange::Signal(signal)) = on_change { supervisor.send(signal) },
            served = &mut serving => { served?; return Ok(None) }
            served = &mut applications => { served?; return Ok(None) }
            never = &mut keeping => match never {},
            () = supervisor.due() => {
                supervisor.start()?;
                shown.confined(sandbox.enter(true)?);
            }
        }
    }
}

/// What is possible, and not what anybody should want.
fn warn_of(config: &Config) {
    if let Some(address) = config.ca.addresses.iter().find(|address| config.source.ca && address.is_plaintext()) {
        warn!(
            "CA_ADDR has port 15010: connecting to {address} WITHOUT TLS: everyone on the path can read and use the \
             token"
        );
    }
    config.notes.iter().for_each(|note| warn!("{note}"));
}

/// What is known before anything has happened.
fn first_status(config: &Config) -> Status {
    let addresses = config.ca.addresses.iter().filter(|_| config.source.ca).map(ToString::to_string);
    let addresses = addresses.chain(config.source.spiffe.iter().map(ToString::to_string));
    let min_life = config.admin.min_life.as_secs() as i64;
    let status = Status::new(clock::now(), min_life, sources(config), addresses).following(config.followed_files());
    if config.workload_api.is_some() { status.with_applications() } else { status }
}

/// Serves the Workload API for as long as it is polled, where it is to be served.
async fn serve_applications(
    clients: &Clients,
    api: Option<((&SdsSocket, &SdsConfig), watch::Receiver<View>)>,
    status: Arc<Status>,
) -> io::Result<()> {
    let Some(((socket, config), view)) = api else { return future::pending().await };
    info!(socket = %socket.path().display(), "serving the SPIFFE Workload API");
    let peers = status.applications.clone().unwrap_or_default();
    let calls = Arc::new(WorkloadApi::new(view, Arc::clone(&status)));
    clients.serve_other(socket, config, calls, status, peers).await
}

/// Where certificates come from, in words.
fn sources(config: &Config) -> Sources {
    let ca = match (&config.source.spiffe, &config.token.file) {
        (Some(source), _) => format!("the SPIFFE Workload API at {}", source.socket.display()),
        (None, Some(file)) => format!("the CA, with the token in {}", file.display()),
        (None, None) => "the CA, with the token of each SDS request".to_owned(),
    };
    let files = config.source.files.as_ref().map(|files| {
        let then = if config.source.ca { ", until the CA has issued a certificate" } else { "" };
        format!("the mounted files {} and {}{then}", files.chain.display(), files.key.display())
    });
    Sources { files, ca }
}

/// The secrets of whoever asks.
type Secrets = (Arc<dyn Workloads>, Option<watch::Receiver<View>>);

/// Starts to get secrets; with the view of the workload where there is only one.
fn workloads(
    config: Config,
    access: FileAccess,
    force: Arc<Notify>,
    status: Arc<Status>,
    changed: Arc<Notify>,
) -> io::Result<Secrets> {
    let Config { source, identity, key, token, ca, rotation, files, output, on_change, workload_api, .. } = config;
    let (root_files, file_roots) = RootFiles::new(&rotation.roots);
    let watching = root_files.watch(files.check, Arc::clone(&force));
    let (ca, asks) = (Arc::new(ca), source.ca);
    let settings = RenewalSettings { key, rotation, ca, file_roots, mounted: source.files, files, force, status };
    let TokenConfig { file, audience } = token;
    let Some(file) = file else {
        tokio::spawn(watching);
        return Ok((Arc::new(RequestBorne::new(audience, settings, sds::encode)), None));
    };
    let store = SecretStore::new(sds::encode);
    let store = if workload_api.is_some() { store.with_svids(workload_api::encode) } else { store };
    let (store, status) = (Arc::new(store), Arc::clone(&settings.status));
    let (first, token, check) = (store.view(), file.clone(), settings.files.check);
    tokio::spawn(async move {
        first_certificate(first).await;
        if asks {
            tell_of_places(&[token], check);
        }
        watching.await
    });
    match (source.spiffe, identity.spiffe_id, &settings.mounted) {
        (Some(api), ..) => {
            tokio::spawn(Spiffe::new(&settings, api, &store).run(settings.file_roots));
        }
        (None, Some(id), _) if asks => {
            let renewal = Renewal::new(
                &settings,
                id,
                ProjectedToken::new(&file, audience, settings.files.check),
                Arc::clone(&store),
            )?;
            let volume = FrozenVolume::new(&file, settings.files.check)?;
            let first = first_certificate(store.view());
            // One task: each has some KiB of code of its own.
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    ended = renewal.run() => error!("renewals have stopped: {ended}"),
                    never = async { first.await; volume.follow().await } => match never {},
                }
            });
        }
        (None, id, Some(mounted)) => {
            let domain = settings.file_roots.borrow().own.clone();
            let identity = id.map_or_else(|| "mounted files".to_owned(), |id| id.in_domain(&domain).to_string());
            tokio::spawn(Mounted::new(&settings, mounted.clone(), identity, Arc::clone(&store)).run(settings));
        }
        // The configuration has an identity where the CA is asked, and files where it is not.
        (None, None | Some(_), None) => {}
    }
    if let Some(action) = on_change {
        status.acts_on_changes();
        tokio::spawn(Follower::new(action, Arc::clone(&store), Arc::clone(&status), changed).run());
    }
    if let Some(output) = output {
        let report = Box::new(move |outcome| status.wrote(clock::now(), outcome));
        tokio::spawn(OutputWriter::new(output, report).run(store.view()));
    }
    tokio::spawn(FileSource::new(Arc::clone(&store), store.demand(), files, access).run());
    let view = store.view();
    Ok((Arc::new(OneWorkload(store)), Some(view)))
}
