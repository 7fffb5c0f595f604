//! Probes of containers.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    manifest::{Exec, HttpGet, Port, Probe, TcpSocket},
    network::inside,
};
use crate::{Failure, OrFail, container::Container, http, process::Process};

/// Between two looks: kubelet looks once in a period, and we are in more of a hurry.
const PAUSE: Duration = Duration::from_millis(50);

/// Where a probe allows more, such as a day for an outage, it only bounds failures.
const LONGEST: u64 = 300;

/// Whom probes ask, and from where: the node.
pub(super) struct Target<'a> {
    pub(super) container: &'a Container,
    pub(super) ports: &'a [Port],
    pub(super) address: Ipv4Addr,
    pub(super) node: u32,
}

impl Target<'_> {
    /// Returns once the probe has succeeded as often as it says, and fails when it has not for as long as kubelet waits
    /// until it counts as failed.
    pub(super) async fn wait_for(&self, probe: &Probe, process: &mut Process) -> crate::Result {
        let allowed = probe.initial_delay_seconds + probe.period_seconds.max(1) * probe.failure_threshold;
        let allowed = allowed.min(LONGEST);
        let deadline = Instant::now() + Duration::from_secs(allowed);
        let mut successes = 0;
        loop {
            match self.ask(probe).await {
                Ok(()) => successes += 1,
                Err(failure) if Instant::now() > deadline => {
                    return Err(failure.context(format!("not within the probe's {allowed} s")));
                }
                Err(_) if process.exited().is_some() => {
                    let status = process.wait_exit().await?;
                    return Err(Failure::new(format!("it ended with {status}")));
                }
                Err(_) => successes = 0,
            }
            if successes >= probe.success_threshold {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks once.
    pub(super) async fn ask(&self, probe: &Probe) -> crate::Result {
        let within = Duration::from_secs(probe.timeout_seconds);
        let answer = timeout(within, self.ask_for_long(probe)).await;
        answer.or_fail(format!("get an answer to the probe within {within:?}"))?
    }

    async fn ask_for_long(&self, probe: &Probe) -> crate::Result {
        match (&probe.exec, &probe.http_get, &probe.tcp_socket) {
            (Some(Exec { command }), None, None) => {
                let words: Vec<_> = command.iter().map(String::as_str).collect();
                self.container.exec(&words).await
            }
            (None, Some(HttpGet { path, port, .. }), None) => {
                let (address, path) = ((self.address, port.number(self.ports.iter())?), path.clone());
                let answer = inside(self.node, async move {
                    let stream = TcpStream::connect(address).await.or_fail("connect")?;
                    http::get(stream, &address.0.to_string(), &path).await
                });
                match answer.await?? {
                    http::Answer { status: 200..400, .. } => Ok(()),
                    answer => Err(Failure::new(format!("{}: {}", answer.status, answer.text()))),
                }
            }
            (None, None, Some(TcpSocket { port })) => {
                let address = (self.address, port.number(self.ports.iter())?);
                let connected = inside(self.node, async move { TcpStream::connect(address).await.map(drop) });
                connected.await?.or_fail(format!("connect to {address:?}"))
            }
            _ => Err(Failure::new("a probe must have exactly one way to ask")),
        }
    }
}
