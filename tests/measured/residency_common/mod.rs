//! Shims with each kind of key, for the tests that look for keys in memory.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{collections::HashMap, time::Duration};

use nix::sys::signal::Signal;
use sds_shim_proto::spiffe::X509svidResponse;
use testkit::{
    Failure, OrFail, PATIENCE,
    agent::{self, Agent, Answer},
    confined::{self, Confinement, UID, own},
    development_ca::{Issued, Leaf, Pki, ProjectedVolume},
    fixture::{Logged, QUIET, Site},
    http, port,
    residency::{self, Needles},
    sds::{self, SdsStream},
    tls,
    workload_api::{self, Updates, WorkloadApi},
};
use tokio::net::TcpStream;

/// The number of the key that is presented to the CA: one more than all others.
pub(crate) const PRESENTED: usize = usize::MAX;

/// As in a sidecar, but without secret memory: the control.
pub(crate) const UNPROTECTED: Confinement = Confinement { without_secret_memory: true, ..Confinement::DEFAULT };

/// Where the served keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// They are made for the CA.
    Ca,
    /// They are mounted, and served as `default`.
    Files,
    /// They are asked for by the names of their files.
    Names,
    /// A SPIFFE Workload API tells them.
    Spiffe,
}

/// Keys of one kind, and how they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) source: Source,
    /// Variables that choose it.
    pub(crate) variables: &'static [(&'static str, &'static str)],
    /// KiB of secret memory.
    pub(crate) secret: usize,
    /// Whether metrics are scraped over mutual TLS with each key.
    pub(crate) scraped: bool,
    /// Whether an application has each of them over the Workload API as well.
    pub(crate) shared: bool,
}

/// Made by the shim. From the second on, the one before it is presented to the CA as a client certificate.
pub(crate) const P256: Kind = Kind { source: Source::Ca, variables: &[], secret: 32, scraped: false, shared: false };
pub(crate) const P384: Kind = Kind { variables: &[("ECC_CURVE", "P384")], ..P256 };
pub(crate) const RSA_2048: Kind = Kind { variables: &[("WORKLOAD_RSA_KEY_SIZE", "2048")], secret: 64, ..P256 };
pub(crate) const RSA_4096: Kind =
    Kind { variables: &[("WORKLOAD_RSA_KEY_SIZE", "4096"), ("PKCS8_KEY", "false")], secret: 64, ..P256 };
pub(crate) const MOUNTED: Kind = Kind {
    source: Source::Files,
    variables: &[("FILE_MOUNTED_CERTS", "true"), ("FILE_DEBOUNCE_DURATION", "10ms")],
    secret: 64,
    scraped: false,
    shared: false,
};
/// On a connection to an agent that lasts, whose buffers HTTP/2 keeps.
pub(crate) const TOLD: Kind =
    Kind { source: Source::Spiffe, variables: &[("SDS_SHIM_SOURCE", "spiffe")], secret: 64, ..P256 };
pub(crate) const NAMED: Kind = Kind { source: Source::Names, variables: &[("FILE_DEBOUNCE_DURATION", "10ms")], ..P256 };
/// A key in files that is presented to the CA at each call; and all that is served is written to files.
pub(crate) const PROVISIONED: Kind = Kind {
    variables: &[("PROV_CERT", "prov"), ("OUTPUT_CERTS", "output"), ("PKCS8_KEY", "false")],
    secret: 64,
    ..P256
};

/// A shim that serves one kind of key on one stream, and all keys that it has had.
pub(crate) struct Subject {
    kind: Kind,
    pub(crate) site: Site,
    pub(crate) shim: Logged,
    pub(crate) needles: Needles,
    /// The number of the key that is served.
    pub(crate) live: usize,
    mounted: Pki,
    stream: SdsStream,
    /// Where it serves metrics over mutual TLS.
    port: u16,
    application: Option<Updates<X509svidResponse>>,
    agent: Agent,
}

impl Kind {
    /// Starts it and takes the first key.
    pub(crate) async fn start(self, confinement: Confinement) -> Result<Subject, Failure> {
        let (site, mounted, mut needles) = (Site::new().await?, Pki::new("mounted"), Needles::default());
        let mut builder = site.shim().confined(confinement);
        for (name, value) in self.variables {
            builder = builder.env(*name, *value);
            if *name == "PROV_CERT" {
                needles.add(PRESENTED, &mount(&site, &site.pki, value)?)?;
            }
        }
        if matches!(self.source, Source::Files | Source::Names) {
            mount(&site, &mounted, "etc/certs")?;
        }
        let agent = site.workload.path().join("agent.sock");
        builder = builder.env("SPIFFE_ENDPOINT_SOCKET", workload_api::at(&agent));
        let agent = Agent::start(&agent, told(&site, &mounted)?)?;
        let port = port::unshared().or_fail("find a port")?;
        if self.scraped {
            builder = builder
                .env("SDS_SHIM_ADMIN_TLS", format!("127.0.0.1:{port}"))
                .env("SDS_SHIM_ADMIN_TLS_CLIENTS", "spiffe://cluster.local/*");
        }
        let socket = workload_api::socket(&site);
        if self.shared {
            builder = builder
                .env("SDS_SHIM_WORKLOAD_API", workload_api::at(&socket))
                .env("SDS_SHIM_WORKLOAD_API_UIDS", nix::unistd::geteuid().to_string());
        }
        let mut shim = Logged(builder.start()?);
        let stream = shim.connect().await?.stream();
        stream.send(sds::request(&[self.name()]));
        let mut subject =
            Subject { kind: self, site, shim, needles, live: 0, mounted, stream, port, application: None, agent };
        subject.take(0).await?;
        if self.shared {
            subject.application = Some(WorkloadApi::wait_for(&socket).await?.svid().await?.1);
        }
        Ok(subject)
    }

    /// The resource that it is served as.
    fn name(self) -> &'static str {
        match self.source {
            Source::Names => "file-cert:etc/certs/cert-chain.pem~etc/certs/key.pem",
            Source::Ca | Source::Files | Source::Spiffe => "default",
        }
    }
}

impl Subject {
    /// Has another key made, or mounts one; it is taken with [`Subject::finish`].
    pub(crate) fn begin(&self) -> testkit::Result {
        match self.kind.source {
            Source::Ca => self.shim.signal(Signal::SIGUSR1),
            Source::Files | Source::Names => mount(&self.site, &self.mounted, "etc/certs").map(drop),
            Source::Spiffe => {
                self.agent.tell(told(&self.site, &self.mounted)?);
                Ok(())
            }
        }
    }

    /// Takes the key that is served next.
    pub(crate) async fn finish(&mut self) -> testkit::Result {
        self.take(self.live + 1).await
    }

    /// Rotates so many times, until the process sleeps.
    pub(crate) async fn rotate(&mut self, rotations: usize) -> testkit::Result {
        for _ in 0..rotations {
            self.begin()?;
            self.finish().await?;
        }
        // The last acknowledgement is taken.
        self.stream.expect_silence(QUIET).await
    }

    /// Crashes it, and takes from its successor the key that was served before.
    pub(crate) async fn crash(&mut self) -> testkit::Result {
        let mark = self.shim.log().mark();
        self.shim.expect_crashes();
        confined::crash(self.shim.pid())?;
        self.shim.wait_for_log_after(mark, "still serving the certificate from before the crash").await?;
        self.stream = self.shim.connect().await?.stream();
        self.stream.send(sds::request(&[self.kind.name()]));
        self.take(self.live).await?;
        self.stream.expect_silence(QUIET).await
    }

    async fn take(&mut self, key: usize) -> testkit::Result {
        // An RSA key of 4,096 bits takes seconds, and many on a busy machine.
        let answer = self.stream.recv_within(4 * PATIENCE).await?;
        self.needles.add(key, &sds::secrets(&answer)?.remove(0).key_pem)?;
        self.stream.send(sds::ack(&answer, &[self.kind.name()]));
        self.live = key;
        if let Some(application) = &mut self.application {
            application.svid().await?;
        }
        if self.kind.scraped { self.scrape().await } else { Ok(()) }
    }

    async fn scrape(&self) -> testkit::Result {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.or_fail("connect")?;
        let scraper = self.site.pki.issue(&Leaf::workload("spiffe://cluster.local/scraper", PATIENCE * 10));
        let stream = tls::connect(stream, &self.site.pki.root_pem(), Some(&scraper)).await?;
        let answer = http::get(stream, "localhost", "/metrics").await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Ok(())
    }

    /// What root finds in its memory now.
    pub(crate) fn search(&self) -> Result<Search, Failure> {
        search(self.shim.pid(), &self.needles)
    }
}

/// What root finds in the memory of a process.
pub(crate) struct Search {
    /// Windows found, by key.
    pub(crate) found: HashMap<usize, usize>,
    pub(crate) readable: usize,
    pub(crate) refused: usize,
}

/// Reads all of it, and looks for all keys.
pub(crate) fn search(pid: u32, needles: &Needles) -> Result<Search, Failure> {
    let memory = residency::memory(pid)?;
    let mut search = Search { found: HashMap::new(), readable: 0, refused: memory.refused };
    for range in memory.ranges() {
        search.readable += range.bytes.len();
        needles.count(&range.bytes, &mut search.found);
    }
    Ok(search)
}

/// A new key with its certificate, as an agent tells it.
fn told(site: &Site, pki: &Pki) -> Result<Answer, Failure> {
    let id = site.workload.spiffe_id();
    let issued = pki.issue(&Leaf::workload(&id, Duration::from_secs(3600)));
    Ok(Answer::Message(agent::message(agent::svid(&issued, &id, &pki.root_pem())?)))
}

/// Lays a new key with its certificate into a directory of the workload, as kubelet does it. Returns the key.
fn mount(site: &Site, pki: &Pki, directory: &str) -> Result<String, Failure> {
    let leaf = Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600));
    let (Issued { chain_pem, key_pem }, roots) = (pki.issue(&leaf), pki.root_pem());
    let files = [("cert-chain.pem", chain_pem.as_str()), ("key.pem", &key_pem), ("root-cert.pem", &roots)];
    let volume = ProjectedVolume::create(&site.workload.path().join(directory), &files);
    let volume = volume.or_fail("write the mount")?;
    own(volume.dir(), UID, UID).or_fail("give it to the user of the shim")?;
    Ok(key_pem)
}
