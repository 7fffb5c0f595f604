//! Resources that stand for files: `file-cert:` and `file-root:` names are served from the files that they name, and
//! follow them.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use testkit::{
    Failure, OrFail,
    development_ca::{Issued, Leaf, Pki, ProjectedVolume},
    fixture::{Pod, QUIET, names, secret},
    scratch::Scratch,
    sds::{self, SdsStream},
};

/// A directory of credentials as a mounted Kubernetes secret, and who makes them.
struct Credentials {
    pki: Pki,
    volume: ProjectedVolume,
    scratch: Scratch,
}

impl Credentials {
    fn new() -> Result<Self, Failure> {
        let (pki, scratch) = (Pki::new("files"), Scratch::new("credentials")?);
        let volume = ProjectedVolume::create(&scratch.path().join("volume"), &[]).or_fail("make the volume")?;
        let this = Self { pki, volume, scratch };
        this.rotate()?;
        Ok(this)
    }

    fn issue(&self) -> Issued {
        self.pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)))
    }

    /// A new generation, as kubelet writes it. Returns its serial number.
    fn rotate(&self) -> Result<String, Failure> {
        let Issued { chain_pem, key_pem, .. } = self.issue();
        let root = self.pki.root_pem();
        let files = [("tls.crt", chain_pem.as_str()), ("tls.key", key_pem.as_str()), ("ca.crt", root.as_str())];
        self.volume.replace(&files).or_fail("write the volume")?;
        serial_in(&chain_pem)
    }

    fn path(&self, file: &str) -> String {
        self.volume.dir().join(file).display().to_string()
    }

    fn certificate(&self) -> String {
        format!("file-cert:{}~{}", self.path("tls.crt"), self.path("tls.key"))
    }

    fn roots(&self) -> String {
        format!("file-root:{}", self.path("ca.crt"))
    }
}

fn serial_in(chain_pem: &str) -> Result<String, Failure> {
    let leaf = openssl::x509::X509::from_pem(chain_pem.as_bytes()).or_fail("parse the leaf")?;
    testkit::tls::serial(&leaf)
}

async fn next_serial(stream: &mut SdsStream, name: &str) -> Result<String, Failure> {
    let answer = stream.recv().await?;
    stream.send(sds::ack(&answer, &[name]));
    let secret = secret(&answer, name)?;
    assert!(secret.key_fits_leaf()?, "key and chain are of two generations");
    secret.serial()
}

#[tokio::test]
async fn files_are_served_beside_the_workload_certificate() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let (certificate, roots) = (files.certificate(), files.roots());
    let mut wanted = ["default".to_owned(), certificate.clone(), roots.clone(), "ROOTCA".to_owned()];
    wanted.sort();
    let mut stream = pod.client.stream();
    stream.send(sds::request(&wanted.each_ref().map(String::as_str)));
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        let answer = stream.recv().await?;
        stream.send(sds::ack(&answer, &wanted.each_ref().map(String::as_str)));
        got.extend(names(&answer)?);
        for secret in sds::secrets(&answer)? {
            if secret.name == roots {
                assert_eq!(secret.trusted_ca_pem, files.pki.root_pem());
            }
        }
    }
    got.sort();
    assert_eq!(got, wanted);
    Ok(())
}

#[tokio::test]
async fn every_generation_of_a_mounted_secret_is_pushed() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let name = files.certificate();
    let (mut stream, answer) = pod.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &[&name]));
    for _ in 0..20 {
        let serial = files.rotate()?;
        assert_eq!(next_serial(&mut stream, &name).await?, serial);
    }
    Ok(())
}

#[tokio::test]
async fn whatever_is_watched_takes_one_inotify_instance() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let (certificate, roots) = (files.certificate(), files.roots());
    let (mut stream, answer) = pod.ask(&[&certificate, &roots]).await?;
    stream.send(sds::ack(&answer, &[&certificate, &roots]));
    fs::remove_file(pod.shim.socket()).or_fail("remove the socket's file")?;
    pod.shim.wait_for_log("had been removed and was recreated").await?;
    files.rotate()?;
    while names(&stream.recv().await?)? != [certificate.as_str()] {}
    // Each descriptor tells what its instance watches: the two of one instance tell the same.
    let descriptors = format!("/proc/{}/fd", pod.shim.pid());
    let mut instances = BTreeSet::new();
    for entry in fs::read_dir(&descriptors).or_fail("list descriptors")?.flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == Path::new("anon_inode:inotify")) {
            let told = descriptors.replace("/fd", "/fdinfo") + "/" + &entry.file_name().to_string_lossy();
            let told = fs::read_to_string(told).or_fail("read a descriptor's state")?;
            instances.extend(told.split_once("inotify ").map(|(_, watches)| watches.to_owned()));
        }
    }
    assert_eq!(instances.len(), 1, "{instances:?}");
    // The socket's directory, that of the CA's root file, and those of the mounted volume.
    assert!(instances.iter().all(|watches| watches.matches("inotify ").count() > 3), "{instances:?}");
    Ok(())
}

#[tokio::test]
async fn a_chain_without_its_key_waits_for_it() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let directory = files.scratch.path();
    let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
    let write = |path: &Path, text: &str| fs::write(path, text).or_fail("write a file");
    let first = files.issue();
    write(&chain, &first.chain_pem)?;
    write(&key, &first.key_pem)?;
    let name = format!("file-cert:{}~{}", chain.display(), key.display());
    let (mut stream, answer) = pod.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &[&name]));
    let second = files.issue();
    write(&chain, &second.chain_pem)?;
    pod.shim
        .wait_for_log("the private key does not belong to the certificate; still serving its last good content")
        .await?;
    let (_, held) = pod.ask(&[&name]).await?;
    assert_eq!(secret(&held, &name)?.serial()?, serial_in(&first.chain_pem)?);
    write(&key, &second.key_pem)?;
    assert_eq!(next_serial(&mut stream, &name).await?, serial_in(&second.chain_pem)?);
    pod.shim.wait_for_log("the files are usable again").await?;
    // Gone altogether: what is held stays.
    fs::remove_file(&chain).or_fail("remove the chain")?;
    pod.shim.wait_for_log("No such file").await?;
    stream.expect_silence(QUIET).await?;
    let (_, held) = pod.ask(&[&name]).await?;
    assert_eq!(secret(&held, &name)?.serial()?, serial_in(&second.chain_pem)?);
    Ok(())
}

#[tokio::test]
async fn files_may_come_later_in_a_directory_that_comes_later() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let bundle = files.scratch.path().join("not/yet/bundle.pem");
    let name = format!("file-cert:{0}~{0}", bundle.display());
    let mut stream = pod.client.stream();
    stream.send(sds::request(&[&name]));
    pod.shim.wait_for_log("Envoy keeps waiting for it").await?;
    let issued = files.issue();
    fs::create_dir_all(files.scratch.path().join("not/yet")).or_fail("make the directory")?;
    fs::write(&bundle, issued.key_pem.clone() + &issued.chain_pem).or_fail("write the bundle")?;
    assert_eq!(next_serial(&mut stream, &name).await?, serial_in(&issued.chain_pem)?);
    Ok(())
}

#[tokio::test]
async fn the_system_roots_are_served() -> testkit::Result {
    let pod = Pod::new().await?;
    let (_, answer) = pod.ask(&["file-root:system"]).await?;
    assert!(secret(&answer, "file-root:system")?.trust_anchors()?.len() > 50);
    Ok(())
}

#[tokio::test]
async fn of_a_file_with_bad_anchors_the_good_ones_are_served() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let file = files.scratch.path().join("mixed.pem");
    fs::write(&file, files.pki.root_pem() + &files.issue().chain_pem).or_fail("write the anchors")?;
    let name = format!("file-root:{}", file.display());
    let (_, answer) = pod.ask(&[&name]).await?;
    // The root and the intermediate, and not the leaf.
    assert_eq!(secret(&answer, &name)?.trust_anchors()?.len(), 2);
    let line = pod.shim.wait_for_log("it is not a CA certificate").await?;
    assert!(line.contains("the others are served") && !line.contains("its last good content"), "{line}");
    Ok(())
}

#[tokio::test]
async fn a_name_without_files_is_reported_and_gets_nothing() -> testkit::Result {
    let pod = Pod::new().await?;
    let mut stream = pod.client.stream();
    stream.send(sds::request(&["file-cert:/only/one", "sds://default"]));
    pod.shim.wait_for_log("expected file-cert:CHAIN~KEY, file-root:FILE").await?;
    stream.expect_silence(QUIET).await?;
    Ok(())
}

#[tokio::test]
async fn unsubscribed_names_are_forgotten() -> testkit::Result {
    let (pod, files) = (Pod::new().await?, Credentials::new()?);
    let name = files.roots();
    let (mut stream, answer) = pod.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &["default"]));
    stream.recv().await?;
    // Asked for anew it is read anew: nobody had it in between.
    let other = Pki::new("other").root_pem();
    files.volume.replace(&[("ca.crt", &other)]).or_fail("write the volume")?;
    let (_, answer) = pod.ask(&[&name]).await?;
    assert_eq!(secret(&answer, &name)?.trusted_ca_pem, other);
    Ok(())
}

#[tokio::test]
async fn names_are_served_first_come_first_served() -> testkit::Result {
    const MOST: usize = 16;
    let (mut pod, files) = (Pod::new().await?, Credentials::new()?);
    let directory = files.scratch.path().to_owned();
    let roots = |name: String| {
        let file = directory.join(name);
        fs::write(&file, files.pki.root_pem()).or_fail("write a file")?;
        Ok::<_, Failure>(format!("file-root:{}", file.display()))
    };
    let held: Vec<_> = (0..MOST).map(|number| roots(format!("m{number:02}.pem"))).collect::<Result<_, _>>()?;
    let wanted: Vec<_> = held.iter().map(String::as_str).collect();
    let mut first = pod.client.stream();
    first.send(sds::request(&wanted));
    let mut got = 0;
    while got < MOST {
        let answer = first.recv().await?;
        first.send(sds::ack(&answer, &wanted));
        got += names(&answer)?.len();
    }
    // Another client, whose name sorts earlier.
    let late = roots("a.pem".to_owned())?;
    let mut second = pod.client.stream();
    second.send(sds::request(&[&late]));
    let line = pod.shim.wait_for_log("the limit of 16 file names is reached").await?;
    assert!(line.contains("a.pem"), "{line}");
    second.expect_silence(QUIET).await?;
    let metrics = pod.shim.admin("/metrics").await?.text();
    assert!(metrics.contains(&format!("sds_shim_sds_pending{{resource=\"{late}\"}} 1")), "{metrics}");
    // Nobody has lost anything: a change still arrives.
    fs::write(directory.join("m15.pem"), Pki::new("another").root_pem()).or_fail("write a file")?;
    let answer = first.recv().await?;
    first.send(sds::ack(&answer, &wanted[1..]));
    assert_eq!(names(&answer)?, [held[15].clone()]);
    // With one place free it is the other's turn.
    assert_eq!(names(&second.recv().await?)?, [late]);
    assert_eq!(pod.shim.log().count("file names is reached"), 1);
    Ok(())
}
