use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use openssl::x509::X509;
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{Issued, Leaf, Pki, ProjectedVolume},
    fixture::secret,
    sds, tls,
};
use tokio::time::{Instant, sleep};

use crate::subject::{Implementation, QUIET, Setup, Subject};

fn issue(pki: &Pki) -> Issued {
    pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)))
}

fn write(path: &Path, content: &str) -> testkit::Result {
    // As tools that care do it.
    let fresh = path.with_extension("new");
    fs::write(&fresh, content).or_fail("write a file")?;
    fs::rename(&fresh, path).or_fail("rename a file")
}

fn serial_in(chain_pem: &str) -> Result<String, Failure> {
    tls::serial(&X509::from_pem(chain_pem.as_bytes()).or_fail("read a chain")?)
}

/// A subject, a directory for files, and the name of the pair in it.
async fn with_pair(of: Implementation) -> Result<(Subject, Pki, std::path::PathBuf, String), Failure> {
    let (subject, pki) = (Subject::new(of).await?, Pki::new("files"));
    let directory = subject.site.workload.path().join("files");
    fs::create_dir_all(&directory).or_fail("make a directory")?;
    let issued = issue(&pki);
    write(&directory.join("chain.pem"), &issued.chain_pem)?;
    write(&directory.join("key.pem"), &issued.key_pem)?;
    let name = format!("file-cert:{0}/chain.pem~{0}/key.pem", directory.display());
    Ok((subject, pki, directory, name))
}

pub(super) async fn certificate(of: Implementation) -> testkit::Result {
    let (subject, _, _, name) = with_pair(of).await?;
    let (_, answer) = subject.ask(&[&name]).await?;
    let secret = secret(&answer, &name)?;
    assert!(secret.key_fits_leaf()?);
    assert_eq!(secret.spiffe_ids()?, ["spiffe://td/ns/a/sa/b"]);
    Ok(())
}

pub(super) async fn roots(of: Implementation) -> testkit::Result {
    let (subject, pki, directory, _) = with_pair(of).await?;
    write(&directory.join("root.pem"), &pki.root_pem())?;
    let name = format!("file-root:{}/root.pem", directory.display());
    let (_, answer) = subject.ask(&[&name]).await?;
    let anchors = secret(&answer, &name)?.trust_anchors()?;
    assert_eq!(anchors.len(), 1);
    Ok(())
}

pub(super) async fn system_roots(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let (_, answer) = subject.ask(&["file-root:system"]).await?;
    assert!(secret(&answer, "file-root:system")?.trust_anchors()?.len() > 10);
    Ok(())
}

pub(super) async fn rotation(of: Implementation) -> testkit::Result {
    let (subject, pki, directory, name) = with_pair(of).await?;
    let (mut stream, answer) = subject.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &[&name]));
    let issued = issue(&pki);
    write(&directory.join("key.pem"), &issued.key_pem)?;
    write(&directory.join("chain.pem"), &issued.chain_pem)?;
    loop {
        let answer = stream.recv().await?;
        stream.send(sds::ack(&answer, &[&name]));
        if secret(&answer, &name)?.serial()? == serial_in(&issued.chain_pem)? {
            return Ok(());
        }
    }
}

pub(super) async fn mismatch(of: Implementation) -> testkit::Result {
    let (subject, pki, directory, name) = with_pair(of).await?;
    let (mut stream, answer) = subject.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &[&name]));
    write(&directory.join("chain.pem"), &issue(&pki).chain_pem)?;
    match stream.recv_within(QUIET * 3).await {
        Ok(answer) => assert!(secret(&answer, &name)?.key_fits_leaf()?, "the key is another one's"),
        Err(silence) => drop(silence),
    }
    Ok(())
}

pub(super) async fn missing(of: Implementation) -> testkit::Result {
    let (subject, pki, directory, _) = with_pair(of).await?;
    let name = format!("file-root:{}/later/root.pem", directory.display());
    let mut stream = subject.client.stream();
    stream.send(sds::request(&[&name]));
    stream.expect_silence(Duration::from_secs(12)).await?;
    fs::create_dir(directory.join("later")).or_fail("make a directory")?;
    write(&directory.join("later/root.pem"), &pki.root_pem())?;
    stream.recv().await.map(drop)
}

pub(super) async fn kubelet(of: Implementation) -> testkit::Result {
    let (subject, pki, directory, _) = with_pair(of).await?;
    let generation = |issued: &Issued, volume: &ProjectedVolume| {
        volume.replace(&[("tls.crt", &*issued.chain_pem), ("tls.key", &*issued.key_pem)]).or_fail("write the volume")
    };
    let volume = ProjectedVolume::create(&directory.join("volume"), &[]).or_fail("make a volume")?;
    generation(&issue(&pki), &volume)?;
    let name = format!("file-cert:{0}/tls.crt~{0}/tls.key", volume.dir().display());
    let (mut stream, answer) = subject.ask(&[&name]).await?;
    stream.send(sds::ack(&answer, &[&name]));
    for _ in 0..3 {
        let issued = issue(&pki);
        generation(&issued, &volume)?;
        let answer = stream.recv().await?;
        stream.send(sds::ack(&answer, &[&name]));
        assert_eq!(secret(&answer, &name)?.serial()?, serial_in(&issued.chain_pem)?);
    }
    Ok(())
}

/// A subject that writes its certificate into files, without any client.
async fn writing(setup: Setup) -> Result<(crate::subject::Server, Setup, std::path::PathBuf), Failure> {
    let directory = setup.site.workload.path().join("output");
    fs::create_dir_all(&directory).or_fail("make a directory")?;
    let setup = setup.env("OUTPUT_CERTS", directory.display().to_string());
    Ok((setup.launch()?, setup, directory))
}

/// The serial number in the files, once it is another one than `before`.
async fn written(directory: &Path, before: Option<&str>) -> Result<String, Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let chain = fs::read_to_string(directory.join("cert-chain.pem")).unwrap_or_default();
        if let Ok(serial) = serial_in(&chain)
            && before != Some(&serial)
        {
            return Ok(serial);
        }
        sleep(POLL).await;
    }
    Err(Failure::new("nothing new was written"))
}

pub(super) async fn output(of: Implementation) -> testkit::Result {
    let (_server, _setup, directory) = writing(Setup::new(of).await?).await?;
    written(&directory, None).await?;
    assert!(directory.join("key.pem").is_file() && directory.join("root-cert.pem").is_file());
    Ok(())
}

pub(super) async fn output_mode(of: Implementation) -> testkit::Result {
    // Istio's agent takes a stricter mode where it believes to be on a virtual machine; here is a pod.
    let setup = Setup::new(of).await?.env("KUBERNETES_SERVICE_HOST", "10.0.0.1");
    let (_server, _setup, directory) = writing(setup).await?;
    written(&directory, None).await?;
    let mode = fs::metadata(directory.join("key.pem")).or_fail("look at the key's file")?.permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    Ok(())
}

pub(super) async fn output_renewed(of: Implementation) -> testkit::Result {
    let (_server, _setup, directory) = writing(Setup::new(of).await?.rotating()).await?;
    let first = written(&directory, None).await?;
    written(&directory, Some(&first)).await.map(drop)
}
