//! Core images of a running shim: no key is in them. Each search is made once more where keys are not protected, and
//! must find one there. These tests start the shim as another user and trace it, so they need root; and `gcore`,
//! which `make gdb` installs.

use std::{
    collections::HashMap,
    fs,
    os::unix::process::ExitStatusExt,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    confined::Confinement,
    fixture::{Logged, QUIET, Site},
    residency::{self, CoreImage, CorePattern, Gdb, Needles},
    sds::{self, SdsStream},
};

/// Rotations before the image.
const ROTATIONS: usize = 5;

/// A shim that has rotated a few times.
struct Subject {
    site: Site,
    shim: Logged,
    stream: SdsStream,
    needles: Needles,
    /// The number of the live key.
    live: usize,
}

impl Subject {
    async fn new(confinement: Confinement) -> Result<Self, Failure> {
        let site = Site::new().await?;
        let mut shim = Logged(site.shim().confined(confinement).start()?);
        let client = shim.connect().await?;
        let stream = client.stream();
        stream.send(sds::request(&["default"]));
        let mut subject = Self { site, shim, stream, needles: Needles::default(), live: 0 };
        subject.take(0).await?;
        for key in 1..=ROTATIONS {
            subject.shim.signal(Signal::SIGUSR1)?;
            subject.take(key).await?;
        }
        // The last acknowledgement is taken, and the process sleeps.
        subject.stream.expect_silence(QUIET).await?;
        Ok(subject)
    }

    async fn take(&mut self, key: usize) -> testkit::Result {
        let answer = self.stream.recv().await?;
        self.needles.add(key, &sds::secrets(&answer)?.remove(0).key_pem)?;
        self.stream.send(sds::ack(&answer, &["default"]));
        self.live = key;
        Ok(())
    }

    /// Windows of keys in an image's memory, and in its notes, by key.
    fn search(&self, image: &CoreImage) -> [HashMap<usize, usize>; 2] {
        let [mut memory, mut notes] = [HashMap::new(), HashMap::new()];
        for range in &image.memory {
            self.needles.count(&range.bytes, &mut memory);
        }
        self.needles.count(&image.notes, &mut notes);
        [memory, notes]
    }

    /// Dies of a signal, and returns what the kernel wrote.
    async fn die(&mut self) -> Result<CoreImage, Failure> {
        let pattern = CorePattern::hold().await?;
        // Every kind of mapping.
        fs::write(format!("/proc/{}/coredump_filter", self.shim.pid()), "0x7f").or_fail("ask for all mappings")?;
        self.shim.signal(Signal::SIGABRT)?;
        let status = self.shim.wait_exit().await?;
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
        assert!(status.core_dumped(), "no core was written");
        pattern.take(self.site.workload.path())
    }
}

fn exposed() -> Confinement {
    Confinement { without_secret_memory: true, ..Confinement::default() }
}

/// What an image must at least hold: the program's own data.
fn assert_whole(image: &CoreImage) {
    let bytes: usize = image.memory.iter().map(|range| range.bytes.len()).sum();
    println!("{bytes} bytes of memory, {} bytes of notes", image.notes.len());
    assert!(bytes > 1 << 20, "the image is too small to be one");
    assert!(image.has_vector_registers(), "the image has no registers");
}

#[tokio::test]
async fn gcore_gets_no_key_although_it_asks_for_everything() -> testkit::Result {
    let subject = Subject::new(Confinement::default()).await?;
    let secret: Vec<_> =
        residency::mappings(subject.shim.pid())?.into_iter().filter(residency::Mapping::is_secret).collect();
    let Gdb { image, said, .. } = residency::gcore(subject.shim.pid(), subject.site.workload.path(), true).await?;
    assert_whole(&image);
    assert_eq!(subject.search(&image), [HashMap::new(), HashMap::new()]);
    // Not because they are left out: gdb tries, and the kernel does not let it.
    for mapping in &secret {
        let refusal = format!(
            "Memory read failed for corefile section, {} bytes at {:#x}",
            mapping.size().min(1 << 20),
            mapping.start
        );
        assert!(said.contains(&refusal), "{refusal:?} is not in: {said}");
    }
    assert!(!secret.is_empty());
    Ok(())
}

#[tokio::test]
async fn gcore_finds_the_live_key_where_the_arena_can_be_read() -> testkit::Result {
    let subject = Subject::new(exposed()).await?;
    let directory = subject.site.workload.path();
    let Gdb { image, .. } = residency::gcore(subject.shim.pid(), directory, true).await?;
    let [memory, notes] = subject.search(&image);
    assert_eq!(memory.keys().copied().collect::<Vec<_>>(), [subject.live], "the live key alone must be found");
    assert!(notes.is_empty(), "registers of a sleeping process hold keys: {notes:?}");
    // Without that, the arena is left out, as the process asks.
    let Gdb { image, .. } = residency::gcore(subject.shim.pid(), directory, false).await?;
    assert_whole(&image);
    assert_eq!(subject.search(&image), [HashMap::new(), HashMap::new()]);
    Ok(())
}

#[tokio::test]
async fn a_core_by_the_kernel_holds_no_key() -> testkit::Result {
    // Where nothing is left out, secret memory alone keeps them away; else, the request to leave the arena out.
    let unhelped =
        Confinement { cores: true, dumpable: true, nothing_left_out_of_cores: true, ..Confinement::default() };
    for confinement in [unhelped, Confinement { cores: true, dumpable: true, ..exposed() }] {
        let mut subject = Subject::new(confinement).await?;
        let image = subject.die().await?;
        assert_whole(&image);
        assert_eq!(subject.search(&image), [HashMap::new(), HashMap::new()]);
    }
    Ok(())
}

#[tokio::test]
async fn a_core_by_the_kernel_holds_no_key_at_any_moment_of_a_rotation() -> testkit::Result {
    const MOMENTS: u32 = 6;
    for moment in 0..MOMENTS {
        let mut subject = Subject::new(Confinement { cores: true, dumpable: true, ..Confinement::default() }).await?;
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        subject.shim.signal(Signal::SIGUSR1)?;
        // A rotation takes some milliseconds; the lower digits of the clock are random enough.
        tokio::time::sleep(Duration::from_micros(u64::from(moment * 1000 + clock.subsec_micros() % 1000))).await;
        let image = subject.die().await?;
        assert_whole(&image);
        // Registers are another matter: it may have been running. If the new certificate is out, so is its key.
        if let Ok(answer) = subject.stream.recv().await {
            subject.needles.add(ROTATIONS + 1, &sds::secrets(&answer)?.remove(0).key_pem)?;
        }
        let [memory, _] = subject.search(&image);
        assert_eq!(memory, HashMap::new());
    }
    Ok(())
}

#[tokio::test]
async fn a_core_by_the_kernel_holds_the_live_key_where_nothing_protects_it() -> testkit::Result {
    let mut subject =
        Subject::new(Confinement { cores: true, dumpable: true, nothing_left_out_of_cores: true, ..exposed() }).await?;
    let image = subject.die().await?;
    let [memory, notes] = subject.search(&image);
    assert_eq!(memory.keys().copied().collect::<Vec<_>>(), [subject.live], "the live key alone must be found");
    assert!(notes.is_empty(), "registers of a sleeping process hold keys: {notes:?}");
    Ok(())
}

#[tokio::test]
async fn by_itself_it_writes_no_core() -> testkit::Result {
    let mut subject = Subject::new(Confinement { cores: true, ..Confinement::default() }).await?;
    let _pattern = CorePattern::hold().await?;
    subject.shim.signal(Signal::SIGABRT)?;
    let status = subject.shim.wait_exit().await?;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    assert!(!status.core_dumped());
    Ok(())
}
