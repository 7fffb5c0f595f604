//! Where key bytes are to be found by root: nowhere, since all are in secret memory; and where that is not to be had, the
//! live key and no retired one. These tests start the shim as another user, so they need root.

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

/// Where the served keys come from.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// They are made for the CA.
    Ca,
    /// They are mounted, and served as `default`.
    Files,
    /// They are asked for by the names of their files.
    Names,
}

/// A shim whose keys are looked for.
#[derive(Clone)]
struct Subject {
    source: Source,
    /// Variables that choose the kind of key and how it is used.
    variables: &'static [(&'static str, &'static str)],
    rotations: usize,
    /// KiB of secret memory.
    secret: usize,
}

const P256: Subject = Subject { source: Source::Ca, variables: &[], rotations: 30, secret: 32 };
const P384: &[(&str, &str)] = &[("ECC_CURVE", "P384")];
const RSA_2048: &[(&str, &str)] = &[("WORKLOAD_RSA_KEY_SIZE", "2048")];
const RSA_4096: &[(&str, &str)] = &[("WORKLOAD_RSA_KEY_SIZE", "4096"), ("PKCS8_KEY", "false")];
const MOUNTED: &[(&str, &str)] = &[("FILE_MOUNTED_CERTS", "true"), ("FILE_DEBOUNCE_DURATION", "10ms")];
const NAMED: &[(&str, &str)] = &[("FILE_DEBOUNCE_DURATION", "10ms")];
/// A key in files that is presented to the CA at each call; and all that is served is written to files.
const PROVISIONED: &[(&str, &str)] = &[("PROV_CERT", "prov"), ("OUTPUT_CERTS", "output"), ("PKCS8_KEY", "false")];

/// Lays a new key with its certificate into a directory of the workload, as kubelet does it. Returns the key.
fn mount(site: &Site, pki: &Pki, directory: &str) -> Result<String, Failure> {
    let leaf = Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600));
    let (Issued { chain_pem, key_pem }, roots) = (pki.issue(&leaf), pki.root_pem());
    let files = [("cert-chain.pem", chain_pem.as_str()), ("key.pem", &key_pem), ("root-cert.pem", &roots)];
    let volume = ProjectedVolume::create(&site.workload.path().join(directory), &files);
    let volume = volume.or_fail("write the mount")?;
    own(volume.dir(), UID, UID).or_fail("give it to the user of the shim")?;
    Ok(key_pem)
}

impl Subject {
    /// Rotates many times. Returns what is found then, the last key's number, the shim and its site.
    async fn rotate_and_search(&self, confinement: Confinement) -> Result<(Search, usize, Logged, Site), Failure> {
        let (site, mounted) = (Site::new().await?, Pki::new("mounted"));
        let mut needles = Needles::default();
        let mut shim = site.shim().confined(confinement);
        for (name, value) in self.variables {
            shim = shim.env(*name, *value);
            if *name == "PROV_CERT" {
                // One more than all others.
                needles.add(usize::MAX, &mount(&site, &site.pki, value)?)?;
            }
        }
        if self.source != Source::Ca {
            mount(&site, &mounted, "etc/certs")?;
        }
        let name = match self.source {
            Source::Names => "file-cert:etc/certs/cert-chain.pem~etc/certs/key.pem",
            Source::Ca | Source::Files => "default",
        };
        let mut shim = Logged(shim.start()?);
        let client = shim.connect().await?;
        let mut stream = client.stream();
        stream.send(sds::request(&[name]));
        let mut answer = stream.recv().await?;
        for key in 0..=self.rotations {
            if key > 0 {
                match self.source {
                    Source::Ca => shim.signal(Signal::SIGUSR1)?,
                    Source::Files | Source::Names => drop(mount(&site, &mounted, "etc/certs")?),
                }
                answer = stream.recv().await?;
            }
            needles.add(key, &sds::secrets(&answer)?.remove(0).key_pem)?;
            stream.send(sds::ack(&answer, &[name]));
        }
        // The last acknowledgement is taken, and the process sleeps.
        stream.expect_silence(QUIET).await?;
        Ok((search(shim.pid(), &needles)?, self.rotations, shim, site))
    }

    async fn hides_its_keys(self) -> Outcome {
        let (search, _, mut shim, _site) = self.rotate_and_search(Confinement::default()).await?;
        let Search { found, readable, refused } = search;
        println!("{:?}: {readable} bytes read, {refused} refused by the kernel, {found:?} found", self.variables);
        assert_eq!(refused, self.secret << 10, "bytes of secret memory");
        assert!(readable > 4 << 20, "the rest was not read");
        let status: serde_json::Value =
            serde_json::from_str(&shim.admin("/status").await?.text()).or_fail("read it")?;
        let memory = &status["memory"];
        if self.variables == RSA_4096 && memory["level"] == "locked" {
            // Two such keys and what signing takes fill all but a few KiB of it, and in pieces: what finds no room is told.
            assert_ne!(memory["keys_outside_of_secret_memory_bytes"], 0, "{memory}");
            shim.wait_for_log("not all keys are in secret memory: ").await?;
            return Ok(());
        }
        assert!(found.is_empty(), "windows found, by key: {found:?}");
        assert_eq!(memory["level"], "secret", "{memory}");
        assert_eq!(memory["keys_outside_of_secret_memory_bytes"], 0, "{memory}");
        println!("{:?}: {} bytes in use at the most", self.variables, memory["secret_peak_bytes"]);
        Ok(())
    }
}

#[tokio::test]
async fn root_finds_no_byte_of_any_p256_key() -> Outcome {
    P256.hides_its_keys().await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_p384_key() -> Outcome {
    Subject { variables: P384, rotations: 10, ..P256 }.hides_its_keys().await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_rsa_2048_key() -> Outcome {
    Subject { variables: RSA_2048, rotations: 4, secret: 64, ..P256 }.hides_its_keys().await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_rsa_4096_key() -> Outcome {
    Subject { variables: RSA_4096, rotations: 2, secret: 64, ..P256 }.hides_its_keys().await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_mounted_key() -> Outcome {
    Subject { source: Source::Files, variables: MOUNTED, secret: 64, ..P256 }.hides_its_keys().await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_key_that_is_named() -> Outcome {
    Subject { source: Source::Names, variables: NAMED, ..P256 }.hides_its_keys().await
}

#[tokio::test]
async fn root_finds_no_byte_of_a_provisioned_key_nor_of_those_that_are_written_to_files() -> Outcome {
    Subject { variables: PROVISIONED, secret: 64, ..P256 }.hides_its_keys().await
}

const UNPROTECTED: Confinement = Confinement { without_secret_memory: true, ..Confinement::DEFAULT };

/// The same search where keys are in memory that can be read: it must find the live key, or it could find nothing at
/// all; and no key that was retired.
#[tokio::test]
async fn readable_memory_holds_the_live_key_and_no_retired_one() -> Outcome {
    let (search, live, ..) = P256.rotate_and_search(UNPROTECTED).await?;
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
async fn readable_memory_holds_only_the_served_mounted_key() -> Outcome {
    let subject = Subject { source: Source::Files, variables: MOUNTED, ..P256 };
    let (search, live, ..) = subject.rotate_and_search(UNPROTECTED).await?;
    println!("{} bytes read, {:?} found", search.readable, search.found);
    assert_eq!(search.found, HashMap::from([(live, 36)]), "the live key as text in the encoded secret, and no other");
    Ok(())
}

/// RSA keys have many numbers: all of them of the live key alone.
#[tokio::test]
async fn readable_memory_holds_the_live_rsa_key_and_no_retired_one() -> Outcome {
    let subject = Subject { variables: RSA_2048, rotations: 3, ..P256 };
    let (search, live, ..) = subject.rotate_and_search(UNPROTECTED).await?;
    println!("{} bytes read, {:?} found", search.readable, search.found);
    assert_eq!(search.found.keys().collect::<Vec<_>>(), [&live], "{:?}", search.found);
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
