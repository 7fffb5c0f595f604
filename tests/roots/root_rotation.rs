//! A root rotation as operators do it, from the old root over both to the new one, under mutual-TLS traffic in which
//! every request is a full handshake: none may fail, and `ROOTCA` holds at each step what was promised.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use openssl::x509::X509;
use sds_shim::identity::unix_seconds;
use testkit::{
    Failure, OrFail, PATIENCE,
    development_ca::{CaOptions, DevelopmentCa, Fault, Outcome, Pki, TokenIssuer},
    scene::{Mesh, Sidecar, TokenSource, Traffic, World},
    scratch::Scratch,
    sds::{self, SdsStream, Secret},
    shim::ShimBuilder,
    tls,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tonic::Code;

/// What a `ROOTCA` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Roots {
    Old,
    Both,
    New,
    Other,
}

/// The two generations of the CA, and a mesh whose shims know both addresses. Processes end before their directory goes.
struct Rotation {
    mesh: Mesh,
    anchors: Vec<Anchors>,
    world: World,
    successor: DevelopmentCa,
    old: String,
    new: String,
    _scratch: Scratch,
}

impl Rotation {
    async fn start(edit: impl Fn(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let (old, new) = (Arc::new(Pki::new("old")), Arc::new(Pki::new("new")));
        let tokens = Arc::new(TokenIssuer::new());
        let start = |pki: &Arc<Pki>| DevelopmentCa::start(Arc::clone(pki), Arc::clone(&tokens), CaOptions::default());
        let successor = start(&new).await.or_fail("start the new CA")?;
        let ca = start(&old).await.or_fail("start the old CA")?;
        let addresses = [&ca, &successor].map(|ca| format!("localhost:{}", ca.address().port())).join(",");
        let (old_pem, new_pem) = (old.root_pem(), new.root_pem());
        let world = World { pki: old, tokens, ca, given: Default::default() };
        let edit = |shim: ShimBuilder| edit(shim.env("CA_ADDR", &addresses));
        let mut mesh = Mesh::start(&world, scratch.path(), TokenSource::File, edit).await?;
        let mut anchors = Vec::new();
        for sidecar in mesh.sidecars_mut() {
            anchors.push(Anchors::watch(sidecar, &old_pem, &new_pem).await?);
        }
        Ok(Self { mesh, anchors, world, successor, old: old_pem, new: new_pem, _scratch: scratch })
    }

    /// Waits until every `ROOTCA` holds `roots`; the times at which each of them did.
    async fn all_hold(&mut self, roots: Roots) -> Result<Vec<SystemTime>, Failure> {
        let mut times = Vec::new();
        for (anchors, sidecar) in self.anchors.iter_mut().zip(self.mesh.sidecars()) {
            times.push(anchors.wait_for(roots).await.map_err(|failure| sidecar.explain(failure))?);
        }
        Ok(times)
    }

    /// Each workload learns of the new root: in one namespace by its file, in the other by the CA's answer.
    async fn add_the_new_root(&mut self) -> testkit::Result {
        let both = format!("{}{}", self.old, self.new);
        self.world.ca.set_extra_roots(vec![self.new.clone()]);
        for sidecar in self.mesh.sidecars() {
            match sidecar.workload.namespace() {
                "foo" => write_root(sidecar, &both)?,
                _ => sidecar.shim.signal(Signal::SIGUSR1)?,
            }
        }
        self.all_hold(Roots::Both).await?;
        // The new CA's own certificate is verified with this file, too.
        self.mesh.sidecars().try_for_each(|sidecar| write_root(sidecar, &both))
    }

    /// The old CA is gone; one workload after the other gets its certificate from the new one.
    async fn issue_under_the_new_root(&mut self) -> testkit::Result {
        self.world.ca.set_fault(Some(Fault::Status(Code::Unavailable, "gone".to_owned())));
        for sidecar in self.mesh.sidecars_mut() {
            sidecar.shim.signal(Signal::SIGUSR1)?;
            let (admin, successor) = (sidecar.envoy.admin().clone(), &self.successor);
            let renewed = || async {
                let (used, issued) = (admin.certificates().await?, serials(successor));
                Ok(!used.is_empty() && used.iter().all(|certificate| issued.contains(&certificate.serial)))
            };
            let renewed = sidecar.envoy.wait_until("a certificate of the new CA", renewed).await;
            renewed.map_err(|failure| sidecar.explain(failure))?;
        }
        Ok(())
    }

    /// No source has the old root any more. For each workload when it was gone, and NotAfter of the certificate that it
    /// held before.
    async fn drop_the_old_root(&mut self) -> Result<Vec<(SystemTime, SystemTime)>, Failure> {
        let ends = self.ends().await?;
        self.mesh.sidecars().try_for_each(|sidecar| write_root(sidecar, &self.new))?;
        Ok(self.all_hold(Roots::New).await?.into_iter().zip(ends).collect())
    }

    /// NotAfter of the certificate that each workload holds now.
    async fn ends(&mut self) -> Result<Vec<SystemTime>, Failure> {
        let mut ends = Vec::new();
        for sidecar in self.mesh.sidecars_mut() {
            let answer = sidecar.shim.connect().await?.fetch(sds::request(&["default"])).await;
            let secrets = sds::secrets(&answer.or_fail("fetch the certificate")?)?;
            ends.push(end(secrets.first().ok_or_else(|| Failure::new("no certificate was fetched"))?)?);
        }
        Ok(ends)
    }

    /// Waits until each Envoy verifies with the new root alone.
    async fn envoys_hold_the_new_root(&mut self) -> testkit::Result {
        let serial = root_serial(&self.new)?;
        for sidecar in self.mesh.sidecars_mut() {
            let admin = sidecar.envoy.admin().clone();
            let alone = || async { Ok(admin.anchors().await? == BTreeSet::from([serial.clone()])) };
            let alone = sidecar.envoy.wait_until("the new root alone", alone).await;
            alone.map_err(|failure| sidecar.explain(failure))?;
        }
        Ok(())
    }

    /// Nothing went wrong all the way, in the eyes of those who sent requests and of the Envoys that verified.
    async fn conclude(self, traffic: Traffic, start: Instant, what: &str) -> testkit::Result {
        let tally = traffic.stop().await;
        let span = start.elapsed();
        let explain = |failure| self.mesh.sidecars().fold(failure, |failure, sidecar| sidecar.explain(failure));
        if let Some(first) = tally.failures.first() {
            let (failed, answered) = (tally.failures.len(), tally.answered);
            let what = format!("{failed} requests failed beside {answered} answered ones; the first: {first}");
            return Err(self.world.explain(explain(Failure::new(what))));
        }
        let mut handshakes = 0;
        for sidecar in self.mesh.sidecars() {
            for (name, value) in sidecar.envoy.admin().stats(".ssl.").await? {
                let counts = |what: &str| name.ends_with(what);
                if counts(".ssl.handshake") && name.starts_with("listener.") {
                    handshakes += value;
                }
                let failed = name.contains(".ssl.fail_verify_") || counts(".ssl.connection_error");
                if value > 0 && (failed || counts(".ssl.session_reused")) {
                    return Err(explain(Failure::new(format!("{}: {name} is {value}", sidecar.name()))));
                }
            }
        }
        assert!(tally.answered > 0 && handshakes >= tally.answered, "{handshakes} handshakes, {}", tally.answered);
        for anchors in &self.anchors {
            assert_eq!(anchors.history(), [Roots::Old, Roots::Both, Roots::New], "{}", anchors.name);
        }
        println!("{what}: {} requests in {span:.1?}, {handshakes} full handshakes, 0 failures", tally.answered);
        drop(self.anchors);
        self.mesh.stop().await
    }
}

/// What one sidecar's `ROOTCA` has held so far, each with the time of its arrival. As Envoy does, it accepts it all.
struct Anchors {
    name: String,
    pushes: watch::Receiver<Vec<(Roots, SystemTime)>>,
    /// Ends with this.
    _task: JoinSet<()>,
}

impl Anchors {
    async fn watch(sidecar: &mut Sidecar, old: &str, new: &str) -> Result<Self, Failure> {
        let stream = sidecar.shim.connect().await?.stream();
        stream.send(sds::request(&["ROOTCA"]));
        let (sender, pushes) = watch::channel(Vec::new());
        let serials = (root_serial(old)?, root_serial(new)?);
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(failure) = follow(stream, serials, &sender).await {
                eprintln!("{failure}");
            }
        });
        Ok(Self { name: sidecar.name(), pushes, _task: task })
    }

    async fn wait_for(&mut self, roots: Roots) -> Result<SystemTime, Failure> {
        let arrived = |pushes: &Vec<(Roots, SystemTime)>| pushes.last().is_some_and(|(last, _)| *last == roots);
        let pushes = timeout(PATIENCE, self.pushes.wait_for(arrived)).await;
        let time = pushes.ok().and_then(Result::ok).and_then(|pushes| pushes.last().map(|(_, time)| *time));
        time.ok_or_else(|| Failure::new(format!("{} did not get {roots:?}, but {:?}", self.name, self.history())))
    }

    fn history(&self) -> Vec<Roots> {
        self.pushes.borrow().iter().map(|(roots, _)| *roots).collect()
    }
}

async fn follow(
    mut stream: SdsStream,
    (old, new): (String, String),
    pushes: &watch::Sender<Vec<(Roots, SystemTime)>>,
) -> testkit::Result {
    loop {
        let answer = stream.recv_within(PATIENCE * 10).await?;
        stream.send(sds::ack(&answer, &["ROOTCA"]));
        let arrived = SystemTime::now();
        let secrets = sds::secrets(&answer)?;
        let anchors = secrets.first().ok_or_else(|| Failure::new("an answer without a secret"))?.trust_anchors()?;
        let held: BTreeSet<_> = anchors.iter().map(tls::serial).collect::<Result<_, _>>()?;
        let roots = match (held.contains(&old), held.contains(&new), held.len()) {
            (true, true, 2) => Roots::Both,
            (true, false, 1) => Roots::Old,
            (false, true, 1) => Roots::New,
            _ => Roots::Other,
        };
        pushes.send_modify(|pushes| pushes.push((roots, arrived)));
    }
}

fn write_root(sidecar: &Sidecar, pem: &str) -> testkit::Result {
    sidecar.workload.write_root(pem).or_fail(format!("write the root of {}", sidecar.name()))
}

fn root_serial(pem: &str) -> Result<String, Failure> {
    tls::serial(&X509::from_pem(pem.as_bytes()).or_fail("read a root")?)
}

/// What a CA has issued.
fn serials(ca: &DevelopmentCa) -> Vec<String> {
    let calls = ca.calls().into_iter();
    let issued = calls.filter_map(|call| match call.outcome {
        Outcome::Issued { serial, .. } => Some(serial.to_ascii_lowercase().trim_start_matches('0').to_owned()),
        _ => None,
    });
    issued.collect()
}

fn end(certificate: &Secret) -> Result<SystemTime, Failure> {
    let leaf = certificate.leaf()?;
    let seconds = unix_seconds(leaf.not_after()).or_fail("read NotAfter")?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()))
}

/// Certificates live long and are renewed by hand alone, so that it is known who issues how many.
#[tokio::test]
async fn a_rotation_by_hand_costs_no_handshake_and_few_csrs() -> testkit::Result {
    let edit = |shim: ShimBuilder| shim.env("SECRET_TTL", "1h").env("SDS_SHIM_ROOT_GRACE", "1s");
    let mut rotation = Rotation::start(edit).await?;
    let start = Instant::now();
    let traffic = Traffic::start(&rotation.mesh).await?;
    rotation.all_hold(Roots::Old).await?;
    rotation.add_the_new_root().await?;
    assert_eq!(serials(&rotation.world.ca).len(), 4 + 2, "a root in a file takes no CSR");
    assert_eq!(rotation.successor.connections(), 0, "nobody has asked the new CA yet");
    rotation.issue_under_the_new_root().await?;
    rotation.all_hold(Roots::Both).await?;
    for (gone, end) in rotation.drop_the_old_root().await? {
        assert!(gone < end, "the grace was set to be shorter than a certificate's life");
    }
    rotation.envoys_hold_the_new_root().await?;
    assert_eq!((serials(&rotation.world.ca).len(), serials(&rotation.successor).len()), (4 + 2, 4));
    rotation.conclude(traffic, start, "by hand, with a grace of 1 s").await
}

/// Certificates live for seconds and also renew by themselves; the old root stays until those under it have ended.
#[tokio::test]
async fn a_rotation_of_short_certificates_keeps_the_old_root_until_their_end() -> testkit::Result {
    let mut rotation = Rotation::start(|shim| shim.env("SECRET_TTL", "10s")).await?;
    let start = Instant::now();
    let traffic = Traffic::start(&rotation.mesh).await?;
    rotation.all_hold(Roots::Old).await?;
    rotation.add_the_new_root().await?;
    rotation.issue_under_the_new_root().await?;
    rotation.all_hold(Roots::Both).await?;
    for (gone, end) in rotation.drop_the_old_root().await? {
        assert!(gone >= end, "the old root was gone while a certificate of its time was still valid");
    }
    rotation.envoys_hold_the_new_root().await?;
    rotation.conclude(traffic, start, "with certificates of 10 s").await
}
