//! A start where others are: beside busy neighbours, with a CA that is some way off, and fifty at the same moment.

mod away;
mod busy;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use testkit::{Failure, OrFail};

use self::{away::Away, busy::Busy};
use crate::{
    agent::{Launch, OURS, PEER, Running},
    ground::Ground,
    plan::Plan,
    process,
    report::{Figure, Section},
    sds::Crowd,
    start::first_default,
    summary::milliseconds,
};

/// Those that start at the same moment, such as a node's after its reboot.
const TOGETHER: usize = 50;
/// How often each of them looks for the socket. So many are no burden to the others, and this is what the times are good to.
const LOOK: Duration = Duration::from_millis(1);
/// Round trips to the CA, in milliseconds: the same zone, another one, another region.
const ROUND_TRIPS: [u64; 3] = [1, 5, 20];
/// Threads that are always busy.
const NEIGHBOURS: [usize; 3] = [1, 2, 8];

pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    let mut section = Section::new(
        "node",
        "On a busy node, far from the CA",
        "From the moment before exec until the last byte of `default` has arrived. What lies between a program and the CA \
         delays each byte by half a round trip, but not the set-up of the connection. The neighbours are threads that \
         compute all the time. Of fifty that start at the same moment, each with a pod of its own, the first and the last \
         are told, from the moment before the first exec; and when all have their certificate, the sum of their memory, \
         each page divided by the number of processes that share it.",
    );
    for round_trip in ROUND_TRIPS {
        let away = Away::new(ground.ca.address(), Duration::from_millis(round_trip) / 2)?;
        let address = format!("localhost:{}", away.port());
        let figure = || {
            Figure::new(
                format!("node.away.{round_trip}"),
                format!("first `default`: the CA {round_trip} ms away"),
                "ms",
            )
        };
        alone(ground, plan, &mut section, &figure, |launch| launch.env("CA_ADDR", address.clone()))?;
    }
    for neighbours in NEIGHBOURS {
        let busy = Busy::start(neighbours);
        let what = format!("first `default`: {neighbours} busy neighbour{}", if neighbours == 1 { "" } else { "s" });
        let figure = || Figure::new(format!("node.busy.{neighbours}"), what.clone(), "ms");
        alone(ground, plan, &mut section, &figure, |launch| launch)?;
        drop(busy);
    }
    for _ in 0..plan.crowds {
        for of in [OURS, PEER] {
            let seen = together(of, ground)?;
            for (id, what, unit, value) in [
                ("first", "the first of 50 has `default`", "ms", seen.first),
                ("last", "the last of 50 has `default`", "ms", seen.last),
                ("memory", "memory of 50, proportional", "MiB", seen.proportional / 1024.0),
                ("private", "private dirty memory of one of 50", "MiB", seen.private / 1024.0 / TOGETHER as f64),
            ] {
                section.add(|| Figure::new(format!("node.together.{id}"), what, unit), of, &[value]);
            }
        }
    }
    Ok(section)
}

/// Both with the same kind of key.
fn launch(of: &str, ground: &Ground) -> Result<Launch, Failure> {
    Ok(Launch::of(of, ground)?.env("ECC_SIGNATURE_ALGORITHM", "ECDSA"))
}

/// Both in turn, each by itself.
fn alone(
    ground: &Ground,
    plan: &Plan,
    section: &mut Section,
    figure: &dyn Fn() -> Figure,
    edit: impl Fn(Launch) -> Launch,
) -> Result<(), Failure> {
    let mut times = [(OURS, Vec::new()), (PEER, Vec::new())];
    for run in 0..=plan.long_starts {
        for (of, times) in &mut times {
            let (_, first) = first_default(edit(launch(of, ground)?))?;
            // The first start of each finds less in memory than the others.
            if run > 0 {
                times.push(first);
            }
        }
    }
    times.iter().for_each(|(of, times)| section.add(figure, of, times));
    Ok(())
}

/// Milliseconds, and KiB of all.
struct Together {
    first: f64,
    last: f64,
    proportional: f64,
    private: f64,
}

fn together(of: &str, ground: &Ground) -> Result<Together, Failure> {
    let launches = (0..TOGETHER).map(|_| launch(of, ground)).collect::<Result<Vec<_>, _>>()?;
    let pods: Vec<_> = launches.iter().map(|launch| launch.directory.clone()).collect();
    let since = Instant::now();
    let mut all = launches.into_iter().map(Launch::start).collect::<Result<Vec<_>, _>>()?;
    let wait = |running: &mut Running| {
        running.look = LOOK;
        let (crowd, round) = Crowd::open(running, 1)?;
        Ok::<_, Failure>((crowd, milliseconds(round.last - since)))
    };
    let seen = thread::scope(|scope| {
        let waiting: Vec<_> = all.iter_mut().map(|running| scope.spawn(|| wait(running))).collect();
        let ended = |_| Err(Failure::new("a thread ended"));
        waiting.into_iter().map(|one| one.join().unwrap_or_else(ended)).collect::<Result<Vec<_>, _>>()
    })?;
    let times = || seen.iter().map(|(_, time)| *time);
    let mut together = Together {
        first: times().fold(f64::MAX, f64::min),
        last: times().fold(0.0, f64::max),
        proportional: 0.0,
        private: 0.0,
    };
    for running in &all {
        let memory = process::memory(running.pid())?;
        together.proportional += memory.proportional;
        together.private += memory.private;
    }
    drop((seen, all));
    for pod in pods {
        fs::remove_dir_all(&pod).or_fail(format!("remove {}", pod.display()))?;
    }
    Ok(together)
}
