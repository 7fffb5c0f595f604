//! The memory budgets, on the shipped binary as an ordinary user without capabilities under 8 MiB of locked memory.
//! These tests start the shim as another user, so they need root.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail,
    confined::{Confinement, MEMLOCK, UID, own},
    development_ca::{Fault, Issued, Leaf, Pki, ProjectedVolume},
    fixture::{Logged, QUIET, Site},
    sds::{self, SdsClient},
};

/// The kernel's own pages in every process (vvar, vdso) and the guard pages cannot be locked.
const UNLOCKABLE_KIB: u64 = 64;

/// A line of `/proc/PID/status`, in KiB or as a plain number.
fn status(shim: &Logged, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", shim.pid())).expect("the shim runs");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the kernel tells it");
    value.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What the arena bears at the same time, with room for a renewal.
const CONNECTIONS: usize = 16;
const STREAMS: usize = 200;

async fn confined(site: &Site, confinement: Confinement) -> Result<(Logged, SdsClient), Failure> {
    let mut shim = Logged(site.shim().confined(confinement).env("SDS_SHIM_LOG", "debug").start()?);
    let client = shim.connect().await?;
    Ok((shim, client))
}

/// How often the process was scheduled, of its own will or not.
fn wakeups(shim: &Logged) -> u64 {
    status(shim, "voluntary_ctxt_switches") + status(shim, "nonvoluntary_ctxt_switches")
}

/// What the arena held each time the shim went to sleep until a renewal: this field of the log.
fn arena_uses(shim: &Logged, field: &str) -> Vec<u64> {
    let lines = shim.log().lines();
    lines.iter().filter_map(|line| line.split(field).nth(1)?.split(' ').next()?.parse().ok()).collect()
}

#[tokio::test]
async fn everything_is_locked_within_eight_mebibytes_whatever_happens() -> testkit::Result {
    let site = Site::new().await?;
    let (mut shim, client) = confined(&site, Confinement::default()).await?;
    shim.wait_for_log("keys are in secret memory (32 KiB), the whole process is locked").await?;
    let mut witness = client.stream();
    witness.send(sds::request(&["default"]));
    let mut last = witness.recv().await?;
    witness.send(sds::ack(&last, &["default"]));

    // A CA that is down, and one that answers with a megabyte.
    for fault in [
        Fault::Status(tonic::Code::Unavailable, "down".to_owned()),
        Fault::Chain(vec!["A".repeat(1 << 20), "B".to_owned()]),
    ] {
        let mark = shim.log().mark();
        site.ca.push_fault(fault);
        shim.signal(Signal::SIGUSR1)?;
        shim.wait_for_log_after(mark, "renewal failed").await?;
        last = witness.recv().await?;
        witness.send(sds::ack(&last, &["default"]));
    }

    // As many connections, this one among them, with as many streams as the README says that the arena bears.
    let mut clients = Vec::new();
    for _ in 1..CONNECTIONS {
        clients.push(SdsClient::connect(shim.socket()).await.or_fail("connect")?);
    }
    let mut streams = Vec::new();
    for number in 1..STREAMS {
        let mut stream = clients[number % clients.len()].stream();
        stream.send(sds::request(&["default"]));
        stream.recv().await?;
        streams.push(stream);
    }
    shim.signal(Signal::SIGUSR1)?;
    for stream in &mut streams {
        stream.recv().await?;
    }
    last = witness.recv().await?;
    witness.send(sds::ack(&last, &["default"]));

    // Everything that is shown, at the moment when there is most to show.
    for path in ["/metrics", "/status", "/status/row", "/readyz", "/livez"] {
        let answer = shim.admin(path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        println!("{path}: {} bytes", answer.body.len());
    }

    let (peak, locked, mapped) = (status(&shim, "VmPeak"), status(&shim, "VmLck"), status(&shim, "VmSize"));
    println!("VmPeak {peak} KiB, VmSize {mapped} KiB, VmLck {locked} KiB, VmRSS {} KiB", status(&shim, "VmRSS"));
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    assert!(locked + UNLOCKABLE_KIB >= mapped, "{locked} of {mapped} KiB are locked");
    assert_eq!(status(&shim, "VmSwap"), 0);
    Ok(())
}

#[tokio::test]
async fn thousands_of_rotations_leave_the_heap_as_it_was() -> testkit::Result {
    const ROTATIONS: usize = 2500;
    const SAMPLE: usize = 100;
    let site = Site::new().await?;
    let (shim, client) = confined(&site, Confinement::default()).await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let mut last = stream.recv().await?;
    for _ in 0..ROTATIONS {
        stream.send(sds::ack(&last, &["default"]));
        shim.signal(Signal::SIGUSR1)?;
        let next = stream.recv().await?;
        assert_ne!(next.version_info, last.version_info);
        last = next;
    }
    let least = |uses: &[u64]| uses.iter().copied().min().expect("there are some");
    // In blocks as well: the small ones of OpenSSL's lie in a piece that is in use as a whole.
    for (field, what, most) in [("arena_used=", "bytes", 1024), ("arena_blocks=", "blocks", 8)] {
        let uses = arena_uses(&shim, field);
        assert!(uses.len() >= ROTATIONS, "{} rotations were logged", uses.len());
        // Buffers that are kept for reuse have grown to their size within the first hundred.
        let (before, after) = (least(&uses[SAMPLE..2 * SAMPLE]), least(&uses[uses.len() - SAMPLE..]));
        println!("arena in use: {before} {what} at first, {after} after {ROTATIONS} rotations");
        assert!(before.abs_diff(after) <= most, "{before} {what} at first, {after} after {ROTATIONS} rotations");
    }
    assert!(status(&shim, "VmPeak") <= MEMLOCK >> 10);
    Ok(())
}

/// Everything that reads files is on: a mount on the way to the CA, revocation lists, several trust domains, a trust
/// domain that changes, further anchors, files written elsewhere.
#[tokio::test]
async fn everything_that_reads_files_fits() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_trust_domains(&["cluster.local", "new.example"]);
    let path = site.workload.path();
    let put = |name: &str, content: &str| fs::write(path.join(name), content).or_fail(format!("write {name}"));
    let pki = Pki::new("mounted");
    let mount = || {
        let leaf = Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600));
        let (Issued { chain_pem, key_pem }, roots) = (pki.issue(&leaf), pki.root_pem());
        let files = [("cert-chain.pem", chain_pem.as_str()), ("key.pem", &key_pem), ("root-cert.pem", &roots)];
        ProjectedVolume::create(&path.join("etc/certs"), &files).or_fail("write the mount")?;
        own(&path.join("etc"), UID, UID).or_fail("give it to the user of the shim")
    };
    mount()?;
    let revoked: Vec<_> = (0..100)
        .map(|_| site.pki.issue(&Leaf::workload("spiffe://cluster.local/ns/a/sa/b", Duration::from_secs(60))))
        .collect();
    let lists = [
        site.pki.crl(&revoked.iter().collect::<Vec<_>>(), 3600),
        site.pki.root_crl(&[], 3600),
        pki.crl(&[], 3600),
        pki.root_crl(&[], 3600),
    ];
    put("lists.pem", &lists.concat())?;
    let anchors = |count: usize| (0..count).map(|number| Pki::new(&number.to_string()).root_pem()).collect::<String>();
    put("other.pem", &anchors(10))?;
    put("more.pem", &anchors(20))?;
    put("trust-domain", "cluster.local")?;
    site.ca.set_fault(Some(Fault::Status(tonic::Code::Unavailable, "down".to_owned())));
    let shim = site.shim().confined(Confinement::default()).env("FILE_MOUNTED_CERTS", "true");
    let shim = shim.env("SDS_SHIM_SOURCE", "auto").env("SDS_SHIM_CRL", "./lists.pem");
    let shim = shim.env("SDS_SHIM_BUNDLES", "new.example=./other.pem,other.example=./other.pem");
    let shim = shim.env("SDS_SHIM_TRUST_DOMAIN_FILE", "./trust-domain").env("SDS_SHIM_EXTRA_ROOTS", "./more.pem");
    let mut shim = Logged(shim.env("OUTPUT_CERTS", "./output").start()?);
    let mut streams = Vec::new();
    for _ in 0..8 {
        let client = shim.connect().await?;
        for name in
            ["default", "ROOTCA", "file-cert:./etc/certs/cert-chain.pem~./etc/certs/key.pem", "file-root:./more.pem"]
        {
            let mut stream = client.stream();
            stream.send(sds::request(&[name]));
            let answer = stream.recv().await.map_err(|failure| shim.explain(failure))?;
            stream.send(sds::ack(&answer, &[name]));
            streams.push((name, stream));
        }
    }
    let mut next = async |wanted: &str| {
        for (name, stream) in streams.iter_mut().filter(|(name, _)| *name == wanted) {
            let answer = stream.recv().await.map_err(|failure| shim.explain(failure))?;
            stream.send(sds::ack(&answer, &[name]));
        }
        Ok::<_, Failure>(())
    };
    for _ in 0..5 {
        mount()?;
        next("default").await?;
    }
    site.ca.set_fault(None);
    shim.signal(Signal::SIGUSR1)?;
    next("default").await?;
    put("trust-domain", "new.example")?;
    next("default").await?;
    for path in ["/metrics", "/status", "/status/row", "/readyz", "/livez"] {
        let answer = shim.admin(path).await?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    let (peak, mapped) = (status(&shim, "VmPeak"), status(&shim, "VmSize"));
    println!("VmPeak {peak} KiB, VmSize {mapped} KiB, VmRSS {} KiB", status(&shim, "VmRSS"));
    shim.wait_for_log("keys are in secret memory (64 KiB), the whole process is locked").await?;
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    assert_eq!(shim.log().count("not enough arena memory"), 0, "{:#?}", shim.log().lines());
    Ok(())
}

#[tokio::test]
async fn an_idle_shim_is_small_and_sleeps() -> testkit::Result {
    const MINUTE: Duration = Duration::from_secs(60);
    let site = Site::new().await?;
    let (shim, client) = confined(&site, Confinement::default()).await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default", "ROOTCA"]));
    let answer = stream.recv().await?;
    stream.send(sds::ack(&answer, &["default", "ROOTCA"]));
    // The acknowledgement has been taken.
    shim.wait_for_log("Envoy accepted").await?;
    stream.expect_silence(QUIET).await?;
    let before = wakeups(&shim);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(wakeups(&shim), before, "an idle shim woke up");
    assert_eq!(status(&shim, "Threads"), 1);
    let resident = status(&shim, "VmRSS");
    println!("VmRSS {resident} KiB");
    assert!(resident <= 6144, "{resident} KiB are resident");
    Ok(())
}

#[test]
fn the_binary_is_small() {
    let path = std::env::var("SHIM_BINARY").unwrap_or_else(|_| "target/dist/sds-shim".to_owned());
    let size = fs::metadata(&path).expect("run `make build`").len();
    println!("{size} bytes");
    assert!(size <= 4672 * 1024, "{size} bytes");
}
