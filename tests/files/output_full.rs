//! `OUTPUT_CERTS` on a file system that is full: a small tmpfs in a mount namespace of the shim's own, so these tests
//! need root.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use openssl::{pkey::PKey, x509::X509};
use serde_json::Value;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    fixture::{Logged, Site},
    sds::{self, SdsStream},
};
use tokio::time::{Instant, sleep};

/// Size of the file system, and of its blocks.
const SIZE: usize = 64 << 10;
const BLOCK: usize = 4096;
const FILLER: &str = "filler";
const NAMES: [&str; 6] = ["..data", "cert-chain.pem", "key.pem", "root-cert.pem", "spiffe-bundle-map.json", FILLER];

/// A shim that writes into the small file system, with an open stream for its certificate.
struct Cramped {
    site: Site,
    shim: Logged,
    stream: SdsStream,
    output: PathBuf,
}

impl Cramped {
    async fn start() -> Result<Self, Failure> {
        let site = Site::new().await?;
        let inside = site.workload.path().join("output");
        fs::create_dir(&inside).or_fail("make the mount point")?;
        let script = format!("mount -t tmpfs -o size={SIZE} none output && exec \"$0\" \"$@\"");
        let launcher = ["unshare", "--mount", "sh", "-c", &script];
        let shim = site.shim().through(&launcher).env("OUTPUT_CERTS", inside.display().to_string());
        let mut shim = Logged(shim.start()?);
        let stream = shim.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        // Seen from where the shim is; nothing of it is to be seen from here.
        let root = PathBuf::from(format!("/proc/{}/root", shim.pid()));
        let output = root.join(inside.strip_prefix("/").or_fail("an absolute path")?);
        assert_eq!(fs::read_dir(&inside).or_fail("list the mount point")?.count(), 0);
        let mut cramped = Self { site, shim, stream, output };
        let served = cramped.served().await?;
        cramped.written(&served).await?;
        Ok(cramped)
    }

    /// The serial number of the next certificate that is pushed.
    async fn served(&mut self) -> Result<String, Failure> {
        let answer = self.stream.recv().await.map_err(|failure| self.shim.explain(failure))?;
        self.stream.send(sds::ack(&answer, &["default"]));
        sds::secrets(&answer)?.remove(0).serial()
    }

    async fn renew(&mut self) -> Result<String, Failure> {
        self.shim.signal(Signal::SIGUSR1)?;
        self.served().await
    }

    /// Waits until the files hold this certificate.
    async fn written(&self, serial: &str) -> testkit::Result {
        let deadline = Instant::now() + PATIENCE;
        while whole(&self.output).ok().as_deref() != Some(serial) {
            if Instant::now() > deadline {
                return Err(self.shim.failure(format!("{serial} was not written")));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Leaves room for so many blocks.
    fn fill(&self, blocks: usize) -> testkit::Result {
        let mut filler = File::create(self.output.join(FILLER)).or_fail("make the filler")?;
        let error = loop {
            if let Err(error) = filler.write_all(&[0; BLOCK]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        let length = filler.metadata().or_fail("look at the filler")?.len();
        filler.set_len(length - (blocks * BLOCK) as u64).or_fail("make room")
    }

    async fn output_facts(&mut self) -> Result<Value, Failure> {
        let status = self.shim.admin("/status").await?.text();
        Ok(serde_json::from_str::<Value>(&status).or_fail("read the status")?["output"].take())
    }

    /// Waits until so many attempts to write have failed.
    async fn failed(&mut self, least: u64) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let facts = self.output_facts().await?;
            if facts["failed"].as_u64() >= Some(least) {
                return Ok(facts);
            }
            if Instant::now() > deadline {
                return Err(self.shim.failure(format!("not so many failures: {facts}")));
            }
            sleep(POLL).await;
        }
    }
}

/// The serial number of what the files hold, which must be whole and belong together.
fn whole(output: &Path) -> Result<String, Failure> {
    let generation = output.join(fs::read_link(output.join("..data")).or_fail("follow the link")?);
    let read = |name: &str| fs::read(generation.join(name)).or_fail("read a file");
    let chain = X509::stack_from_pem(&read("cert-chain.pem")?).or_fail("parse the chain")?;
    let key = PKey::private_key_from_pem(&read("key.pem")?).or_fail("parse the key")?;
    assert!(chain[0].public_key().or_fail("the leaf's key")?.public_eq(&key), "key and chain of two generations");
    assert_eq!(X509::stack_from_pem(&read("root-cert.pem")?).or_fail("parse the roots")?.len(), 1);
    testkit::tls::serial(&chain[0])
}

/// What lies in the directory, generations left out; there must be one.
fn names(output: &Path) -> Result<BTreeSet<String>, Failure> {
    let entries = fs::read_dir(output).or_fail("list the files")?.flatten();
    let names: BTreeSet<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let (generations, others): (BTreeSet<_>, BTreeSet<_>) =
        names.into_iter().partition(|name| name.starts_with("..") && name != "..data");
    assert_eq!(generations.len(), 1, "{generations:?}");
    Ok(others)
}

/// With no room at all not even the key is written; with one block it is, and the chain is not.
async fn a_full_file_system_costs_nothing_but_the_files(blocks: usize) -> testkit::Result {
    let mut cramped = Cramped::start().await?;
    let before = whole(&cramped.output)?;
    cramped.fill(blocks)?;
    let mark = cramped.shim.log().mark();
    cramped.renew().await?;
    let facts = cramped.failed(1).await?;
    let told = facts["trouble"].as_str().unwrap_or_default();
    let file = if blocks == 0 { "key.pem" } else { "cert-chain.pem" };
    assert!(told.contains(&format!("{file}: No space left on device")) && told.contains("free some space"), "{told}");
    cramped.shim.wait_for_log("the previous files stay in place; retrying every 5 s").await?;
    let metrics = cramped.shim.admin("/metrics").await?.text();
    assert!(metrics.contains("\nsds_shim_output_current 0\n"), "{metrics}");

    // It is served on and on meanwhile, and what was written stays as it was, whatever is tried.
    let held = cramped.renew().await?;
    let facts = cramped.failed(3).await?;
    assert!(facts["written"].is_string(), "{facts}");
    assert_eq!(whole(&cramped.output)?, before);
    assert_eq!(names(&cramped.output)?, NAMES.map(str::to_owned).into());
    let lines = cramped.shim.log().lines();
    let told = lines[mark..].iter().filter(|line| line.contains("No space left")).count();
    assert_eq!(told, 1, "the same trouble is told once: {lines:#?}");

    // Room again: no restart, and nobody has to ask.
    fs::remove_file(cramped.output.join(FILLER)).or_fail("make room")?;
    cramped.written(&held).await?;
    cramped.shim.wait_for_log("writing succeeds again").await?;
    let facts = cramped.output_facts().await?;
    assert!(facts["trouble"].is_null(), "{facts}");
    let metrics = cramped.shim.admin("/metrics").await?.text();
    assert!(metrics.contains("\nsds_shim_output_current 1\n"), "{metrics}");
    assert_eq!(names(&cramped.output)?.len(), NAMES.len() - 1);
    assert_eq!(cramped.site.ca.calls().len(), 3, "no failure to write costs a call to the CA");
    Ok(())
}

#[tokio::test]
async fn a_file_system_without_any_room_costs_nothing_but_the_files() -> testkit::Result {
    a_full_file_system_costs_nothing_but_the_files(0).await
}

#[tokio::test]
async fn a_file_system_that_fills_up_in_the_middle_costs_nothing_but_the_files() -> testkit::Result {
    a_full_file_system_costs_nothing_but_the_files(1).await
}
