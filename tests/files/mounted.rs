//! Mounted files as the source of `default` and `ROOTCA`: alone, and until the CA has issued a certificate.

use std::{fs, time::Duration};

use testkit::{
    OrFail,
    development_ca::{Fault, Issued, Leaf, Pki},
    fixture::{Site, renew, write},
    mount::{GKE, ID, ISTIO, Mount, Served, WELL_KNOWN, issue, serial},
    shim::ShimBuilder,
};
use tonic::Code;

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down for the test".to_owned())
}

/// What is mounted at `directory` is served and followed with these variables, and the CA is not asked.
async fn is_served(directory: &str, names: [&'static str; 3], env: &[(&str, &str)]) -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, directory, names)?;
    let edit = |shim: ShimBuilder| env.iter().fold(shim, |shim, (name, value)| shim.env(*name, *value));
    let mut served = Served::start(scene, edit).await?;
    served.certificate().await?;
    assert_eq!(served.anchors().await?, mount.pki.root_pem());
    for _ in 0..5 {
        let serial = mount.rotate()?;
        assert_eq!(served.certificate().await?.serial()?, serial);
    }
    served.quiet().await?;
    let source = served.source().await?;
    assert!(source.starts_with("the mounted files ") && source.contains(names[1]), "{source}");
    let metrics = served.shim.admin("/metrics").await?.text();
    let leaf =
        "sds_shim_not_after_timestamp_seconds{identity=\"spiffe://cluster.local/ns/foo/sa/sleep\",resource=\"default\"";
    assert!(metrics.contains(leaf) && metrics.contains("resource=\"ROOTCA\",kind=\"root\""), "{metrics}");
    assert_eq!(served.scene.ca.connections(), 0, "nobody asks the CA");
    Ok(())
}

#[tokio::test]
async fn mounted_certificates_are_served() -> testkit::Result {
    is_served("./etc/certs", ISTIO, &[("FILE_MOUNTED_CERTS", "true")]).await
}

#[tokio::test]
async fn a_well_known_directory_is_served_when_it_is_there() -> testkit::Result {
    is_served(WELL_KNOWN, ISTIO, &[]).await?;
    is_served(WELL_KNOWN, GKE, &[]).await
}

#[tokio::test]
async fn the_files_of_gke_are_served() -> testkit::Result {
    is_served(WELL_KNOWN, GKE, &[("CA_PROVIDER", "GkeWorkloadCertificate")]).await
}

#[tokio::test]
async fn files_that_come_later_are_waited_for_and_named() -> testkit::Result {
    let scene = Site::new().await?;
    let edit = |shim: ShimBuilder| shim.env("SDS_SHIM_SOURCE", "files").without("POD_NAMESPACE");
    let mut served = Served::start(scene, edit).await?;
    served.shim.wait_for_log("Envoy waits; watching the files").await?;
    let reason = served.shim.admin("/readyz").await?;
    assert_eq!(reason.status, 503);
    assert!(reason.text().contains("cert-chain.pem: No such file"), "{}", reason.text());
    let mount = Mount::new(&served.scene, WELL_KNOWN, ISTIO)?;
    served.certificate().await?;
    assert_eq!(served.anchors().await?, mount.pki.root_pem());
    served.source().await?;
    assert_eq!(served.status().await?["workloads"][0]["identity"], ID);
    assert_eq!(served.scene.ca.connections(), 0);
    Ok(())
}

#[tokio::test]
async fn a_credential_bundle_goes_with_a_trust_bundle_in_any_order() -> testkit::Result {
    let scene = Site::new().await?;
    let (pki, other) = (Pki::new("one"), Pki::new("two"));
    let (bundle, anchors) = (scene.workload.path().join("bundle.pem"), scene.workload.path().join("anchors.pem"));
    let next = || {
        let Issued { chain_pem, key_pem } = issue(&pki);
        write(&bundle.with_extension("new"), &format!("{key_pem}{chain_pem}"))?;
        fs::rename(bundle.with_extension("new"), &bundle).or_fail("rename the bundle")?;
        serial(&chain_pem)
    };
    next()?;
    write(&anchors, &format!("{}{}", pki.root_pem(), other.root_pem()))?;
    let edit = |shim: ShimBuilder| {
        let shim = shim.env("SDS_SHIM_CREDENTIAL_BUNDLE", "./bundle.pem");
        shim.env("SDS_SHIM_TRUST_ANCHORS", anchors.display().to_string())
    };
    let mut served = Served::start(scene, edit).await?;
    served.certificate().await?;
    assert_eq!(served.anchors().await?, format!("{}{}", pki.root_pem(), other.root_pem()));
    // What Kubernetes writes in another order each time is the same set.
    write(&anchors, &format!("{}{}", other.root_pem(), pki.root_pem()))?;
    let serial = next()?;
    assert_eq!(served.certificate().await?.serial()?, serial);
    served.quiet().await
}

#[tokio::test]
async fn an_unusable_pair_leaves_the_last_one_in_place() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    let mut served = Served::start(scene, |shim| shim.env("FILE_MOUNTED_CERTS", "true")).await?;
    served.certificate().await?;
    served.anchors().await?;
    let (one, other) = (issue(&mount.pki), issue(&mount.pki));
    let root = mount.pki.root_pem();
    let files = |chain: &str, key: &str| {
        let files = [("cert-chain.pem", chain), ("key.pem", key), ("root-cert.pem", root.as_str())];
        mount.volume.replace(&files).or_fail("write the volume")
    };
    files(&one.chain_pem, &other.key_pem)?;
    served.shim.wait_for_log("does not belong to the certificate; still serving the previous one").await?;
    let expired = mount.pki.issue(&Leaf { not_after: -10, ..Leaf::workload(ID, Duration::from_secs(60)) });
    files(&expired.chain_pem, &expired.key_pem)?;
    served.shim.wait_for_log("the certificate expired at").await?;
    served.quiet().await?;
    files(&one.chain_pem, &one.key_pem)?;
    assert_eq!(served.certificate().await?.serial()?, serial(&one.chain_pem)?);
    Ok(())
}

#[tokio::test]
async fn new_trust_anchors_are_taken_before_the_certificate_that_needs_them() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    let edit = |shim: ShimBuilder| shim.env("FILE_MOUNTED_CERTS", "true").env("FILE_DEBOUNCE_DURATION", "1ms");
    let mut served = Served::start(scene, edit).await?;
    served.certificate().await?;
    served.anchors().await?;
    let next = Pki::new("next");
    let serial = mount.write(&next, &next.root_pem())?;
    // It is accepted only when it is read, and the certificate waits for that.
    served.default.expect_silence(&served.shim).await?;
    let anchors = served.anchors().await?;
    assert_eq!(anchors, next.root_pem() + &mount.pki.root_pem(), "the old one has its grace");
    assert_eq!(served.certificate().await?.serial()?, serial);
    Ok(())
}

#[tokio::test]
async fn auto_serves_the_files_until_the_ca_has_issued_and_never_looks_back() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    scene.ca.set_fault(Some(down()));
    let auto = |shim: ShimBuilder| shim.env("FILE_MOUNTED_CERTS", "true").env("SDS_SHIM_SOURCE", "auto");
    let mut served = Served::start(scene, auto).await?;
    served.certificate().await?;
    let union = format!("{}{}", mount.pki.root_pem(), served.scene.pki.root_pem());
    assert_eq!(served.anchors().await?, union, "those of the mount, and those of the CA's file");
    assert!(served.source().await?.contains("until the CA has issued"));
    // As long as the CA cannot be reached, the files are followed, and it is told what is served.
    served.shim.wait_for_log("still serving the current certificate until").await?;
    let serial = mount.rotate()?;
    assert_eq!(served.certificate().await?.serial()?, serial);

    // The CA answers with one root more: that is taken before the certificate comes.
    let more = Pki::new("more").root_pem();
    served.scene.ca.set_extra_roots(vec![more.clone()]);
    served.scene.ca.set_fault(None);
    renew(&served.shim)?;
    let anchors = served.anchors().await?;
    let roots = [&more, &mount.pki.root_pem(), &served.scene.pki.root_pem()];
    assert!(roots.iter().all(|root| anchors.contains(root.as_str())), "{anchors}");
    let issued = served.certificate().await?.serial()?;
    assert_eq!(served.scene.issued(), [issued]);
    assert!(served.source().await?.starts_with("the CA, with the token in"));

    // From now on the mount does not matter, changed or gone.
    mount.rotate()?;
    served.quiet().await?;
    fs::remove_dir_all(mount.volume.dir()).or_fail("remove the mount")?;
    served.quiet().await?;
    renew(&served.shim)?;
    let renewed = served.certificate().await?.serial()?;
    assert_eq!(served.scene.issued().last(), Some(&renewed));
    served.roots.expect_silence(&served.shim).await
}

#[tokio::test]
async fn auto_without_files_asks_the_ca_at_once() -> testkit::Result {
    let mut served = Served::start(Site::new().await?, |shim| shim.env("SDS_SHIM_SOURCE", "auto")).await?;
    let issued = served.certificate().await?.serial()?;
    assert_eq!(served.scene.issued(), [issued]);
    assert_eq!(served.anchors().await?, served.scene.pki.root_pem());
    assert!(served.source().await?.starts_with("the CA"));
    Ok(())
}

#[tokio::test]
async fn the_ca_alone_can_be_asked_for() -> testkit::Result {
    let scene = Site::new().await?;
    let _mount = Mount::new(&scene, WELL_KNOWN, ISTIO)?;
    let mut served = Served::start(scene, |shim| shim.env("SDS_SHIM_SOURCE", "ca")).await?;
    let issued = served.certificate().await?.serial()?;
    assert_eq!(served.scene.issued(), [issued]);
    assert_eq!(served.anchors().await?, served.scene.pki.root_pem());
    Ok(())
}
