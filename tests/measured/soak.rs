//! Exhaustion: clients like a fuzzer's, a CA that floods us, and a file that changes while it is read, for a quarter of
//! a minute, or for as long as `SOAK_SECONDS` says (`make soak`). The process lives within its memory, the honest stream
//! is served on time, and afterwards everything is as it was. This test starts the shim as another user, so it needs
//! root.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::signal::Signal,
};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    confined::{Confinement, MEMLOCK},
    development_ca::{Fault, Flood},
    fixture::Site,
    hostile::Attack,
    rng::Rng,
    sds::{self, SdsStream},
    shim::Shim,
};
use tokio::{
    runtime,
    time::{Instant, interval, sleep, timeout},
};
use tonic::Code;

/// Without `SOAK_SECONDS`.
const SHORT: Duration = Duration::from_secs(15);
/// Of each certificate; the next one is asked for when about half of it is over.
const LIFETIME: Duration = Duration::from_secs(8);
const ATTACKERS: usize = 8;
/// How far the arena's use may be from what it was: no more than one connection takes.
const FLAT: u64 = 16 << 10;
/// Renewals among which the least use of the arena is taken: others may be in the midst of something.
const RENEWALS: usize = 8;
/// The 16 connections, as many that are about to be refused, and a dozen of our own.
const MOST_DESCRIPTORS: usize = 48;

/// The shim, and the client that it is there for.
struct Honest {
    site: Site,
    shim: Shim,
    stream: SdsStream,
    descriptors: usize,
    peak: u64,
}

impl Honest {
    async fn new() -> Result<Self, Failure> {
        let site = Site::new().await?;
        site.ca.set_ttl(Some(LIFETIME));
        let builder = site.shim().confined(Confinement::default()).env("SDS_SHIM_LOG", "debug");
        let mut shim = builder.start()?;
        let stream = shim.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        let mut honest = Self { site, shim, stream, descriptors: 0, peak: 0 };
        honest.next().await?;
        Ok(honest)
    }

    /// The next certificate; what the process takes is looked at all the while.
    async fn next(&mut self) -> testkit::Result {
        let mut samples = interval(POLL);
        let answer = loop {
            let stream = &mut self.stream;
            tokio::select! {
                answer = stream.recv() => break answer,
                _ = samples.tick() => self.sample()?,
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                // When it has died, its last words say why.
                let _ = timeout(POLL * 10, self.shim.wait_exit()).await;
                return Err(self.shim.explain(failure));
            }
        };
        self.stream.send(sds::ack(&answer, &["default"]));
        Ok(())
    }

    fn sample(&mut self) -> testkit::Result {
        let status = fs::read_to_string(format!("/proc/{}/status", self.shim.pid()));
        let status = status.or_fail("read the status").map_err(|failure| self.shim.explain(failure))?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            number.ok_or_else(|| self.shim.failure(format!("the shim has ended: its status has no {name}")))
        };
        let (mapped, swapped, threads) = (number("VmSize")?, number("VmSwap")?, number("Threads")?);
        assert!(mapped <= MEMLOCK >> 10, "{mapped} KiB are mapped");
        assert_eq!(swapped, 0, "KiB are in swap");
        // One more while the CA's name is resolved.
        assert_eq!(threads, 1);
        self.peak = self.peak.max(mapped);
        self.descriptors = self.descriptors.max(self.open_descriptors()?);
        assert!(self.descriptors <= MOST_DESCRIPTORS, "{} descriptors", self.descriptors);
        Ok(())
    }

    fn open_descriptors(&self) -> Result<usize, Failure> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.shim.pid()));
        Ok(entries.or_fail("list the descriptors").map_err(|failure| self.shim.explain(failure))?.count())
    }

    /// The least use of the arena among a few renewals, once nobody else is connected.
    async fn at_rest(&mut self, descriptors: Option<usize>) -> Result<(u64, usize), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while descriptors.is_some_and(|wanted| self.open_descriptors().is_ok_and(|open| open > wanted)) {
            if Instant::now() > deadline {
                let open = self.open_descriptors()?;
                return Err(self.shim.failure(format!("{open} descriptors stay open, {descriptors:?} before")));
            }
            sleep(POLL).await;
        }
        let mark = self.shim.log().mark();
        for _ in 0..RENEWALS {
            let mark = self.shim.log().mark();
            self.shim.signal(Signal::SIGUSR1)?;
            self.next().await?;
            self.shim.wait_for_log_after(mark, "arena_used=").await?;
        }
        let lines = self.shim.log().lines();
        let uses = lines[mark..].iter().filter_map(|line| line.split("arena_used=").nth(1)?.parse().ok());
        Ok((uses.min().expect("there were renewals"), self.open_descriptors()?))
    }
}

impl Honest {
    /// Bytes of the arena that nobody had when most of it was in use.
    fn least_room(&self) -> Option<u64> {
        let lines = self.shim.log().lines();
        let told = |line: &String| line.split("arena_least_room=").nth(1)?.split(' ').next()?.parse().ok();
        lines.iter().rev().find_map(told)
    }
}

/// Attacks until told to end, in a thread of its own, so that the honest client and the CA have theirs.
struct Attackers {
    end: Arc<AtomicBool>,
    attacks: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Attackers {
    fn start(socket: &Path, rng: &mut Rng) -> Self {
        let (end, attacks) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let each: Vec<_> = (0..ATTACKERS)
            .map(|_| attack_on(socket.to_owned(), rng.split(), Arc::clone(&end), Arc::clone(&attacks)))
            .collect();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let tasks: Vec<_> = each.into_iter().map(tokio::spawn).collect();
                for task in tasks {
                    task.await.expect("an attacker does not fail");
                }
            });
        });
        Self { end, attacks, thread }
    }

    /// Returns how many attacks there were.
    fn stop(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("the attackers do not fail");
        self.attacks.load(Ordering::Relaxed)
    }
}

async fn attack_on(socket: PathBuf, mut rng: Rng, end: Arc<AtomicBool>, attacks: Arc<AtomicU64>) {
    while !end.load(Ordering::Relaxed) {
        Attack::ALL[rng.within(0..Attack::ALL.len())].run(&socket, &mut rng).await;
        attacks.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a CA can answer that is far too large.
fn too_much(rng: &mut Rng) -> Fault {
    let size = rng.within(1..5) << 20;
    match rng.below(6) {
        0 => Fault::Chain(vec!["A".repeat(size), "B".to_owned()]),
        1 => Fault::mutate(move |chain| [chain, vec!["C".repeat(size)]].concat()),
        2 => Fault::mutate(move |chain| chain.iter().cycle().take(size >> 10).cloned().collect()),
        3 => Fault::Flood(Flood::ALL[rng.within(0..Flood::ALL.len())]),
        4 => {
            let names = vec!["a.b".to_owned(); rng.within(1..6000)];
            Fault::sign(move |sign| sign.leaf.dns.clone_from(&names))
        }
        _ => Fault::Status(Code::Unavailable, "D".repeat(size)),
    }
}

/// A file that somebody asks for, and that is exchanged for another one all the time: of no content, and of many bytes
/// that are no text.
struct Exchanged {
    end: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
    _stream: SdsStream,
}

impl Exchanged {
    async fn start(honest: &mut Honest) -> Result<Self, Failure> {
        let directory = honest.site.workload.path();
        let files = ["exchanged.pem", "exchanged.other"].map(|name| directory.join(name));
        for (file, size) in files.iter().zip([0, 380 << 10]) {
            fs::write(file, vec![0xff; size]).or_fail("write a file")?;
        }
        let stream = honest.shim.connect().await?.stream();
        stream.send(sds::request(&["file-root:./exchanged.pem"]));
        let end = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || {
            let [one, other] = files;
            while !ended.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).expect("two files");
                thread::sleep(Duration::from_micros(200));
            }
        });
        Ok(Self { end, thread, _stream: stream })
    }

    fn stop(self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not fail");
    }
}

#[tokio::test]
async fn nothing_that_clients_or_the_ca_do_exhausts_it() -> testkit::Result {
    let given = std::env::var("SOAK_SECONDS").ok();
    let duration = given.map_or(SHORT, |text| Duration::from_secs(text.parse().expect("SOAK_SECONDS is a number")));
    let mut rng = Rng::seeded();
    let mut honest = Honest::new().await?;
    let (_, alone) = honest.at_rest(None).await?;
    // Buffers that are kept for reuse have their size after the first attack of each kind.
    for attack in Attack::ALL {
        attack.run(honest.shim.socket(), &mut rng).await;
    }
    let (before, _) = honest.at_rest(Some(alone)).await?;

    let exchanged = Exchanged::start(&mut honest).await?;
    let attackers = Attackers::start(honest.shim.socket(), &mut rng);
    let end = Instant::now() + duration;
    let (mut rotations, mut longest) = (0, Duration::ZERO);
    while Instant::now() < end {
        if rng.below(2) == 0 {
            honest.site.ca.push_fault(too_much(&mut rng));
        }
        let asked = Instant::now();
        honest.next().await?;
        rotations += 1;
        longest = longest.max(asked.elapsed());
        // On time: what was served until now has not expired.
        if asked.elapsed() >= LIFETIME {
            let late = format!("a certificate of {LIFETIME:?} was replaced after {:?}", asked.elapsed());
            return Err(honest.shim.failure(late));
        }
    }
    let attacks = attackers.stop();
    exchanged.stop();
    honest.site.ca.set_fault(None);
    let (after, descriptors) = honest.at_rest(Some(alone)).await?;
    let room = honest.least_room().expect("it is told at each renewal");
    println!(
        "{attacks} attacks in {duration:?}; {rotations} rotations, the longest wait {longest:?} of {LIFETIME:?}; VmSize \
         at most {} KiB, at most {} descriptors; arena {before} bytes before, {after} after, smallest room {room}; \
         {alone} descriptors before, {descriptors} after",
        honest.peak, honest.descriptors,
    );
    assert!(attacks >= 20 && rotations >= 2, "too little happened");
    assert!(honest.descriptors > alone, "no attacker was ever connected");
    assert_eq!(descriptors, alone);
    assert!(before.abs_diff(after) <= FLAT, "{before} bytes of the arena were in use before, {after} after");
    Ok(())
}
