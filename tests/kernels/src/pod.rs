//! Pods of the guest: each a directory and a shim in it, with one stream for its certificate.

use std::{
    fs, io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    pkey::PKey,
    rsa::Rsa,
};
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, POLL, Workload,
    confined::{UID, own},
    development_ca::{
        CaOptions, DevelopmentCa, Issued, Leaf, Pki, ProjectedFile, ProjectedVolume, TokenIssuer, TokenRequest,
    },
    process::Process,
    sds::{self, SdsClient, SdsStream},
    shim::{Shim, ShimBuilder},
};
use tokio::time::{Instant, sleep};

use crate::confine::{Confinement, User};

/// How long a shim may take for a certificate here, where each instruction is emulated and all share what there is.
const PATIENCE: Duration = Duration::from_secs(120);

/// The key of a mounted certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MountedKey {
    Rsa4096,
    P256,
}

/// How one shim is to be started.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) confinement: Confinement,
    pub(crate) env: Vec<(&'static str, &'static str)>,
    /// Whether its certificate is mounted, with this kind of key, in place of the CA's.
    pub(crate) mounted: Option<MountedKey>,
    /// A command that it starts and follows.
    pub(crate) command: &'static [&'static str],
    /// Whether it has a client certificate of its own for the CA.
    pub(crate) provisioned: bool,
}

impl Plan {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, variables: &[(&'static str, &'static str)]) -> Self {
        self.env.extend(variables);
        self
    }

    fn uid(&self) -> u32 {
        if self.confinement.user == User::Root { 0 } else { UID }
    }
}

/// The CA of all pods.
pub(crate) struct World {
    ca: DevelopmentCa,
    pki: Arc<Pki>,
    tokens: Arc<TokenIssuer>,
}

impl World {
    pub(crate) async fn new() -> Result<Self, Failure> {
        let (pki, tokens) = (Arc::new(Pki::new("guest")), Arc::new(TokenIssuer::new()));
        let ca = DevelopmentCa::start(Arc::clone(&pki), Arc::clone(&tokens), CaOptions::default()).await;
        Ok(Self { ca: ca.or_fail("start the CA")?, pki, tokens })
    }

    /// Starts a shim in a directory of its own; nothing is awaited.
    pub(crate) fn start(&self, plan: &Plan) -> Result<Pod, Failure> {
        let directory = Path::new("/pods").join(&plan.name);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::new(format!("cannot clear {}: {error}", directory.display())));
            }
            _ => {}
        }
        let mut workload =
            Workload::create(&directory, "foo", &plan.name, &self.ca.root_pem()).or_fail("lay it out")?;
        let token = self.tokens.mint(&TokenRequest::new("foo", &plan.name));
        workload.write_token(&token).or_fail("write the token")?;
        let mut how = Shim::for_workload(&workload, self.ca.address()).env("SDS_SHIM_ALLOW_UIDS", "0");
        for (name, value) in &plan.env {
            how = how.env(*name, *value);
        }
        let mut mount = None;
        if !plan.command.is_empty() {
            how = how.exec(plan.command);
        }
        if let Some(key) = plan.mounted {
            let directory = workload.path().join("etc/certs");
            let new = Mount::new(Arc::clone(&self.pki), &directory, workload.spiffe_id(), key)?;
            how = how.env("FILE_MOUNTED_CERTS", "true");
            mount = Some(new);
        }
        if plan.provisioned {
            let issued = self.pki.issue(&leaf(&workload.spiffe_id()));
            write_certificate(&directory.join("provisioned"), &issued, &self.pki.root_pem())?;
            how = how.env("PROV_CERT", "./provisioned");
        }
        own(&directory, plan.uid(), plan.uid()).or_fail("give the directory to its user")?;
        let launcher = plan.confinement.launcher();
        let shim = how.clone().through(&launcher.iter().map(String::as_str).collect::<Vec<_>>()).start()?;
        let name = plan.name.clone();
        Ok(Pod {
            name,
            confinement: plan.confinement,
            how,
            shim,
            mount,
            stream: None,
            serial: None,
            trouble: None,
            gone: false,
        })
    }
}

/// A shim, and what has become of it.
pub(crate) struct Pod {
    pub(crate) name: String,
    confinement: Confinement,
    how: ShimBuilder,
    shim: Shim,
    mount: Option<Mount>,
    stream: Option<SdsStream>,
    serial: Option<String>,
    trouble: Option<String>,
    /// Whether its end has been told.
    gone: bool,
}

impl Pod {
    /// Awaits the first certificate, or the end of the process.
    pub(crate) async fn first(&mut self) {
        self.trouble = self.try_first().await.err().map(|failure| failure.what().to_owned());
    }

    async fn try_first(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let client = loop {
            match SdsClient::connect(self.shim.socket()).await {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline || self.shim.exited().is_some() => {
                    return Err(Failure::new(format!("no connection: {error}")));
                }
                Err(_) => sleep(POLL).await,
            }
        };
        let stream = client.stream();
        stream.send(sds::request(&["default"]));
        self.stream = Some(stream);
        self.receive().await
    }

    /// Has it renew by a signal, or writes the mounted files anew, and awaits the next certificate.
    pub(crate) async fn renew(&mut self) {
        if self.trouble.is_none() {
            self.trouble = self.try_renew().await.err().map(|failure| failure.what().to_owned());
        }
    }

    async fn try_renew(&mut self) -> Result<(), Failure> {
        match &self.mount {
            Some(mount) => mount.rotate()?,
            None => self.shim.signal(Signal::SIGUSR1)?,
        }
        self.receive().await
    }

    /// `sds-shim renew` in the pod: its exit code, after the certificate that it led to.
    pub(crate) async fn renew_by_command(&mut self) -> Result<Option<i32>, Failure> {
        let mut command = self.confinement.launcher();
        command.extend([testkit::shim::program()?.display().to_string(), "renew".to_owned()]);
        let program = command.remove(0);
        let env: Vec<_> = self.how.variables().into_iter().collect();
        let directory = self.shim.directory().to_owned();
        let mut process = Process::start("sds-shim renew", Path::new(&program), &command, &env, &directory)?;
        if self.trouble.is_none() {
            self.trouble = self.receive().await.err().map(|failure| failure.what().to_owned());
        }
        Ok(process.wait_exit().await?.code())
    }

    async fn receive(&mut self) -> Result<(), Failure> {
        let Some(stream) = &mut self.stream else {
            return Err(Failure::new("there is no stream"));
        };
        let answer = stream.recv_within(PATIENCE).await?;
        stream.send(sds::ack(&answer, &["default"]));
        let secret = sds::secrets(&answer)?.pop().ok_or_else(|| Failure::new("the answer is empty"))?;
        let serial = secret.serial()?;
        if !secret.key_fits_leaf()? {
            return Err(Failure::new("key and certificate do not fit"));
        }
        if self.serial.replace(serial.clone()) == Some(serial) {
            return Err(Failure::new("the same certificate came again"));
        }
        Ok(())
    }

    /// What holds now: whether it serves or how it ended, its level, its pages, and what it has told. Its end is told
    /// once.
    pub(crate) async fn fact(&mut self) -> Option<Value> {
        match self.gone {
            true => None,
            false => Some(self.look().await),
        }
    }

    async fn look(&mut self) -> Value {
        let memory = match self.trouble {
            None => self.memory().await,
            Some(_) => Value::Null,
        };
        let status = match memory {
            // Who does not answer may be about to end.
            Value::Null => self.grace().await,
            _ => self.shim.exited(),
        };
        let told = told(&self.shim.log().lines());
        if let Some(status) = status {
            self.gone = true;
            let last: Vec<_> = self.shim.log().lines().into_iter().rev().take(3).collect();
            return json!({
                "outcome": ended(status), "signal": status.signal(), "code": status.code(), "told": told, "last": last,
            });
        }
        if memory.is_null() {
            let trouble = self.trouble.as_deref().unwrap_or("its status cannot be had");
            return json!({ "outcome": "silent", "trouble": trouble, "told": told });
        }
        let pid = self.shim.pid();
        let polls = self.shim.log().lines().iter().any(|line| line.contains("cannot watch files"));
        json!({
            "outcome": "served", "level": memory["level"], "missing": memory["missing"], "pages": secret_pages(pid),
            "VmSize": kib(pid, "VmSize"), "VmPeak": kib(pid, "VmPeak"), "VmRSS": kib(pid, "VmRSS"), "polls": polls,
            "told": told, "memory": memory,
        })
    }

    /// What its status says of memory.
    async fn memory(&mut self) -> Value {
        let Ok(answer) = self.shim.admin("/status").await else { return Value::Null };
        serde_json::from_str::<Value>(&answer.text()).map_or(Value::Null, |mut status| status["memory"].take())
    }

    /// The exit status of one that has let its client down, in case it is about to end.
    async fn grace(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match self.shim.exited() {
                None if Instant::now() < deadline => sleep(POLL).await,
                status => return status,
            }
        }
    }

    /// Ends it in order and says how that went, unless its end has been told before.
    pub(crate) async fn end(mut self) -> Option<String> {
        if self.gone {
            return None;
        }
        Some(match self.shim.terminate().await {
            Ok(status) => ended(status),
            Err(failure) => failure.what().to_owned(),
        })
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, code) => format!("exit {}", code.unwrap_or(-1)),
    }
}

/// Mounted files, followed by the shim.
struct Mount {
    volume: ProjectedVolume,
    pki: Arc<Pki>,
    leaf: Leaf,
    key: PKey<openssl::pkey::Private>,
}

impl Mount {
    fn new(pki: Arc<Pki>, directory: &Path, spiffe_id: String, key: MountedKey) -> Result<Self, Failure> {
        let volume = ProjectedVolume::create(directory, &[]).or_fail("make a volume")?;
        let key = match key {
            MountedKey::Rsa4096 => Rsa::generate(4096).and_then(PKey::from_rsa),
            MountedKey::P256 => EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)
                .and_then(|group| EcKey::generate(&group))
                .and_then(PKey::from_ec_key),
        };
        let key = key.or_fail("make a key")?;
        let mount = Self { volume, pki, leaf: leaf(&spiffe_id), key };
        mount.rotate()?;
        Ok(mount)
    }

    /// Another certificate for the same key.
    fn rotate(&self) -> Result<(), Failure> {
        let public = self.key.public_key_to_pem().or_fail("write the public key")?;
        let leaf = self.pki.certify(&self.leaf, &String::from_utf8_lossy(&public)).or_fail("certify the key")?;
        let key = self.key.private_key_to_pem_pkcs8().or_fail("write the key")?;
        let files = [
            ("cert-chain.pem", leaf + &self.pki.intermediates().concat()),
            ("key.pem", String::from_utf8_lossy(&key).into_owned()),
            ("root-cert.pem", self.pki.root_pem()),
        ];
        let file = |(name, content): (&str, String)| ProjectedFile {
            name: name.to_owned(),
            content,
            mode: 0o600,
            uid: Some(UID),
            gid: Some(UID),
        };
        self.volume.replace_files(&files.map(file)).or_fail("write the volume")
    }
}

fn leaf(spiffe_id: &str) -> Leaf {
    Leaf::workload(spiffe_id, Duration::from_secs(86_400))
}

fn write_certificate(directory: &PathBuf, issued: &Issued, root_pem: &str) -> Result<(), Failure> {
    let files =
        [("cert-chain.pem", issued.chain_pem.as_str()), ("key.pem", &issued.key_pem), ("root-cert.pem", root_pem)];
    fs::create_dir_all(directory).or_fail("make a directory")?;
    files.iter().try_for_each(|(name, content)| fs::write(directory.join(name), content)).or_fail("write a certificate")
}

/// A line of its status.
fn kib(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}

/// Resident pages of all mappings of secret memory. Its pages show nowhere else where the kernel counts them by user.
fn secret_pages(pid: u32) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        // The first line of a mapping begins with its addresses, the others with a name.
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = line.contains("/secretmem");
        } else if inside && first == "Rss:" {
            kib += line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(kib * 1024 / u64::try_from(page).ok()?)
}

/// What the log says of memory, without times.
fn told(lines: &[String]) -> Vec<String> {
    let of_memory = |line: &&String| line.contains("memory") || line.contains("SDS_SHIM_REQUIRE_LOCKED");
    let without_time = |line: &String| line.split_once(' ').map_or(line.as_str(), |(_, rest)| rest).trim().to_owned();
    lines.iter().filter(of_memory).map(without_time).collect()
}
