//! Files that are not what their names promise: FIFOs and devices, bytes that are no text, masses of nothing, files
//! that are exchanged while they are read. The process goes on, tells what is wrong, and serves what is right once it
//! is there. Most of these tests start the shim as another user, so they need root.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::stat::Mode,
};
use testkit::{
    OrFail, PATIENCE,
    confined::{Confinement, MEMLOCK, UID, own},
    der,
    development_ca::{Issued, Leaf, Pki},
    fixture::{Logged, Site, secret},
    sds::{self, SdsClient},
    shim::ShimBuilder,
};
use tokio::time::{Instant, timeout};

/// How long files are exchanged: some thousand times.
const EXCHANGED: Duration = Duration::from_secs(4);

const SHARED: &str = "-----BEGIN CERTIFICATE-------END CERTIFICATE-----\n";

fn confined(site: &Site) -> ShimBuilder {
    site.shim().confined(Confinement::default()).env("SDS_SHIM_LOG", "debug").env("FILE_DEBOUNCE_DURATION", "0s")
}

/// Its one thread is not stopped, and it has taken no more than it may.
async fn lives(shim: &mut Logged) -> testkit::Result {
    let answer = timeout(PATIENCE, shim.admin("/livez")).await;
    let answer = answer.map_err(|_| shim.failure("its one thread has stopped: /livez is not answered"))??;
    assert_eq!(answer.status, 200);
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("the shim lives")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|peak| peak.trim().parse().ok()).expect("the kernel tells it");
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    Ok(())
}

fn fifo(path: &Path) -> testkit::Result {
    nix::unistd::mkfifo(path, Mode::S_IRWXU).or_fail(format!("make a FIFO at {}", path.display()))?;
    own(path, UID, UID).or_fail("give it to the user of the shim")
}

/// Puts a file in the place of what is there.
fn replace(path: &Path, content: &str) -> testkit::Result {
    let beside = path.with_extension("new");
    fs::write(&beside, content).or_fail("write a file")?;
    fs::rename(&beside, path).or_fail("rename a file")
}

#[tokio::test]
async fn fifos_under_names_that_clients_ask_for() -> testkit::Result {
    let site = Site::new().await?;
    let path = site.workload.path().to_owned();
    let mut shim = Logged(confined(&site).start()?);
    let client = shim.connect().await?;
    let file = path.join("pipe.pem");
    fifo(&file)?;
    let pki = Pki::new("files");
    let Issued { chain_pem, key_pem } = pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
    fs::write(path.join("chain.pem"), chain_pem).or_fail("write the chain")?;
    for (name, content) in [("file-root:./pipe.pem", pki.root_pem()), ("file-cert:./chain.pem~./pipe.pem", key_pem)] {
        let mut stream = client.stream();
        stream.send(sds::request(&[name]));
        let told = "./pipe.pem: it is a FIFO, not a regular file; Envoy keeps waiting for it";
        let line = timeout(PATIENCE, shim.wait_for_log(told)).await;
        line.map_err(|_| shim.failure("its one thread has stopped"))??;
        lives(&mut shim).await?;
        replace(&file, &content)?;
        assert_eq!(secret(&stream.recv().await?, name)?.name, name);
        fs::remove_file(&file).or_fail("remove the file")?;
        fifo(&file)?;
    }
    let devices = ["file-root:/dev/zero", "file-root:/dev/ptmx", "file-cert:/dev/null~/dev/zero"];
    let stream = client.stream();
    stream.send(sds::request(&devices));
    for device in ["/dev/zero", "/dev/ptmx", "/dev/null"] {
        shim.wait_for_log(&format!("{device}: it is a character device, not a regular file")).await?;
    }
    lives(&mut shim).await
}

/// Each of the files that variables name, in turn.
#[tokio::test]
async fn fifos_where_variables_name_files() -> testkit::Result {
    const ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
    let rows = [
        ("CA_ROOT_CA", "root.pem"),
        ("SDS_SHIM_EXTRA_ROOTS", "extra.pem"),
        ("SDS_SHIM_CRL", "list.pem"),
        ("SDS_SHIM_TRUST_DOMAIN_FILE", "domain"),
        ("SDS_SHIM_BUNDLES", "other.pem"),
        ("PROV_CERT", "key.pem"),
        ("", "cert-chain.pem"),
    ];
    for (variable, file) in rows {
        let site = Site::new().await?;
        let path = site.workload.path().to_owned();
        fifo(&path.join(file))?;
        let builder = match variable {
            "SDS_SHIM_BUNDLES" => confined(&site).env(variable, format!("other.example=./{file}")),
            // The certificate is good, or at least there is one.
            "PROV_CERT" => {
                let issued = site.pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
                fs::write(path.join("cert-chain.pem"), issued.chain_pem).or_fail("write the chain")?;
                confined(&site).env(variable, ".").env("CA_ROOT_CA", ROOT)
            }
            "" => confined(&site).env("PROV_CERT", ".").env("CA_ROOT_CA", ROOT),
            _ => confined(&site).env(variable, format!("./{file}")),
        };
        let mut shim = Logged(builder.start()?);
        let line = timeout(PATIENCE, shim.wait_for_log("it is a FIFO, not a regular file")).await;
        let line = line.map_err(|_| shim.failure(format!("{variable}: its one thread has stopped")))??;
        assert!(line.contains(file), "{variable}: {line}");
        lives(&mut shim).await?;
        if variable == "CA_ROOT_CA" {
            replace(&path.join(file), &site.ca.root_pem())?;
        }
        let mut stream = shim.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        stream.recv().await.map_err(|failure| shim.explain(failure))?;
    }
    Ok(())
}

#[tokio::test]
async fn a_fifo_for_a_token() -> testkit::Result {
    let site = Site::without_token(Default::default()).await?;
    let token = site.workload.token_file();
    if let Some(directory) = token.parent() {
        fs::create_dir_all(directory).or_fail("make the directory of the token")?;
    }
    fifo(&token)?;
    let builder = confined(&site);
    let mut shim = Logged(builder.start()?);
    let told = timeout(PATIENCE, shim.wait_for_log(": it is a FIFO, not a regular file")).await;
    told.map_err(|_| shim.failure("its one thread has stopped"))??;
    lives(&mut shim).await?;
    replace(&token, &site.token())?;
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await.map_err(|failure| shim.explain(failure))?;
    Ok(())
}

#[tokio::test]
async fn a_fifo_for_a_mounted_key() -> testkit::Result {
    let site = Site::new().await?;
    let mount = site.workload.path().join("etc/certs");
    fs::create_dir_all(&mount).or_fail("make the mount")?;
    let Issued { chain_pem, key_pem } =
        site.pki.issue(&Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600)));
    fs::write(mount.join("cert-chain.pem"), chain_pem).or_fail("write the chain")?;
    fs::write(mount.join("root-cert.pem"), site.pki.root_pem()).or_fail("write the roots")?;
    fifo(&mount.join("key.pem"))?;
    let mut shim = Logged(confined(&site).env("FILE_MOUNTED_CERTS", "true").start()?);
    shim.wait_for_log("key.pem: it is a FIFO, not a regular file").await?;
    lives(&mut shim).await?;
    replace(&mount.join("key.pem"), &key_pem)?;
    own(&mount, UID, UID).or_fail("give it to the user of the shim")?;
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await.map_err(|failure| shim.explain(failure))?;
    Ok(())
}

#[tokio::test]
async fn a_fifo_for_the_reason_why_it_ended() -> testkit::Result {
    let site = Site::new().await?;
    fifo(&site.workload.path().join("reason"))?;
    let builder = confined(&site).env("SDS_SHIM_TERMINATION_LOG", "./reason").env("SECRET_TTL", "nonsense");
    let mut shim = Logged(builder.start()?);
    assert_ne!(shim.wait_exit().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_good_anchor_among_masses_of_empty_blocks() -> testkit::Result {
    let site = Site::new().await?;
    let directory = site.workload.path().join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&directory).or_fail("make a directory")?;
    let empty = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".repeat(280 * 1024 / 54);
    let file = directory.join("masses.pem");
    fs::write(&file, site.pki.root_pem() + &empty).or_fail("write the anchors")?;
    let mut shim = Logged(confined(&site).start()?);
    let name = format!("file-root:{}", file.display());
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&[&name]));
    let answer = stream.recv().await.map_err(|failure| shim.explain(failure))?;
    assert_eq!(secret(&answer, &name)?.trusted_ca_pem, site.pki.root_pem());
    let line = shim.wait_for_log("and 5305 more; the others are served").await?;
    assert_eq!(line.matches(" skipped: ").count(), 4);
    assert!(line.len() < 2000, "{} bytes of log", line.len());
    lives(&mut shim).await
}

/// A marker that ends with the dashes that the next one begins with. Such a text once ended the process.
#[tokio::test]
async fn markers_that_share_their_dashes() -> testkit::Result {
    let site = Site::new().await?;
    let (file, other) = (site.workload.path().join("anchors.pem"), Pki::new("other").root_pem());
    fs::write(&file, format!("{}{SHARED}{other}", site.pki.root_pem())).or_fail("write the anchors")?;
    let anchors = file.display().to_string();
    let mut shim = Logged(confined(&site).env("SDS_SHIM_EXTRA_ROOTS", &anchors).start()?);
    let mut stream = shim.connect().await?.stream();
    let name = format!("file-root:{anchors}");
    stream.send(sds::request(&[&name]));
    let answer = stream.recv().await.map_err(|failure| shim.explain(failure))?;
    assert_eq!(secret(&answer, &name)?.trusted_ca_pem, site.pki.root_pem() + &other);
    shim.wait_for_log("certificate 2 skipped: it cannot be parsed; the others are served").await?;
    lives(&mut shim).await
}

/// Exchanges two files without a moment at which there is none, until it is time.
fn exchange(one: PathBuf, other: PathBuf, until: Instant) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let mut count = 0;
        while Instant::now() < until {
            renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).expect("two files");
            count += 1;
            std::thread::yield_now();
        }
        count
    })
}

/// A file that is small when one looks and large when one reads, for a client and for the CA's anchors.
#[tokio::test]
async fn files_that_are_exchanged_while_they_are_read() -> testkit::Result {
    let site = Site::new().await?;
    let path = site.workload.path().to_owned();
    for (name, size) in [("roots.pem", 380 << 10), ("extra.pem", 126 << 10)] {
        fs::write(path.join(name), "").or_fail("write a file")?;
        fs::write(path.join(format!("{name}.large")), vec![0xff; size]).or_fail("write a file")?;
    }
    let mut shim = Logged(confined(&site).env("SDS_SHIM_EXTRA_ROOTS", "./extra.pem").start()?);
    let client = shim.connect().await?;
    let mut streams = Vec::new();
    let name = "file-root:./roots.pem";
    let end = Instant::now() + EXCHANGED;
    let threads =
        ["roots.pem", "extra.pem"].map(|name| exchange(path.join(name), path.join(format!("{name}.large")), end));
    while Instant::now() < end {
        // Each new name is read anew.
        let stream = client.stream();
        stream.send(sds::request(&[name]));
        streams.push(stream);
        tokio::time::sleep(Duration::from_millis(20)).await;
        streams.clear();
        assert!(shim.exited().is_none(), "{}", shim.failure("it has ended"));
    }
    let count: usize = threads.into_iter().map(|thread| thread.join().expect("it does not fail")).sum();
    println!("{count} exchanges");
    shim.wait_for_log("it holds no PEM certificate").await?;
    lives(&mut shim).await?;
    // What is right is served, once it is there.
    replace(&path.join("roots.pem"), &site.pki.root_pem())?;
    let client = SdsClient::connect(shim.socket()).await.or_fail("connect")?;
    let mut stream = client.stream();
    stream.send(sds::request(&[name]));
    let answer = stream.recv().await.map_err(|failure| shim.explain(failure))?;
    assert_eq!(secret(&answer, name)?.trusted_ca_pem, site.pki.root_pem());
    Ok(())
}

/// A list as large as a file may be is served, or told as what it is: too much, and not unparsable.
#[tokio::test]
async fn large_revocation_lists() -> testkit::Result {
    for (entries, served) in [(1000, true), (4000, true), (8000, true), (20_000, false), (60_000, false)] {
        let site = Site::new().await?;
        let list = der::pem("X509 CRL", &der::revocations(entries));
        println!("{entries} entries, {} bytes", list.len());
        fs::write(site.workload.path().join("list.pem"), &list).or_fail("write the list")?;
        let mut shim = Logged(confined(&site).env("SDS_SHIM_CRL", "./list.pem").start()?);
        if served {
            let mut stream = shim.connect().await?.stream();
            stream.send(sds::request(&["ROOTCA"]));
            let answer = stream.recv().await.map_err(|failure| shim.explain(failure))?;
            assert_eq!(secret(&answer, "ROOTCA")?.crl_pem, list, "{entries} entries");
        } else {
            shim.wait_for_log("bytes of revocation lists; set SDS_SHIM_ARENA_KIB=").await?;
        }
        assert!(!shim.log().contains("cannot be parsed"));
        for _ in 0..3 {
            renewal_of(&mut shim).await?;
        }
        lives(&mut shim).await?;
    }
    Ok(())
}

/// A renewal finds room.
async fn renewal_of(shim: &mut Logged) -> testkit::Result {
    // The line of the one before, which comes after it was sent.
    shim.wait_for_log("certificate issued").await?;
    let mark = shim.log().mark();
    shim.signal(nix::sys::signal::Signal::SIGUSR1)?;
    shim.wait_for_log_after(mark, "certificate issued").await?;
    Ok(())
}

/// While clients hold what they may, a list for which no room is left is told as that, and nobody suffers.
#[tokio::test]
async fn a_large_revocation_list_while_clients_hold_much() -> testkit::Result {
    let site = Site::new().await?;
    let file = site.workload.path().join("list.pem");
    fs::write(&file, site.pki.crl(&[], 3600)).or_fail("write the list")?;
    let mut shim = Logged(confined(&site).env("SDS_SHIM_CRL", "./list.pem").start()?);
    let mut clients = vec![shim.connect().await?];
    for _ in 1..12 {
        clients.push(SdsClient::connect(shim.socket()).await.or_fail("connect")?);
    }
    let mut streams = Vec::new();
    for number in 0..140 {
        let mut stream = clients[number % clients.len()].stream();
        stream.send(sds::request(&["default"]));
        stream.recv().await.map_err(|failure| shim.explain(failure))?;
        streams.push(stream);
    }
    for entries in [20_000, 30_000, 40_000] {
        let mark = shim.log().mark();
        replace(&file, &der::pem("X509 CRL", &der::revocations(entries)))?;
        shim.wait_for_log_after(mark, " or more; 1 in use").await?;
        replace(&file, &site.pki.crl(&[], 3600))?;
        shim.wait_for_log_after(mark, "everything is usable again").await?;
        lives(&mut shim).await?;
    }
    assert!(!shim.log().contains("cannot be parsed"));
    Ok(())
}
