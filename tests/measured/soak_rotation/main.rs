//! Certificates of 10 s rotate in four sidecars with real Envoys under mutual-TLS load, while the CA, the way to it, the
//! tokens and the shims themselves fail in random ways, for twenty seconds or as long as `SOAK_SECONDS` says
//! (`make soak`). No request fails, because there is always a valid certificate, and at the end no shim has grown.

mod footprint;
mod kind;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use footprint::Footprint;
use kind::{KINDS, Kind};
use nix::sys::signal::Signal;
use openssl::asn1::Asn1Time;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{CaOptions, DevelopmentCa, Outcome, TokenRequest},
    door::Door,
    fixture::Open,
    rng::Rng,
    scene::{Mesh, Sidecar, TokenSource, Traffic, World},
    scratch::Scratch,
    shim::{Shim, ShimBuilder},
};
use tokio::time::{Instant, sleep};

/// Without `SOAK_SECONDS`.
const SHORT: Duration = Duration::from_secs(20);
const LIFE: Duration = Duration::from_secs(10);
/// What each shim logs once it holds a new certificate.
const ISSUED: &str = "certificate issued";
/// And then, before it waits for the next.
const ARENA: &str = "arena_used=";
/// What was free of it at its peak.
const UNTOUCHED: &str = "arena_least_room=";

struct Soak {
    // Fields drop in this order: processes end before their directory goes.
    mesh: Mesh,
    door: Door,
    world: World,
    _scratch: Scratch,
    rng: Rng,
    troubles: BTreeMap<Kind, usize>,
    /// Calls and certificates of CAs that have ended.
    calls: usize,
    issued: usize,
    /// The longest time from the start of a trouble until every shim had a new certificate.
    longest: Duration,
}

fn through(door: &Door, shim: ShimBuilder) -> ShimBuilder {
    shim.env("CA_ADDR", door.address().to_string())
        .env("ISTIOD_SAN", "istiod.istio-system.svc")
        .env("SDS_SHIM_CA_TIMEOUT", "1s")
        .env("SDS_SHIM_CA_ANSWER_TIMEOUT", "1s")
        .env("SDS_SHIM_LOG", "debug")
        // What is left then is longer than any trouble here with the wait after it.
        .env("SECRET_GRACE_PERIOD_RATIO", "0.75")
}

impl Soak {
    async fn new() -> Result<Self, Failure> {
        let rng = Rng::seeded();
        let world = World::start(LIFE).await?;
        let door = Door::to(world.ca.address()).await?;
        let scratch = Scratch::new("soak")?;
        let mesh = Mesh::start(&world, scratch.path(), TokenSource::File, |shim| through(&door, shim)).await?;
        Ok(Self {
            mesh,
            door,
            world,
            _scratch: scratch,
            rng,
            troubles: BTreeMap::new(),
            calls: 0,
            issued: 0,
            longest: Duration::ZERO,
        })
    }

    fn some_milliseconds(&mut self, range: std::ops::Range<usize>) -> Duration {
        Duration::from_millis(self.rng.within(range) as u64)
    }

    fn sidecar(&mut self) -> &mut Sidecar {
        let index = self.rng.within(0..4);
        self.mesh.sidecars_mut().nth(index).expect("there are four")
    }

    /// One trouble from its start until everything is as it should be again.
    async fn trouble(&mut self, kind: Kind) -> testkit::Result {
        *self.troubles.entry(kind).or_default() += 1;
        let begin = Instant::now();
        let marks = self.marks();
        let while_it_lasts = self.some_milliseconds(200..1000);
        match kind {
            Kind::Reconnects => return self.reconnect(20).await,
            Kind::Killed => return self.kill().await,
            Kind::ExpiredToken | Kind::NoToken => {
                let issuer = Arc::clone(&self.world.tokens);
                let workload = &mut self.sidecar().workload;
                let good = TokenRequest::new(workload.namespace(), workload.service_account());
                let expired = TokenRequest { not_before: -7200, lifetime: -3600, ..good.clone() };
                match kind {
                    Kind::NoToken => workload.remove_token().or_fail("remove the token")?,
                    _ => workload.write_token(&issuer.mint(&expired)).or_fail("write the token")?,
                }
                let name = workload.name();
                self.renew_all()?;
                sleep(while_it_lasts).await;
                let mut sidecars = self.mesh.sidecars_mut();
                let sidecar = sidecars.find(|sidecar| sidecar.name() == name).expect("it is still there");
                sidecar.workload.write_token(&issuer.mint(&good)).or_fail("write the token")?;
            }
            Kind::Stopped => {
                self.renew_all()?;
                let sidecar = self.sidecar();
                sidecar.shim.signal(Signal::SIGSTOP)?;
                sleep(while_it_lasts).await;
                sidecar.shim.signal(Signal::SIGCONT)?;
            }
            Kind::Refused | Kind::Lost | Kind::CaRestart => {
                match kind {
                    Kind::Lost => self.door.lead_nowhere().await?,
                    _ => self.door.close().await,
                }
                self.renew_all()?;
                if kind == Kind::CaRestart {
                    self.restart_ca().await?;
                }
                self.reconnect(3).await?;
                sleep(while_it_lasts).await;
                self.door.lead_to(self.world.ca.address()).await?;
            }
            _ => {
                let fault = kind.fault(&mut self.rng);
                self.world.ca.set_fault(fault);
                // So that what happens at connecting happens.
                self.world.ca.disconnect();
                self.renew_all()?;
                self.reconnect(3).await?;
                sleep(while_it_lasts).await;
                self.world.ca.set_fault(None);
            }
        }
        self.renewed_since(&marks).await?;
        self.longest = self.longest.max(begin.elapsed());
        Ok(())
    }

    fn marks(&self) -> Vec<usize> {
        self.mesh.sidecars().map(|sidecar| sidecar.shim.log().mark()).collect()
    }

    /// Returns once every shim has a new certificate.
    async fn renewed_since(&self, marks: &[usize]) -> testkit::Result {
        for (sidecar, mark) in self.mesh.sidecars().zip(marks) {
            sidecar.shim.wait_for_log_after(*mark, ISSUED).await?;
            sidecar.shim.wait_for_log_after(*mark, ARENA).await?;
        }
        Ok(())
    }

    fn renew_all(&self) -> testkit::Result {
        self.mesh.sidecars().try_for_each(|sidecar| sidecar.shim.signal(Signal::SIGUSR1))
    }

    async fn restart_ca(&mut self) -> testkit::Result {
        let World { pki, tokens, .. } = &self.world;
        let next = DevelopmentCa::start(Arc::clone(pki), Arc::clone(tokens), CaOptions::default()).await;
        let next = next.or_fail("start the CA again")?;
        next.set_ttl(Some(LIFE));
        (self.calls, self.issued) = self.totals();
        std::mem::replace(&mut self.world.ca, next).stop().await;
        Ok(())
    }

    fn totals(&self) -> (usize, usize) {
        let calls = self.world.ca.calls();
        let issued = calls.iter().filter(|call| matches!(call.outcome, Outcome::Issued { .. })).count();
        (self.calls + calls.len(), self.issued + issued)
    }

    async fn kill(&mut self) -> testkit::Result {
        let pause = self.some_milliseconds(0..500);
        let ca = self.world.ca.address();
        // The first one lives as long as the soak.
        let index = self.rng.within(1..4);
        let door = &self.door;
        let sidecar = self.mesh.sidecars_mut().nth(index).expect("there are four");
        sidecar.shim.kill().await?;
        sleep(pause).await;
        sidecar.shim = through(door, Shim::for_workload(&sidecar.workload, ca)).start()?;
        sidecar.shim.wait_for_log(ISSUED).await?;
        // Envoy comes back in its own time, which is less than the rest of its certificate's life.
        let Sidecar { shim, envoy, .. } = sidecar;
        let admin = envoy.admin().clone();
        let logged =
            |serial: &str| shim.log().lines().iter().any(|line| line.contains(ISSUED) && line.contains(serial));
        let taken = || async { Ok(admin.certificates().await?.iter().any(|held| logged(&held.serial))) };
        envoy.wait_until("the new shim's certificate", taken).await.map_err(|failure| shim.explain(failure))
    }

    /// Whoever comes gets a certificate that is valid.
    async fn reconnect(&mut self, count: usize) -> testkit::Result {
        let sidecar = self.sidecar();
        for _ in 0..count {
            let client = sidecar.shim.connect().await?;
            for name in ["default", "ROOTCA"] {
                let secret = Open::new(&client, name).next(&sidecar.shim).await?;
                let now = Asn1Time::days_from_now(0).or_fail("read the clock")?;
                if name == "default" && *secret.leaf()?.not_after() <= now {
                    return Err(sidecar.shim.failure("a new stream got a certificate that has expired"));
                }
            }
        }
        Ok(())
    }

    /// Every shim is as small as at the beginning, once the clients of the soak are gone.
    async fn expect_flat(&self, before: &[Footprint]) -> testkit::Result {
        let deadline = Instant::now() + PATIENCE;
        for (sidecar, before) in self.mesh.sidecars().zip(before) {
            let after = loop {
                let after = Footprint::of(&sidecar.shim)?;
                if after.is_flat_since(before) {
                    break after;
                }
                if Instant::now() > deadline {
                    let what = format!("{} has grown: {before} at first, {after} at the end", sidecar.name());
                    return Err(sidecar.shim.failure(what));
                }
                sleep(POLL).await;
            };
            println!("{}: {before} at first, {after} at the end", sidecar.name());
        }
        Ok(())
    }
}

/// Every kind once in each round, in an order that chance chooses.
async fn go_wrong_for(soak: &mut Soak, length: Duration) -> testkit::Result {
    let end = Instant::now() + length;
    let mut kinds = Vec::new();
    while Instant::now() < end {
        if kinds.is_empty() {
            kinds.extend(KINDS);
        }
        let kind = kinds.swap_remove(soak.rng.within(0..kinds.len()));
        soak.trouble(kind).await.map_err(|failure| failure.context(format!("{kind:?}")))?;
    }
    Ok(())
}

#[tokio::test]
async fn no_request_fails_whatever_goes_wrong() -> testkit::Result {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let mut soak = Soak::new().await?;
    // What the Envoys' connections take is in use from their first renewal on.
    let marks = soak.marks();
    soak.renew_all()?;
    soak.renewed_since(&marks).await?;
    let before = soak.mesh.sidecars().map(|sidecar| Footprint::of(&sidecar.shim)).collect::<Result<Vec<_>, _>>()?;
    let begin = Instant::now();
    let traffic = Traffic::start(&soak.mesh).await?;
    let ended = go_wrong_for(&mut soak, seconds.map_or(SHORT, Duration::from_secs)).await;
    let tally = traffic.stop().await;
    let elapsed = begin.elapsed();
    let (calls, issued) = soak.totals();
    println!(
        "{} requests in {:.1} s, {} failed; {issued} certificates in {calls} calls; {} troubles {:?}, the longest over \
         after {:.1} s",
        tally.answered + tally.failures.len() as u64,
        elapsed.as_secs_f64(),
        tally.failures.len(),
        soak.troubles.values().sum::<usize>(),
        soak.troubles,
        soak.longest.as_secs_f64()
    );
    let explain = |failure| soak.mesh.sidecars().fold(failure, |failure, sidecar| sidecar.explain(failure));
    ended.map_err(explain)?;
    if let Some(first) = tally.failures.first() {
        return Err(explain(Failure::new(format!("{} requests failed; the first: {first}", tally.failures.len()))));
    }
    assert!(tally.answered as f64 > elapsed.as_secs_f64() * 10.0, "{} requests are no load", tally.answered);
    // Each sidecar's has come to its end more than once for every life that has passed.
    assert!(issued as f64 >= 4.0 * elapsed.as_secs_f64() / LIFE.as_secs_f64(), "{issued} certificates");
    soak.expect_flat(&before).await?;
    soak.mesh.stop().await
}
