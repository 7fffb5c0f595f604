//! The original claim: rotation through SDS costs requests nothing. Requests go through two real Envoys with mutual TLS
//! between them, whose certificates rotate in different ways.

mod attack;
mod hop;
mod way;

use std::time::Duration;

use testkit::{Failure, OrFail};
use tokio::runtime::{Builder, Runtime};

use crate::{
    ground::Ground,
    plan::Plan,
    report::{Figure, Section},
    summary::quantile,
};
use attack::{Attack, Outcome};
use hop::Hop;
use way::Way;

/// Requests a second at the fixed rate: a fraction of what a small machine bears with all that runs on it.
const RATE: u32 = 500;
/// Shorter than the time to the first rotation.
const WARM_UP: Duration = Duration::from_secs(1);

/// Everything of one way, over all runs.
struct Seen {
    way: Way,
    fixed: Vec<Outcome>,
    saturated: Vec<Outcome>,
}

/// Attacks each way in turn, as often as planned.
pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build().or_fail("make a runtime")?;
    let application = hop::Application::start()?;
    let mut seen = Way::ALL.map(|way| Seen { way, fixed: Vec::new(), saturated: Vec::new() });
    for _ in 0..plan.load_runs {
        for one in &mut seen {
            let attacked = one.attack(ground, plan, &runtime, &application);
            attacked.map_err(|failure| failure.context(format!("certificates {}", one.way.name())))?;
        }
    }
    Ok(tell(&seen))
}

impl Seen {
    fn attack(&mut self, ground: &Ground, plan: &Plan, rt: &Runtime, app: &hop::Application) -> Result<(), Failure> {
        let mut hop = Hop::start(self.way, ground, app, rt)?;
        // Connections are there, and caches warm, before anything counts.
        Attack { rate: Some(RATE), time: WARM_UP }.run(&mut hop, rt)?;
        self.fixed.push(Attack { rate: Some(RATE), time: plan.fixed }.run(&mut hop, rt)?);
        self.saturated.push(Attack { rate: None, time: plan.saturated }.run(&mut hop, rt)?);
        Ok(())
    }
}

fn tell(seen: &[Seen]) -> Section {
    let mut section = Section::new(
        "load",
        "Requests through two Envoys while certificates rotate",
        "vegeta to a client's Envoy, mutual TLS with connections that are kept, a server's Envoy, an application; all \
         on this machine. At 500 requests a second, sent when they are due whether or not earlier ones are answered, \
         and saturated by 8 workers. Both Envoys get a new certificate every 5 s: from sds-shim over SDS; not at all; \
         in files that Envoy watches; in files that Envoy reads when it starts, with a hot restart for each (2 s to \
         drain, the old process ends after 3 s), as it was before SDS. Handshakes are those between the two Envoys \
         during the measurement, resets what either Envoy or the client lost with a request on it, errors all answers \
         but 200, whatever the reason.",
    );
    type Value = fn(&Outcome) -> f64;
    let parts: [(&str, &str, &'static str, Value); 7] = [
        ("p50", "median", "ms", |outcome| quantile(&outcome.latencies, 0.5)),
        ("p99", "99th percentile", "ms", |outcome| quantile(&outcome.latencies, 0.99)),
        ("p999", "99.9th percentile", "ms", |outcome| quantile(&outcome.latencies, 0.999)),
        ("rate", "answered with 200", "a second", |outcome| outcome.rate),
        ("errors", "errors", "number", |outcome| outcome.errors),
        ("resets", "resets", "number", |outcome| outcome.resets),
        ("handshakes", "new handshakes", "number", |outcome| outcome.handshakes),
    ];
    for (kind, what) in [("fixed", "fixed rate"), ("saturated", "saturated")] {
        for (part, name, unit, value) in parts {
            for one in seen {
                let outcomes = if kind == "fixed" { &one.fixed } else { &one.saturated };
                let values: Vec<_> = outcomes.iter().map(value).collect();
                let figure = || Figure::new(format!("load.{kind}.{part}"), format!("{what}: {name}"), unit);
                section.add(figure, one.way.name(), &values);
            }
        }
    }
    section
}
