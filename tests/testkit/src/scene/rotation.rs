//! Certificates rotate several times in every Envoy while requests flow and the Envoys keep running.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    mesh::{Mesh, Sidecar},
    narrator::Narrator,
    probe::counter,
    traffic::Traffic,
};
use crate::{Failure, PATIENCE, POLL};

/// Rotations that every Envoy must show.
const ROTATIONS: usize = 3;
/// The digits of a serial number that are printed; it has more.
const SHOWN_DIGITS: usize = 12;

pub(super) async fn show(mesh: &mut Mesh, narrator: &mut Narrator) -> crate::Result {
    let start = Instant::now();
    let mut watched = Vec::new();
    for sidecar in mesh.sidecars() {
        watched.push(Watched::begin(sidecar).await?);
    }
    let handshakes = Handshakes::count(mesh).await?;
    let traffic = Traffic::start(mesh).await?;
    let outcome = wait_for_rotations(mesh, &mut watched).await;
    let tally = traffic.stop().await;
    outcome?;
    let elapsed = start.elapsed();
    let handshakes = Handshakes::count(mesh).await?.since(&handshakes);
    let explain = |failure| mesh.sidecars().fold(failure, |failure, sidecar| sidecar.explain(failure));
    if let Some(first) = tally.failures.first() {
        let failures = tally.failures.len();
        return Err(explain(Failure::new(format!("{failures} requests failed during rotation; the first: {first}"))));
    }
    if handshakes.resumed > 0 || handshakes.all < tally.answered {
        let what = format!("not every one of {} requests made a full handshake: {handshakes:?}", tally.answered);
        return Err(explain(Failure::new(what)));
    }
    narrator.say(format!(
        "{} requests in {:.1} s with {} full mutual-TLS handshakes, while every certificate rotated at least \
         {ROTATIONS} times: 0 failures",
        tally.answered,
        elapsed.as_secs_f64(),
        handshakes.all
    ));
    for (sidecar, watched) in mesh.sidecars_mut().zip(watched) {
        narrator.say(watched.conclude(sidecar, elapsed).await?);
    }
    Ok(())
}

/// Envoy announces no rotation, so its admin page is looked at until each has shown enough of them.
async fn wait_for_rotations(mesh: &Mesh, watched: &mut [Watched]) -> crate::Result {
    let deadline = Instant::now() + PATIENCE;
    while watched.iter().any(|watched| watched.serials.len() <= ROTATIONS) {
        for (sidecar, watched) in mesh.sidecars().zip(&mut *watched) {
            watched.look(sidecar).await?;
            if Instant::now() > deadline && watched.serials.len() <= ROTATIONS {
                let seen = watched.serials.len();
                let what = format!("{} has shown {seen} certificates within {PATIENCE:?}", sidecar.name());
                return Err(sidecar.explain(Failure::new(what)));
            }
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Mutual-TLS handshakes that the servers' sidecars have seen. Only a full one looks at both certificates.
#[derive(Debug)]
pub(super) struct Handshakes {
    pub(super) all: u64,
    pub(super) resumed: u64,
}

impl Handshakes {
    pub(super) async fn count(mesh: &Mesh) -> Result<Self, Failure> {
        let mut sum = Self { all: 0, resumed: 0 };
        for server in &mesh.servers {
            sum.all += counter(server.envoy.admin(), "handshake").await?;
            sum.resumed += counter(server.envoy.admin(), "session_reused").await?;
        }
        Ok(sum)
    }

    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self { all: self.all - earlier.all, resumed: self.resumed - earlier.resumed }
    }
}

/// One Envoy from the start of the rotation on.
struct Watched {
    serials: Vec<String>,
    pid: u32,
    uptime: Duration,
}

impl Watched {
    async fn begin(sidecar: &Sidecar) -> Result<Self, Failure> {
        let uptime = sidecar.envoy.admin().uptime().await?;
        let mut watched = Self { serials: Vec::new(), pid: sidecar.envoy.pid(), uptime };
        watched.look(sidecar).await?;
        Ok(watched)
    }

    async fn look(&mut self, sidecar: &Sidecar) -> crate::Result {
        let certificates = sidecar.envoy.admin().certificates().await;
        for certificate in certificates.map_err(|failure| sidecar.explain(failure))? {
            if certificate.uris != [sidecar.workload.spiffe_id()] {
                let what = format!("{} uses a certificate for {:?}", sidecar.name(), certificate.uris);
                return Err(sidecar.explain(Failure::new(what)));
            }
            if !self.serials.contains(&certificate.serial) {
                self.serials.push(certificate.serial);
            }
        }
        Ok(())
    }

    /// The same process must have been up all the time. Envoy counts whole seconds, hence the tolerance of one.
    async fn conclude(&self, sidecar: &mut Sidecar, elapsed: Duration) -> Result<String, Failure> {
        let name = sidecar.name();
        let uptime = sidecar.envoy.admin().uptime().await?;
        let ended = sidecar.envoy.exited().is_some() || sidecar.shim.exited().is_some();
        if ended || uptime + Duration::from_secs(1) < self.uptime + elapsed {
            return Err(sidecar.explain(Failure::new(format!("{name}: a process of the sidecar was restarted"))));
        }
        let serials: Vec<_> = self.serials.iter().map(|serial| short(serial)).collect();
        Ok(format!(
            "{name}: serials {}; Envoy pid {} throughout, up {} s before and {} s after",
            serials.join(" -> "),
            self.pid,
            self.uptime.as_secs(),
            uptime.as_secs()
        ))
    }
}

fn short(serial: &str) -> &str {
    serial.get(..SHOWN_DIGITS).unwrap_or(serial)
}
