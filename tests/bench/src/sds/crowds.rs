//! More streams than the shim lets one process have: it limits what each may send in a second.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use testkit::{Failure, OrFail};

use super::crowd::{self, Crowd, Round};
use crate::agent::Running;

/// Streams of one process: its acknowledgements of one rotation are still taken at once.
const STREAMS_OF_ONE: usize = 1_000;
/// The first argument of a process that is one of them; the socket and the number of streams follow.
pub(crate) const CLIENT: &str = "--client";

/// Processes that have streams, all of them of `default`.
pub(crate) struct Crowds(Vec<Client>);

/// One process, killed when this is dropped.
struct Client {
    process: Child,
    rounds: BufReader<ChildStdout>,
}

impl Crowds {
    /// Waits for the socket, opens this many streams, and waits for the first answer of each.
    pub(crate) fn open(running: &mut Running, streams: usize) -> Result<Self, Failure> {
        drop(crowd::connect(running)?);
        let bench = std::env::current_exe().or_fail("find this program")?;
        let start = |before: usize| {
            let streams = STREAMS_OF_ONE.min(streams - before).to_string();
            let mut command = Command::new(&bench);
            command.arg(CLIENT).arg(running.socket()).arg(streams).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut process = command.spawn().or_fail("start a client")?;
            let rounds = process.stdout.take().ok_or_else(|| Failure::new("a client has no output"))?;
            Ok(Client { process, rounds: BufReader::new(rounds) })
        };
        let mut crowds = Self((0..streams).step_by(STREAMS_OF_ONE).map(start).collect::<Result<_, Failure>>()?);
        crowds.round().map_err(|failure| running.explain(failure))?;
        Ok(crowds)
    }

    /// Waits until each stream has got one more answer; they acknowledge them then.
    pub(crate) fn round(&mut self) -> Result<Round, Failure> {
        let rounds = self.0.iter_mut().map(Client::round).collect::<Result<Vec<_>, _>>()?;
        let all = rounds
            .into_iter()
            .reduce(|all, one| Round { first: all.first.min(one.first), last: all.last.max(one.last) });
        all.ok_or_else(|| Failure::new("there is no stream"))
    }
}

impl Client {
    fn round(&mut self) -> Result<Round, Failure> {
        let mut line = String::new();
        self.rounds.read_line(&mut line).or_fail("read what a client says")?;
        let mut times = line.split_whitespace().map_while(|time| time.parse().ok());
        match (times.next(), times.next()) {
            (Some(first), Some(last)) => Ok(Round { first: instant(first)?, last: instant(last)? }),
            _ => Err(Failure::new(format!("a client has ended: {line:?}"))),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a client does until it is killed: it writes a line for each round.
pub(crate) fn client(socket: &OsStr, streams: &OsStr) -> Result<(), Failure> {
    let streams = streams.to_str().and_then(|streams| streams.parse().ok());
    let streams: usize = streams.ok_or_else(|| Failure::new("a client takes a number of streams"))?;
    let (mut crowd, mut round) = Crowd::on(Path::new(socket), &vec!["default"; streams])?;
    loop {
        let (first, last) = (nanoseconds(round.first)?, nanoseconds(round.last)?);
        writeln!(std::io::stdout(), "{first} {last}").or_fail("tell of a round")?;
        round = crowd.round()?;
    }
}

/// A moment on the clock that all processes share, and back: an [`Instant`] is of one process alone.
fn nanoseconds(moment: Instant) -> Result<u128, Failure> {
    Ok((clock()? - moment.elapsed()).as_nanos())
}

fn instant(nanoseconds: u64) -> Result<Instant, Failure> {
    Ok(Instant::now() - (clock()? - Duration::from_nanos(nanoseconds)))
}

fn clock() -> Result<Duration, Failure> {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).or_fail("read the clock")
}
