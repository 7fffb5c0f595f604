//! Clients that take more than their share: the process lives, the honest client and newcomers are served, and nobody
//! pays for a flood but who makes it. The shim runs as it does in a sidecar, so these tests need root; the attackers are
//! processes of their own, as they would be in a pod.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use sds_shim_proto::envoy::service::discovery::v3::DiscoveryResponse;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    confined::{Confinement, helper},
    fixture::{Logged, Site, serial},
    process::Process,
    sds::{self, SdsClient, SdsStream},
};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

/// How long each attack lasts.
const SECONDS: u32 = 5;
/// How long a newcomer may have to wait while others attack.
const SERVED_WITHIN: Duration = Duration::from_secs(5);
/// Of a second, in `/proc/PID/stat`.
const TICKS: f64 = 100.0;

/// The shim under its real limits, and the client that it is there for.
struct Scene {
    site: Site,
    shim: Logged,
    honest: SdsStream,
    last: DiscoveryResponse,
}

impl Scene {
    async fn new() -> Result<Self, Failure> {
        let site = Site::new().await?;
        let mut shim = Logged(site.shim().confined(Confinement::default()).start()?);
        let mut honest = shim.connect().await?.stream();
        honest.send(sds::request(&["default"]));
        let last = honest.recv().await?;
        Ok(Self { site, shim, honest, last })
    }

    async fn attack(&self, attack: &str) -> Result<Process, Failure> {
        let socket = self.shim.socket().display().to_string();
        let arguments = [attack.to_owned(), socket, SECONDS.to_string()];
        let attacker = Process::start(attack, &helper("attacker")?, &arguments, &[], self.shim.directory())?;
        attacker.wait_for_log("begun").await?;
        Ok(attacker)
    }

    /// Rotates, and waits until the honest client has the next certificate. Returns how long that took.
    async fn push(&mut self) -> Result<Duration, Failure> {
        self.honest.send(sds::ack(&self.last, &["default"]));
        let asked = Instant::now();
        self.shim.signal(Signal::SIGUSR1).map_err(|failure| self.shim.explain(failure))?;
        let next = self.honest.recv().await.map_err(|failure| self.shim.explain(failure))?;
        assert_ne!(serial(&next)?, serial(&self.last)?);
        self.last = next;
        Ok(asked.elapsed())
    }

    /// Several, and one of the shorter ones: what a flood costs it costs all of them, and a busy machine only some.
    async fn pushes(&mut self) -> Result<Duration, Failure> {
        let mut all = Vec::new();
        for _ in 0..9 {
            all.push(self.push().await?);
            sleep(POLL * 5).await;
        }
        all.sort();
        Ok(all[all.len() / 4])
    }

    /// Somebody else gets what is asked for, however often that has to be tried.
    async fn newcomer(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        loop {
            let answer = async {
                SdsClient::connect(self.shim.socket()).await.ok()?.fetch(sds::request(&["default"])).await.ok()
            };
            if timeout(SERVED_WITHIN, answer).await.ok().flatten().is_some() {
                return Ok(started.elapsed());
            }
            if started.elapsed() > SERVED_WITHIN {
                return Err(self.shim.failure(format!("a newcomer was not served within {SERVED_WITHIN:?}")));
            }
            sleep(POLL).await;
        }
    }

    /// Whether our own probe says that all is well.
    async fn probe(&self) -> testkit::Result {
        let mut probe = self.site.shim().arg("health").start()?;
        match timeout(SERVED_WITHIN, probe.wait_exit()).await.or_fail("wait for `sds-shim health`")?? {
            status if status.success() => Ok(()),
            status => Err(probe.failure(format!("`sds-shim health` ended with {status}"))),
        }
    }

    /// Seconds of a processor that it has taken so far.
    fn processor(&self) -> Result<f64, Failure> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.shim.pid())).or_fail("the shim lives")?;
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|text| text.parse::<f64>().ok());
        Ok((ticks(11).unwrap_or_default() + ticks(12).unwrap_or_default()) / TICKS)
    }

    /// What is served while an attack goes on, and after it.
    async fn lives_through(attack: &str) -> testkit::Result {
        let mut scene = Self::new().await?;
        let mut attacker = scene.attack(attack).await?;
        let mut longest = Duration::ZERO;
        while attacker.exited().is_none() {
            longest = longest.max(scene.newcomer().await?);
            scene.push().await?;
            scene.probe().await?;
        }
        println!("{attack}: {:?}, a newcomer waited {longest:?} at most", attacker.log().lines());
        scene.newcomer().await?;
        scene.push().await?;
        assert_eq!(scene.shim.log().count("serving SDS"), 1, "it was started again");
        Ok(())
    }

    /// What an attack costs: in time of a processor, and in delay for the honest client.
    async fn bears(attack: &str) -> testkit::Result {
        /// Other tests run beside this one: a delay that the attack causes is there each time.
        const ROUNDS: usize = 3;
        let mut delays = Vec::new();
        while delays.len() < ROUNDS {
            let (alone, attacked) = Self::bears_once(attack).await?;
            if attacked < alone + Duration::from_millis(50) {
                return Ok(());
            }
            delays.push((alone, attacked));
        }
        Err(Failure::new(format!("pushes took, without the attack and beside it: {delays:?}")))
    }

    /// How long a push took without the attack and beside it.
    async fn bears_once(attack: &str) -> Result<(Duration, Duration), Failure> {
        let mut scene = Self::new().await?;
        let (started, before) = (Instant::now(), scene.processor()?);
        let alone = scene.pushes().await?;
        let pushes = scene.processor()? - before;
        println!("alone: {alone:?}, {pushes} s of a processor in {:?}", started.elapsed());
        let (started, before) = (Instant::now(), scene.processor()?);
        let mut attacker = scene.attack(attack).await?;
        let attacked = scene.pushes().await?;
        attacker.wait_exit().await?;
        let (taken, lasted) = (scene.processor()? - before - pushes, started.elapsed().as_secs_f64());
        println!("{:?}: {attacked:?}, {taken:.2} s of a processor in {lasted:.2} s", attacker.log().lines());
        assert!(taken / lasted < 0.2, "{taken} s of a processor in {lasted} s");
        Ok((alone, attacked))
    }
}

#[tokio::test]
async fn a_flood_of_requests_ends_nothing() -> testkit::Result {
    Scene::lives_through("Flood").await
}

#[tokio::test]
async fn a_flood_of_requests_costs_a_fifth_of_a_processor_and_delays_nobody() -> testkit::Result {
    Scene::bears("Flood").await
}

#[tokio::test]
async fn a_flood_of_connections_ends_nothing() -> testkit::Result {
    Scene::lives_through("Connects").await
}

#[tokio::test]
async fn a_flood_of_connections_costs_a_fifth_of_a_processor_and_delays_nobody() -> testkit::Result {
    Scene::bears("Connects").await
}

#[tokio::test]
async fn hundreds_of_lawful_requests_in_flight_end_nothing() -> testkit::Result {
    Scene::lives_through("InFlight").await
}

#[tokio::test]
async fn silent_connections_lock_out_nobody() -> testkit::Result {
    Scene::lives_through("Silent").await
}

#[tokio::test]
async fn names_of_one_connection_lock_out_nobody() -> testkit::Result {
    Scene::lives_through("Names").await
}

#[tokio::test]
async fn connections_that_do_not_read_lock_out_nobody() -> testkit::Result {
    Scene::lives_through("Unread").await
}

#[tokio::test]
async fn empty_headers_lock_out_nobody() -> testkit::Result {
    Scene::lives_through("EmptyHeaders").await
}

#[tokio::test]
async fn unread_responses_lock_out_nobody() -> testkit::Result {
    Scene::lives_through("Documents").await
}

#[tokio::test]
async fn a_stream_that_asks_again_and_again_fills_no_log() -> testkit::Result {
    let scene = Scene::new().await?;
    let mut attacker = scene.attack("Again").await?;
    attacker.wait_exit().await?;
    let bytes: usize = scene.shim.log().lines().iter().map(|line| line.len() + 1).sum();
    println!("{:?}: {bytes} bytes of log", attacker.log().lines());
    assert!(bytes < 64 << 10, "{bytes} bytes of log in {SECONDS} s");
    Ok(())
}

/// Renewals that are asked for in a storm are one a second for the CA.
#[tokio::test]
async fn a_storm_of_signals_costs_the_ca_a_call_a_second() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().confined(Confinement::default()).without("SDS_SHIM_RENEW_PAUSE").start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    let (started, before) = (Instant::now(), site.ca.calls().len());
    while started.elapsed() < Duration::from_secs(SECONDS.into()) {
        shim.signal(Signal::SIGUSR1)?;
        sleep(Duration::from_millis(1)).await;
    }
    let (calls, lasted) = (site.ca.calls().len() - before, started.elapsed().as_secs());
    println!("{calls} calls in {lasted} s");
    assert!(calls as u64 <= lasted + 1, "{calls} calls in {lasted} s");
    assert_ne!(serial(&stream.recv().await?)?, serial(&first)?, "nothing was renewed");
    Ok(())
}

/// Lawful clients that together want more than there is: they are served one after the other, each of their requests
/// comes to an end, and then there is room again.
#[tokio::test]
async fn requests_of_many_lawful_clients_do_not_wait_for_each_other_for_ever() -> testkit::Result {
    const CLIENTS: usize = 12;
    const REQUESTS: usize = 100;
    let mut scene = Scene::new().await?;
    for round in 0..3 {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(SdsClient::connect(scene.shim.socket()).await.or_fail("connect")?);
        }
        let mut all = JoinSet::new();
        for client in clients {
            for _ in 0..REQUESTS {
                let client = client.clone();
                all.spawn(async move { client.fetch(sds::request(&["default"])).await });
            }
        }
        let all = timeout(PATIENCE, all.join_all()).await.or_fail("wait for all answers")?;
        let answered = all.iter().filter(|answer| answer.is_ok()).count();
        println!("round {round}: {answered} of {} answered", all.len());
        assert!(answered >= CLIENTS * REQUESTS * 9 / 10, "only {answered} were answered");
        let others = all.into_iter().filter_map(Result::err).filter(|status| status.code() != Code::ResourceExhausted);
        let others: Vec<_> = others.collect();
        assert!(others.is_empty(), "{} more, such as {:?}", others.len(), others.first());
        scene.newcomer().await?;
        scene.push().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_says_nothing_is_hung_up_on() -> testkit::Result {
    let scene = Scene::new().await?;
    let mut silent = sds::raw(scene.shim.socket()).await?;
    let read = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.or_fail("wait for the hang-up")?;
    assert!(read.is_ok(), "{read:?}");
    // And one that opens a stream and says nothing on it gets an end of that.
    let client = SdsClient::connect(scene.shim.socket()).await.or_fail("connect")?;
    let mut streams = [client.stream(), client.stream()];
    for stream in &mut streams {
        assert_eq!(stream.expect_closed().await?.code(), Code::DeadlineExceeded);
    }
    Ok(())
}
