//! Where key bytes are at random moments of rotations: the process is stopped a hundred times, and each time all of
//! its memory is read, and its registers when it sleeps. These tests need root, and `gcore`, which
//! `make gdb` installs.

mod common;

use std::{
    collections::HashMap,
    fs, thread,
    time::{Duration, Instant},
};

use common::{Logged, Site};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail, PATIENCE,
    confined::Confinement,
    residency::{self, Hit, Needles, Pages},
    rng::Rng,
    sds,
};
use tokio::task::spawn_blocking;

type Outcome = Result<(), Failure>;

/// At least so many stops.
const STOPS: usize = 100;
/// At least so many of them while it sleeps, and so many while it does not.
const OF_EACH_KIND: usize = 10;
/// However unlikely the machine makes one kind.
const MOST_STOPS: usize = 600;
/// Images with registers; each takes gdb a tenth of a second.
const REGISTERS: usize = 25;
/// A rotation takes less than this, unless the machine is busy.
const SPREAD: u64 = 6000;

/// All that was seen in one run. Stop `n` is in the rotation from key `n` to key `n + 1`.
#[derive(Default)]
struct Stops {
    count: usize,
    asleep: usize,
    arena: Pages,
    rest: Pages,
    /// Notes of the images of sleeping moments.
    registers: Vec<Vec<u8>>,
    needles: Needles,
    refused: usize,
}

impl Stops {
    fn enough(&self) -> bool {
        let kinds = self.asleep.min(self.count - self.asleep);
        self.count >= STOPS && (kinds >= OF_EACH_KIND || self.count >= MOST_STOPS)
    }

    fn keys_in_registers(&self) -> HashMap<usize, usize> {
        let mut found = HashMap::new();
        for notes in &self.registers {
            self.needles.count(notes, &mut found);
        }
        found
    }

    fn report(&self) {
        println!(
            "{} stops, {} of them asleep, {} images with registers; {} bytes of arena and {} others to search",
            self.count,
            self.asleep,
            self.registers.len(),
            self.arena.bytes(),
            self.rest.bytes(),
        );
        let awake = self.count - self.asleep;
        assert!(self.asleep >= OF_EACH_KIND && awake >= OF_EACH_KIND, "too few stops of one kind");
        assert!(self.registers.len() >= OF_EACH_KIND);
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
/// takes between two tasks.
fn asleep(pid: u32) -> Result<bool, Failure> {
    const EPOLL_WAIT: &str = "232";
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).or_fail("read the system call")?;
    let mut fields = call.split_whitespace();
    Ok(fields.next() == Some(EPOLL_WAIT) && fields.nth(3).is_some_and(|timeout| timeout != "0x0"))
}

async fn run(confinement: Confinement) -> Result<Stops, Failure> {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().confined(confinement).start()?);
    let mut rng = Rng::seeded();
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let mut stops = Stops::default();
    loop {
        let answer = stream.recv().await?;
        stops.needles.add(stops.count, &sds::secrets(&answer)?.remove(0).key_pem)?;
        stream.send(sds::ack(&answer, &["default"]));
        if stops.enough() {
            break;
        }
        shim.signal(Signal::SIGUSR1)?;
        let asleep = stop_after(shim.pid(), Duration::from_micros(rng.below(SPREAD))).await?;
        let memory = residency::memory(shim.pid())?;
        stops.refused = stops.refused.max(memory.refused);
        stops.arena.add(stops.count, &memory.arena);
        stops.rest.add(stops.count, &memory.rest);
        stops.asleep += usize::from(asleep);
        if asleep && stops.registers.len() < REGISTERS {
            let gdb = residency::gcore(shim.pid(), site.workload.path(), false).await?;
            // Whatever passed through them last: it need not be a key this time.
            assert!(gdb.vector_registers.is_empty(), "asleep, with {:?}", gdb.vector_registers);
            assert!(gdb.image.has_vector_registers());
            stops.rest.add(stops.count, &gdb.image.memory);
            stops.registers.push(gdb.image.notes);
        }
        stops.count += 1;
        shim.signal(Signal::SIGCONT)?;
    }
    stops.report();
    Ok(stops)
}

#[tokio::test]
async fn no_key_is_outside_of_secret_memory_at_any_moment() -> Outcome {
    let stops = run(Confinement::default()).await?;
    // Every key against every image: the one that is being made is in none of them either.
    let hits = stops.rest.search(&stops.needles);
    assert!(hits.is_empty(), "keys are in memory that can be read: {hits:?}");
    assert_eq!(stops.keys_in_registers(), HashMap::new(), "keys are in registers of a sleeping process");
    assert_eq!(stops.refused, 32 << 10, "bytes of secret memory");
    let hits = stops.arena.search(&stops.needles);
    assert!(hits.is_empty(), "keys are in the arena: {hits:?}");
    Ok(())
}

/// The same where the arena can be read: the search must find keys at each stop, and those that were retired at none.
#[tokio::test]
async fn no_retired_key_is_in_the_arena_at_any_moment() -> Outcome {
    let stops = run(Confinement { without_secret_memory: true, ..Confinement::default() }).await?;
    let hits = stops.arena.search(&stops.needles);
    for stop in 0..stops.count {
        let there: Vec<_> = hits.iter().filter(|hit| (hit.first..=hit.last).contains(&stop)).collect();
        // The live key, and the next one as soon as it is made.
        let lawful = |hit: &&Hit| hit.key == stop || hit.key == stop + 1;
        assert!(there.iter().any(lawful), "no key is found at stop {stop}, so the search finds nothing");
        assert!(there.iter().all(lawful), "at stop {stop} of keys {stop} and {}: {there:?}", stop + 1);
    }
    let hits = stops.rest.search(&stops.needles);
    assert!(hits.is_empty(), "keys are outside of the arena: {hits:?}");
    assert_eq!(stops.keys_in_registers(), HashMap::new(), "keys are in registers of a sleeping process");
    Ok(())
}
