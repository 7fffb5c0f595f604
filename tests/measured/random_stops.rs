//! Where key bytes are at random moments of rotations: the process is stopped a hundred times for each kind of key, and
//! each time all of its memory is read, and its registers when it sleeps. These tests need root, and `gcore`,
//! which `make gdb` installs.

mod residency_common;

use std::{
    collections::HashMap,
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use residency_common::{
    Kind, MOUNTED, NAMED, P256, P384, PRESENTED, PROVISIONED, RSA_2048, RSA_4096, Subject, TOLD, UNPROTECTED,
};
use testkit::{
    Failure, OrFail, PATIENCE,
    confined::Confinement,
    residency::{self, Hit, Needles, Pages},
    rng::Rng,
};
use tokio::task::spawn_blocking;

/// At least so many stops.
const STOPS: usize = 100;
/// Where the search must find keys, so many show that it does.
const CONTROL_STOPS: usize = 40;
/// At least so many of them while it sleeps, and so many while it does not.
const OF_EACH_KIND: usize = 10;
/// However unlikely the machine makes one kind.
const MOST_STOPS: usize = 600;
/// Images with registers; each takes gdb a tenth of a second.
const REGISTERS: usize = 25;

/// How the rotations of a kind of key are stopped.
#[derive(Clone, Copy)]
struct Pace {
    stops: usize,
    /// Stops in one rotation, and one after it: keys that take long to make bear several.
    in_each: usize,
    /// Microseconds after which a stop comes at the earliest, and in which it comes then: the rotation takes less, or
    /// what is left of it, unless the machine is busy.
    from: u64,
    spread: u64,
    registers: usize,
}

const FAST: Pace = Pace { stops: STOPS, in_each: 1, from: 0, spread: 6000, registers: OF_EACH_KIND };
/// Files are read some time after they have changed.
const AFTER_A_PAUSE: Pace = Pace { from: 9000, ..FAST };
const SLOW: Pace = Pace { in_each: 5, spread: 100_000, ..FAST };
const SLOWER: Pace = Pace { in_each: 10, spread: 300_000, ..SLOW };

/// All that was seen in one run.
#[derive(Default)]
struct Stops {
    count: usize,
    /// For each stop, the key that was live: the next one was on its way.
    live: Vec<usize>,
    asleep: usize,
    arena: Pages,
    rest: Pages,
    /// Notes of the images of sleeping moments.
    registers: Vec<Vec<u8>>,
    needles: Needles,
    refused: usize,
}

impl Stops {
    fn enough(&self, wanted: usize) -> bool {
        let kinds = self.asleep.min(self.count - self.asleep);
        self.count >= wanted && (kinds >= OF_EACH_KIND.min(wanted / 10) || self.count >= MOST_STOPS)
    }

    fn keys_in_registers(&self) -> HashMap<usize, usize> {
        let mut found = HashMap::new();
        for notes in &self.registers {
            self.needles.count(notes, &mut found);
        }
        found
    }

    fn report(&self, kind: Kind, wanted: usize) {
        println!(
            "{:?}: {} stops, {} of them asleep, {} images with registers; {} bytes of arena and {} others to search",
            kind.variables,
            self.count,
            self.asleep,
            self.registers.len(),
            self.arena.bytes(),
            self.rest.bytes(),
        );
        assert!(self.enough(wanted) && self.count < MOST_STOPS, "too few stops of one kind");
        assert!(!self.registers.is_empty());
    }
}

/// Stops the process after some microseconds, from a thread of its own: what goes on between the shim and its CA,
/// which runs here, must not wait. Returns whether it sleeps until something happens.
async fn stop_after(pid: u32, delay: Duration) -> Result<bool, Failure> {
    let stop = move || {
        thread::sleep(delay);
        kill(Pid::from_raw(pid as i32), Signal::SIGSTOP).or_fail("stop the shim")?;
        let deadline = Instant::now() + PATIENCE;
        while !stopped(pid)? {
            if Instant::now() > deadline {
                return Err(Failure::new("the shim did not stop"));
            }
            thread::sleep(Duration::from_micros(100));
        }
        asleep(pid)
    };
    spawn_blocking(stop).await.or_fail("wait for the stop")?
}

/// Whether all threads have stopped.
fn stopped(pid: u32) -> Result<bool, Failure> {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).or_fail("list the threads")? {
        let stat = thread.and_then(|thread| fs::read_to_string(thread.path().join("stat")));
        // A thread that has just ended needs no stopping.
        let Ok(stat) = stat else { continue };
        if !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether it is stopped in the runtime's wait for events: not in a look that returns at once, which the runtime
/// takes between two tasks, and not while a thread beside it makes a key.
fn asleep(pid: u32) -> Result<bool, Failure> {
    const EPOLL_WAIT: &str = "232";
    if fs::read_dir(format!("/proc/{pid}/task")).or_fail("list the threads")?.count() > 1 {
        return Ok(false);
    }
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).or_fail("read the system call")?;
    let mut fields = call.split_whitespace();
    Ok(fields.next() == Some(EPOLL_WAIT) && fields.nth(3).is_some_and(|timeout| timeout != "0x0"))
}

async fn run(kind: Kind, confinement: Confinement, pace: Pace) -> Result<Stops, Failure> {
    let mut subject = kind.start(confinement).await?;
    let (mut rng, mut stops) = (Rng::seeded(), Stops::default());
    while !stops.enough(pace.stops) {
        subject.begin()?;
        for _ in 0..pace.in_each {
            stop(&mut stops, &subject, Duration::from_micros(pace.from + rng.below(pace.spread)), pace).await?;
        }
        subject.finish().await?;
        if pace.in_each > 1 {
            // Else hardly ever seen: a thread makes the key for most of the time.
            stop(&mut stops, &subject, Duration::from_micros(rng.below(pace.spread)), pace).await?;
        }
    }
    stops.needles = subject.needles;
    stops.report(kind, pace.stops);
    Ok(stops)
}

/// Stops it for as long as it takes to see what there is.
async fn stop(stops: &mut Stops, subject: &Subject, delay: Duration, pace: Pace) -> testkit::Result {
    let asleep = stop_after(subject.shim.pid(), delay).await?;
    let memory = residency::memory(subject.shim.pid())?;
    stops.refused = stops.refused.max(memory.refused);
    stops.arena.add(stops.count, &memory.arena);
    stops.rest.add(stops.count, &memory.rest);
    stops.asleep += usize::from(asleep);
    if asleep && stops.registers.len() < pace.registers {
        let gdb = residency::gcore(subject.shim.pid(), subject.site.workload.path(), false).await?;
        // Whatever passed through them last: it need not be a key this time.
        assert!(gdb.vector_registers.is_empty(), "asleep, with {:?}", gdb.vector_registers);
        assert!(gdb.image.has_vector_registers());
        stops.rest.add(stops.count, &gdb.image.memory);
        stops.registers.push(gdb.image.notes);
    }
    stops.count += 1;
    stops.live.push(subject.live);
    subject.shim.signal(Signal::SIGCONT)
}

async fn hidden(kind: Kind, pace: Pace) -> testkit::Result {
    let stops = run(kind, Confinement::default(), pace).await?;
    // Every key against every image: the one that is being made is in none of them either.
    let hits = stops.rest.search(&stops.needles);
    assert!(hits.is_empty(), "keys are in memory that can be read: {hits:?}");
    assert_eq!(stops.keys_in_registers(), HashMap::new(), "keys are in registers of a sleeping process");
    assert_eq!(stops.refused, kind.secret << 10, "bytes of secret memory");
    let hits = stops.arena.search(&stops.needles);
    assert!(hits.is_empty(), "keys are in the arena: {hits:?}");
    Ok(())
}

/// The same where the arena can be read: the search must find keys at each stop, and those that were retired at none.
async fn live_alone(kind: Kind, pace: Pace) -> testkit::Result {
    let stops = run(kind, UNPROTECTED, pace).await?;
    let hits = stops.arena.search(&stops.needles);
    for (stop, live) in stops.live.iter().copied().enumerate() {
        let there: Vec<_> = hits.iter().filter(|hit| (hit.first..=hit.last).contains(&stop)).collect();
        // The live key, and the next one as soon as it is made.
        let served = |hit: &&Hit| hit.key == live || hit.key == live + 1;
        let lawful = |hit: &&Hit| served(hit) || hit.key == PRESENTED;
        assert!(there.iter().any(served), "no key is found at stop {stop}, so the search finds nothing");
        assert!(there.iter().all(lawful), "at stop {stop} of keys {live} and {}: {there:?}", live + 1);
    }
    let presented = hits.iter().any(|hit| hit.key == PRESENTED);
    assert_eq!(presented, kind == PROVISIONED, "whether the key is found that is presented to the CA");
    let hits = stops.rest.search(&stops.needles);
    assert!(hits.is_empty(), "keys are outside of the arena: {hits:?}");
    assert_eq!(stops.keys_in_registers(), HashMap::new(), "keys are in registers of a sleeping process");
    Ok(())
}

/// Its tests, one with secret memory and one without.
macro_rules! stopped {
    ($name:ident, $kind:expr, $pace:expr) => {
        mod $name {
            use super::*;

            #[tokio::test]
            async fn no_key_is_outside_of_secret_memory_at_any_moment() -> testkit::Result {
                hidden($kind, $pace).await
            }

            #[tokio::test]
            async fn no_retired_key_is_in_the_arena_at_any_moment() -> testkit::Result {
                live_alone($kind, Pace { stops: $pace.stops.min(control($kind)), ..$pace }).await
            }
        }
    };
}

/// How many stops the control takes: all, of the kind that most sidecars have.
fn control(kind: Kind) -> usize {
    if kind == P256 { STOPS } else { CONTROL_STOPS }
}

stopped!(p256, P256, Pace { registers: REGISTERS, ..FAST });
stopped!(p384, P384, FAST);
stopped!(rsa_2048, RSA_2048, SLOW);
stopped!(rsa_4096, RSA_4096, SLOWER);
stopped!(provisioned_and_written_to_files, PROVISIONED, FAST);
stopped!(mounted, MOUNTED, AFTER_A_PAUSE);
stopped!(named, NAMED, AFTER_A_PAUSE);
stopped!(told_by_a_workload_api, TOLD, FAST);
