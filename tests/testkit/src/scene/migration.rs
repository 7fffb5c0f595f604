//! The mesh moves from mounted secrets under an old root to SDS under a new one, one workload after the other, and
//! back, while requests flow from everybody to everybody and every Envoy runs on.

use std::{
    collections::BTreeSet,
    fmt::{Display, Formatter, Result as FmtResult},
    fs,
    path::Path,
    time::Duration,
};

use development_ca::{Fault, Issued, Leaf, Pki, ProjectedVolume};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::{
    mesh::{Mesh, NAMESPACES, Sidecar, TokenSource, home},
    narrator::Narrator,
    probe::{Introduction, Outcome, counter, probe},
    rotation::Handshakes,
    traffic::{Tally, Traffic},
    world::World,
};
use crate::{Failure, OrFail, PATIENCE, POLL, shim::ShimBuilder, workload::spiffe_id};

/// Name of the CA's root.
pub(super) const NEW: &str = "new";
/// Lifetime of all certificates: none is renewed by itself here.
pub(super) const LIFE: Duration = Duration::from_secs(3600);
/// Name of the root above the mounted certificates.
const OLD: &str = "old";

const SOURCE: &str = "SDS_SHIM_SOURCE";
const EXTRA_ROOTS: &str = "SDS_SHIM_EXTRA_ROOTS";
/// Where key and certificate are mounted, with Istio's names.
const MOUNT: &str = "./etc/certs";
/// Where the platform mounts the trust anchors of both sides, as from a ConfigMap.
const TRUST: &str = "./etc/trust";
const TRUST_FILE: &str = "roots.pem";
/// Requests that each client must have sent to each server between two steps.
const REQUESTS: u64 = 10;

/// Plays it; what it leaves is the mesh as it was at the start.
pub(super) async fn show(world: &World, directory: &Path, narrator: &mut Narrator) -> Result<Mesh, Failure> {
    let old = Pki::new(OLD);
    for namespace in NAMESPACES {
        for account in ["sleep", "httpbin"] {
            mount(&old, &home(directory, namespace, account), &spiffe_id(namespace, account))?;
        }
    }
    let edit = |shim: ShimBuilder| {
        let shim = shim.env("FILE_MOUNTED_CERTS", "true").env(SOURCE, Source::Files.setting());
        // Otherwise a root that is dropped stays until the certificates of its time have ended.
        shim.env("SDS_SHIM_ROOT_GRACE", "0s")
    };
    let mesh = Mesh::start(world, directory, TokenSource::File, edit).await?;
    let (start, handshakes) = (Instant::now(), Handshakes::count(&mesh).await?);
    let traffic = Traffic::start(&mesh).await?;
    let serves = [Serves { source: Source::Files, root: OLD }; 4];
    let mut migration =
        Migration { world, old, mesh, traffic, serves, trusts: &[OLD], told: Tally::default(), narrator };
    let played = migration.play().await;
    let Migration { mesh, traffic, narrator, .. } = migration;
    let tally = traffic.stop().await;
    let explain = |failure| mesh.sidecars().fold(failure, |failure, sidecar| sidecar.explain(failure));
    played.map_err(explain)?;
    tally.none_failed().map_err(explain)?;
    let handshakes = Handshakes::count(&mesh).await?.since(&handshakes);
    if handshakes.resumed > 0 || handshakes.all < tally.answered {
        let what = format!("not every one of {} requests made a full handshake: {handshakes:?}", tally.answered);
        return Err(explain(Failure::new(what)));
    }
    narrator.say(
        "a certificate of the old root was refused by every server once that root was gone; one of the new, likewise",
    );
    narrator.say(format!(
        "{} requests in {:.1} s with {} full mutual-TLS handshakes, all the way and back: {} failures",
        tally.answered,
        start.elapsed().as_secs_f64(),
        handshakes.all,
        tally.failures.len()
    ));
    Ok(mesh)
}

/// The scene between two steps.
struct Migration<'a> {
    world: &'a World,
    old: Pki,
    mesh: Mesh,
    traffic: Traffic,
    /// What each workload is to serve, in the order of the mesh.
    serves: [Serves; 4],
    /// The roots that all of them are to trust.
    trusts: &'static [&'static str],
    /// The requests that have been told.
    told: Tally,
    narrator: &'a mut Narrator,
}

impl Migration<'_> {
    async fn play(&mut self) -> crate::Result {
        let names: Vec<_> = self.mesh.sidecars().map(Sidecar::name).collect();
        self.say_row(["step", &names[0], &names[1], &names[2], &names[3], "all trust", "requests", "failures"]);
        self.step("all on mounted secrets").await?;
        self.forth(&names).await?;
        self.back(&names).await
    }

    async fn forth(&mut self, names: &[String]) -> crate::Result {
        self.trust(&[OLD, NEW])?;
        for sidecar in self.mesh.sidecars_mut() {
            sidecar.replace_shim(|shim| shim.env(EXTRA_ROOTS, format!("{TRUST}/{TRUST_FILE}"))).await?;
        }
        self.step(&format!("all: {EXTRA_ROOTS}=roots.pem, with both")).await?;
        for (at, name) in names.iter().enumerate() {
            // Once it is shown that the files carry a workload for as long as the CA does not answer.
            if at == 0 {
                self.world.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down for the demo".to_owned())));
                self.switch(at, Source::Auto).await?;
                self.step(&format!("{name}: {SOURCE}=auto, the CA down")).await?;
                self.world.ca.set_fault(None);
                self.sidecar(at)?.shim.signal(Signal::SIGUSR1)?;
            } else {
                self.switch(at, Source::Auto).await?;
            }
            self.serves[at] = Serves { source: Source::Ca, root: NEW };
            self.step(&format!("{name}: {SOURCE}=auto")).await?;
            self.switch(at, Source::Ca).await?;
            self.step(&format!("{name}: {SOURCE}=ca")).await?;
        }
        self.trust(&[NEW])?;
        self.step("all: the old root goes from roots.pem").await?;
        let stranger = self.old.issue(&Leaf::workload(&spiffe_id("foo", "sleep"), LIFE));
        self.refuse(&stranger, &self.world.ca.root_pem()).await?;
        for sidecar in self.mesh.sidecars() {
            let mount = sidecar.workload.path().join(MOUNT);
            fs::remove_dir_all(&mount).or_fail(format!("remove {}", mount.display()))?;
        }
        self.step("all: the mounts are removed").await
    }

    async fn back(&mut self, names: &[String]) -> crate::Result {
        for sidecar in self.mesh.sidecars() {
            mount(&self.old, sidecar.workload.path(), &sidecar.workload.spiffe_id())?;
        }
        self.trust(&[OLD, NEW])?;
        self.step("all: mounts are back, both roots in roots.pem").await?;
        for (at, name) in names.iter().enumerate() {
            self.switch(at, Source::Files).await?;
            self.serves[at] = Serves { source: Source::Files, root: OLD };
            self.step(&format!("{name}: {SOURCE}=files")).await?;
        }
        self.trust(&[OLD])?;
        self.step("all: the new root goes from roots.pem").await?;
        let stranger = self.world.pki.issue(&Leaf::workload(&spiffe_id("foo", "sleep"), LIFE));
        self.refuse(&stranger, &self.old.root_pem()).await
    }

    fn sidecar(&mut self, at: usize) -> Result<&mut Sidecar, Failure> {
        self.mesh.sidecars_mut().nth(at).ok_or_else(|| Failure::new(format!("there is no workload {at}")))
    }

    async fn switch(&mut self, at: usize, source: Source) -> crate::Result {
        self.sidecar(at)?.replace_shim(|shim| shim.env(SOURCE, source.setting())).await
    }

    /// Writes the file with the trust anchors of both sides for everybody.
    fn trust(&mut self, roots: &'static [&'static str]) -> crate::Result {
        let pem = |root: &&str| if *root == OLD { self.old.root_pem() } else { self.world.pki.root_pem() };
        let pem: String = roots.iter().map(pem).collect();
        for sidecar in self.mesh.sidecars() {
            let volume = ProjectedVolume::create(&sidecar.workload.path().join(TRUST), &[(TRUST_FILE, &pem)]);
            volume.or_fail(format!("write the trust anchors of {}", sidecar.name()))?;
        }
        self.trusts = roots;
        Ok(())
    }

    /// Waits until all is as it is to be, lets requests flow, and tells what became of all since the last step.
    async fn step(&mut self, what: &str) -> crate::Result {
        for (sidecar, serves) in self.mesh.sidecars_mut().zip(&self.serves) {
            wait_for(sidecar, serves, self.trusts).await.map_err(|failure| sidecar.explain(failure.context(what)))?;
        }
        self.let_requests_flow().await?;
        let mut tally = Tally::default();
        self.traffic.so_far().for_each(|pair| tally.add(pair));
        let (requests, failures) =
            (tally.answered - self.told.answered, tally.failures.len() - self.told.failures.len());
        let serves = self.serves.map(|serves| serves.to_string());
        let [one, two, three, four] = serves.each_ref().map(String::as_str);
        let (requests, failures) = (requests.to_string(), failures.to_string());
        self.say_row([what, one, two, three, four, &self.trusts.join(" and "), &requests, &failures]);
        self.told = tally;
        self.told.none_failed()
    }

    /// Until each client has sent each server some more, or one of them has failed.
    async fn let_requests_flow(&self) -> crate::Result {
        let (before, deadline): (Vec<_>, _) = (self.traffic.so_far().collect(), Instant::now() + PATIENCE);
        loop {
            let mut pairs = self.traffic.so_far().zip(&before);
            if pairs.all(|(now, before)| !now.failures.is_empty() || now.answered >= before.answered + REQUESTS) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("no {REQUESTS} requests of each pair within {PATIENCE:?}")));
            }
            sleep(POLL).await;
        }
    }

    /// No server lets in who presents a certificate of the root that is trusted no more.
    async fn refuse(&self, stranger: &Issued, root_pem: &str) -> crate::Result {
        const REASON: &str = "fail_verify_error";
        for server in &self.mesh.servers {
            let before = counter(server.envoy.admin(), REASON).await?;
            let outcome = probe(server, root_pem, Introduction::Tls(Some(stranger))).await?;
            let counted = counter(server.envoy.admin(), REASON).await? - before;
            if !matches!(outcome, Outcome::Refused(_)) || counted != 1 {
                let what = format!("{}: a certificate of a root that is gone: {outcome:?}", server.name());
                return Err(server.explain(Failure::new(what).remark(format!("{REASON} +{counted}"))));
            }
        }
        Ok(())
    }

    fn say_row(&mut self, [step, one, two, three, four, trust, requests, failures]: [&str; 8]) {
        self.narrator.say(format!(
            "{step:<46} | {one:<9} | {two:<9} | {three:<11} | {four:<11} | {trust:<11} | {requests:>8} | {failures:>8}"
        ));
    }
}

/// The values of `SDS_SHIM_SOURCE`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Files,
    Auto,
    Ca,
}

impl Source {
    fn setting(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Auto => "auto",
            Self::Ca => "ca",
        }
    }
}

/// What a workload serves: a certificate from there, under this root.
#[derive(Clone, Copy)]
struct Serves {
    source: Source,
    root: &'static str,
}

impl Display for Serves {
    fn fmt(&self, out: &mut Formatter<'_>) -> FmtResult {
        write!(out, "{}/{}", self.source.setting(), self.root)
    }
}

impl Tally {
    fn none_failed(&self) -> crate::Result {
        match self.failures.first() {
            Some(first) => {
                let (failed, answered) = (self.failures.len(), self.answered);
                Err(Failure::new(format!(
                    "{failed} requests failed beside {answered} answered ones; the first: {first}"
                )))
            }
            None => Ok(()),
        }
    }
}

/// Issues a certificate under the old root into the workload's mount.
fn mount(old: &Pki, home: &Path, spiffe_id: &str) -> crate::Result {
    let Issued { chain_pem, key_pem } = old.issue(&Leaf::workload(spiffe_id, LIFE));
    let roots = old.root_pem();
    let files = [("cert-chain.pem", chain_pem.as_str()), ("key.pem", &key_pem), ("root-cert.pem", &roots)];
    ProjectedVolume::create(&home.join(MOUNT), &files).or_fail(format!("mount the secret of {spiffe_id}"))?;
    Ok(())
}

/// Waits until a shim serves this, and its Envoy has taken it from this very process and uses it in all its contexts.
async fn wait_for(sidecar: &mut Sidecar, serves: &Serves, trusts: &[&str]) -> crate::Result {
    let expected = (serves.to_string(), trusts.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look(sidecar).await;
        if seen.as_ref().is_ok_and(|seen| *seen == expected) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let name = sidecar.name();
            return Err(Failure::new(format!("{name} did not come to {expected:?}, but to {seen:?}")));
        }
        sleep(POLL).await;
    }
}

/// What is served, as [`Serves`] writes it, and which roots are trusted: as the shim tells it, once its Envoy shows it
/// too.
async fn look(sidecar: &mut Sidecar) -> Result<(String, BTreeSet<String>), Failure> {
    let status = sidecar.shim.admin("/status").await?.text();
    let status: Value = serde_json::from_str(&status).or_fail("read the status")?;
    let accepted = |name: &str| {
        let streams = status["sds"]["streams"].as_array().into_iter().flatten();
        let mut resources = streams.flat_map(|stream| stream["resources"].as_array()).flatten();
        resources.any(|resource| resource["name"] == name && resource["state"] == "accepted")
    };
    if !accepted("default") || !accepted("ROOTCA") {
        return Err(Failure::new(format!("Envoy has not accepted both secrets: {}", status["sds"])));
    }
    let certificates = |name: &str| {
        let resources = status["workloads"][0]["resources"].as_array().into_iter().flatten();
        let resource = resources.filter(|resource| resource["name"] == name);
        resource.flat_map(|resource| resource["certificates"].as_array()).flatten().cloned().collect::<Vec<_>>()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let serial = |certificate: &Value| text(&certificate["serial"]).trim_start_matches('0').to_owned();
    let (leaf, anchors) = (certificates("default"), certificates("ROOTCA"));
    let leaf = leaf.first().ok_or_else(|| Failure::new("no certificate is held"))?;
    let (used, trusted) = (sidecar.envoy.admin().certificates().await?, sidecar.envoy.admin().anchors().await?);
    if used.is_empty() || used.iter().any(|used| used.serial != serial(leaf)) {
        return Err(Failure::new(format!("Envoy uses {used:?}")));
    }
    if trusted != anchors.iter().map(serial).collect() {
        return Err(Failure::new(format!("Envoy trusts {trusted:?}")));
    }
    let name = |text: &Value| text.as_str().and_then(|name| name.rsplit("CN=").next()).unwrap_or_default().to_owned();
    let source = if text(&status["source"]).starts_with("the mounted files") { Source::Files } else { Source::Ca };
    let issuer = name(&leaf["issuer"]);
    let served = format!("{}/{}", source.setting(), issuer.trim_end_matches(" intermediate"));
    Ok((served, anchors.iter().map(|anchor| name(&anchor["subject"])).collect()))
}
