//! Where key bytes are to be found by root: nowhere in secret memory; and where the arena can be read, the live key
//! and no retired one. These tests start the shim as another user, so they need root.

mod common;

use std::{collections::HashMap, time::Duration};

use common::{Logged, QUIET, Site};
use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    confined::{Confinement, UID, own},
    development_ca::{Issued, Leaf, Pki, ProjectedVolume},
    pilot_agent::PilotAgent,
    residency::{self, Needles},
    sds,
};

type Outcome = Result<(), Failure>;

const ROTATIONS: usize = 30;
/// What root finds in the memory of a process.
struct Search {
    /// Windows found, by key.
    found: HashMap<usize, usize>,
    readable: usize,
    refused: usize,
}

fn search(pid: u32, needles: &Needles) -> Result<Search, Failure> {
    let memory = residency::memory(pid)?;
    let mut search = Search { found: HashMap::new(), readable: 0, refused: memory.refused };
    for range in memory.ranges() {
        search.readable += range.bytes.len();
        needles.count(&range.bytes, &mut search.found);
    }
    Ok(search)
}

/// Where the keys come from: they are made for the CA, or mounted.
#[derive(Clone, Copy)]
enum Source {
    Ca,
    Files,
}

/// Writes a new key with its certificate into the mount of a workload, as kubelet does it.
fn mount(site: &Site, pki: &Pki) -> Outcome {
    let leaf = Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600));
    let (Issued { chain_pem, key_pem }, roots) = (pki.issue(&leaf), pki.root_pem());
    let files = [("cert-chain.pem", chain_pem.as_str()), ("key.pem", &key_pem), ("root-cert.pem", &roots)];
    let volume = ProjectedVolume::create(&site.workload.path().join("etc/certs"), &files);
    let volume = volume.or_fail("write the mount")?;
    own(volume.dir(), UID, UID).or_fail("give it to the user of the shim")
}

/// Rotates many times, and returns what is found then, the last key's number and the shim.
async fn rotate_and_search(confinement: Confinement, source: Source) -> Result<(Search, usize), Failure> {
    let (site, pki) = (Site::new().await?, Pki::new("mounted"));
    let shim = match source {
        Source::Ca => site.shim(),
        Source::Files => {
            mount(&site, &pki)?;
            site.shim().env("FILE_MOUNTED_CERTS", "true").env("FILE_DEBOUNCE_DURATION", "10ms")
        }
    };
    let mut shim = Logged(shim.confined(confinement).start()?);
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let mut needles = Needles::default();
    let mut answer = stream.recv().await?;
    for key in 0..=ROTATIONS {
        if key > 0 {
            match source {
                Source::Ca => shim.signal(Signal::SIGUSR1)?,
                Source::Files => mount(&site, &pki)?,
            }
            answer = stream.recv().await?;
        }
        let secret = sds::secrets(&answer)?.remove(0);
        needles.add(key, &secret.key_pem)?;
        stream.send(sds::ack(&answer, &["default"]));
    }
    // The last acknowledgement is taken, and the process sleeps.
    stream.expect_silence(QUIET).await?;
    Ok((search(shim.pid(), &needles)?, ROTATIONS))
}

#[tokio::test]
async fn root_finds_no_byte_of_any_key_outside_of_secret_memory() -> Outcome {
    for source in [Source::Ca, Source::Files] {
        let (search, _) = rotate_and_search(Confinement::default(), source).await?;
        println!(
            "{} bytes read, {} bytes refused by the kernel, {:?} found",
            search.readable, search.refused, search.found
        );
        assert!(search.found.is_empty(), "windows found, by key: {:?}", search.found);
        assert!(search.refused >= (2 << 20) - 3 * 4096, "the arena can be read");
        assert!(search.readable > 4 << 20, "the rest was not read");
    }
    Ok(())
}

/// The same search where the arena can be read: it must find the live key, or it could find nothing at all; and no
/// key that was retired.
#[tokio::test]
async fn where_the_arena_can_be_read_it_holds_the_live_key_and_no_retired_one() -> Outcome {
    let confinement = Confinement { without_secret_memory: true, ..Confinement::default() };
    let (search, live) = rotate_and_search(confinement, Source::Ca).await?;
    println!("{} bytes read, {:?} found", search.readable, search.found);
    // One copy as a number in OpenSSL's key, and one as text in the encoded secret that all streams share: 32 bytes
    // have 25 windows, 42 characters and a newline have 36.
    assert_eq!(search.found.get(&live), Some(&(25 + 36)), "the live key must be found, and not more often");
    let retired: Vec<_> = search.found.keys().filter(|key| **key != live).collect();
    assert!(retired.is_empty(), "retired keys {retired:?} of {live} are still there: {:?}", search.found);
    Ok(())
}

/// Of a key that is read from a file nothing is left but what is served.
#[tokio::test]
async fn where_the_arena_can_be_read_it_holds_the_mounted_key_that_is_served_and_no_retired_one() -> Outcome {
    let confinement = Confinement { without_secret_memory: true, ..Confinement::default() };
    let (search, live) = rotate_and_search(confinement, Source::Files).await?;
    println!("{} bytes read, {:?} found", search.readable, search.found);
    assert_eq!(search.found, HashMap::from([(live, 36)]), "the live key as text in the encoded secret, and no other");
    Ok(())
}

/// The positive control with an ordinary allocator: Istio's agent, which holds its keys as everybody does. The same
/// search must find them there, the live one and, as nothing wipes it, usually also one that was retired.
#[tokio::test]
async fn the_search_finds_the_keys_of_a_process_with_an_ordinary_allocator() -> Outcome {
    let site = Site::new().await?;
    site.ca.set_ttl(Some(Duration::from_secs(20)));
    let agent = PilotAgent::for_workload(&site.workload, site.ca.address())?
        // Every two seconds; and a key whose number is searched for as ours are.
        .env("SECRET_GRACE_PERIOD_RATIO", "0.9")
        .env("ECC_SIGNATURE_ALGORITHM", "ECDSA")
        .env("PKCS8_KEY", "true");
    let mut agent = agent.start()?;
    let mut stream = agent.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let mut needles = Needles::default();
    const KEYS: usize = 3;
    for key in 0..KEYS {
        let answer = stream.recv().await?;
        needles.add(key, &sds::secrets(&answer)?.remove(0).key_pem)?;
        stream.send(sds::ack(&answer, &["default"]));
    }
    let search = search(agent.pid(), &needles)?;
    println!("{} bytes read, windows found by key: {:?}", search.readable, search.found);
    assert!(search.found.contains_key(&(KEYS - 1)), "the live key is not found: {:?}", search.found);
    Ok(())
}
