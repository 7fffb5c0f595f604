//! Many streams: the memory that they take, and how a rotation reaches them.

use std::{thread, time::Duration};

use testkit::Failure;

use crate::{
    agent::{Launch, OURS, PEER, Running},
    ground::Ground,
    plan::Plan,
    process,
    report::{Figure, Section},
    sds::Crowds,
    summary::milliseconds,
};

/// The lifetime of certificates, and the share of it that is left when they are renewed, by their own clocks, for who
/// cannot be told to: every two seconds, and every six where a rotation may take longer than that.
const LIFE: Duration = Duration::from_secs(20);
const LEFT: &str = "0.9";
const MANY: usize = 5_000;
const LEFT_OF_MANY: &str = "0.7";
/// Settings that rotate alike.
const JITTER: &str = "0.001";

/// The arena that bears so many streams, in KiB: the usual one bears 200.
fn arena(streams: usize) -> usize {
    const USUAL: usize = 2432;
    const BORNE: usize = 200;
    USUAL * streams.div_ceil(BORNE).max(1)
}

/// How often each is started, for its memory.
const STARTS: usize = 3;
/// How long a start has to come to rest.
const REST: Duration = Duration::from_millis(500);

struct Seen {
    of: &'static str,
    streams: usize,
    resident: Vec<f64>,
    proportional: Vec<f64>,
    mapped: Vec<f64>,
    /// From the CA's answer to the last stream, and from the first stream to the last.
    last: Vec<f64>,
    spread: Vec<f64>,
    cpu: Vec<f64>,
}

/// Takes both with each number of streams, in turn. 0 streams are the idle.
pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    ground.ca.set_ttl(Some(LIFE));
    let mut seen = Vec::new();
    for streams in [0].iter().chain(plan.streams) {
        let mut two = [OURS, PEER].map(|of| Seen::nothing(of, *streams));
        for start in 0..STARTS {
            for one in &mut two {
                // The last start is there for the rotations too.
                let rotations = if start + 1 == STARTS && *streams > 0 { plan.rotations } else { 0 };
                one.look(ground, rotations).map_err(|failure| failure.context(format!("{} streams", one.streams)))?;
            }
        }
        seen.extend(two);
    }
    ground.ca.set_ttl(None);
    Ok(tell(&seen))
}

impl Seen {
    fn nothing(of: &'static str, streams: usize) -> Self {
        let none = Vec::new;
        Self {
            of,
            streams,
            resident: none(),
            proportional: none(),
            mapped: none(),
            last: none(),
            spread: none(),
            cpu: none(),
        }
    }

    /// One start: memory once all streams have their first answer, then this many rotations.
    fn look(&mut self, ground: &Ground, rotations: usize) -> Result<(), Failure> {
        let launch = Launch::of(self.of, ground)?
            .env("ECC_SIGNATURE_ALGORITHM", "ECDSA")
            .env("SECRET_GRACE_PERIOD_RATIO", if self.streams > MANY { LEFT_OF_MANY } else { LEFT })
            .env("SECRET_GRACE_PERIOD_RATIO_JITTER", JITTER);
        let launch = match self.of {
            OURS => launch.env("SDS_SHIM_ARENA_KIB", arena(self.streams).to_string()),
            _ => launch,
        };
        let mut running = launch.start()?;
        // Idle is what a sidecar is that has its certificate, so somebody asks once.
        let mut crowds = Crowds::open(&mut running, self.streams.max(1))?;
        if self.streams == 0 {
            drop(crowds);
            thread::sleep(REST);
            return self.weigh(&running);
        }
        thread::sleep(REST);
        self.weigh(&running)?;
        let rotated = (0..rotations).try_for_each(|_| self.rotate(ground, &running, &mut crowds));
        rotated.map_err(|failure| running.explain(failure))
    }

    fn weigh(&mut self, running: &Running) -> Result<(), Failure> {
        const MEBI: f64 = 1024.0;
        let memory = process::memory(running.pid())?;
        self.resident.push(memory.resident / MEBI);
        self.proportional.push(memory.proportional / MEBI);
        self.mapped.push(memory.mapped / MEBI);
        Ok(())
    }

    /// Waits for the next rotation.
    fn rotate(&mut self, ground: &Ground, running: &Running, crowds: &mut Crowds) -> Result<(), Failure> {
        let before = process::cpu_time(running.pid())?;
        let round = crowds.round()?;
        // What follows an answer belongs to the rotation: acknowledgements, and the memory that becomes free.
        thread::sleep(REST);
        self.cpu.push(milliseconds(process::cpu_time(running.pid())? - before));
        let answer = ground.answer_before(round.first).ok_or_else(|| Failure::new("the CA has not answered"))?;
        self.last.push(milliseconds(round.last - answer));
        self.spread.push(milliseconds(round.last - round.first));
        Ok(())
    }
}

fn tell(seen: &[Seen]) -> Section {
    let mut section = Section::new(
        "streams",
        "Memory and rotation, by the number of streams",
        "Streams of `default`, 12 a connection and 1,000 a process where there are more; idle is after the last of \
         them is gone. Both renew by their own clocks every 2 s, or 6 s with more than 5,000 streams. A rotation counts \
         from the moment when the CA has answered until the last stream has the last byte of it. Beyond 200 streams \
         sds-shim has a larger arena (`SDS_SHIM_ARENA_KIB`). CPU time is user and system time of the process from one \
         rotation to the next, acknowledgements and what else it does included.",
    );
    type Values = fn(&Seen) -> &[f64];
    let parts: [(&str, &str, &'static str, Values); 6] = [
        ("resident", "resident", "MiB", |seen| &seen.resident),
        ("proportional", "proportional", "MiB", |seen| &seen.proportional),
        ("mapped", "mapped", "MiB", |seen| &seen.mapped),
        ("rotation.last", "the CA's answer to the last stream", "ms", |seen| &seen.last),
        ("rotation.spread", "first stream to last", "ms", |seen| &seen.spread),
        ("rotation.cpu", "CPU time of a rotation", "ms", |seen| &seen.cpu),
    ];
    for (part, what, unit, values) in parts {
        for one in seen {
            let with = match one.streams {
                0 => "idle".to_owned(),
                1 => "1 stream".to_owned(),
                many => format!("{many} streams"),
            };
            let figure = || Figure::new(format!("streams.{}.{part}", one.streams), format!("{what}, {with}"), unit);
            section.add(figure, one.of, values(one));
        }
    }
    section
}
