//! Mounted certificates that Envoy refuses are never served; those that peers will refuse are, and everybody is told.

use std::time::Duration;

use openssl::{
    pkey::{PKey, Private},
    rsa::Rsa,
};
use testkit::{
    Failure, OrFail,
    development_ca::{Issued, Leaf, Pki},
    fixture::Site,
    mount::{ID, ISTIO, Mount, Served, serial},
    mtls_server::MtlsServer,
    shim::ShimBuilder,
};

fn mounted(shim: ShimBuilder) -> ShimBuilder {
    shim.env("FILE_MOUNTED_CERTS", "true")
}

fn leaf() -> Leaf {
    Leaf::workload(ID, Duration::from_secs(3600))
}

fn rsa(bits: u32) -> Result<PKey<Private>, Failure> {
    Rsa::generate(bits).and_then(PKey::from_rsa).or_fail("make an RSA key")
}

/// Chain and key of a leaf with this key.
fn issue(pki: &Pki, leaf: &Leaf, key: &PKey<Private>) -> Result<(String, String), Failure> {
    let text = |pem: Vec<u8>| String::from_utf8(pem).or_fail("read PEM as text");
    let public = text(key.public_key_to_pem().or_fail("write the public key")?)?;
    let certificate = pki.certify(leaf, &public).or_fail("certify a key")?;
    let private = text(key.private_key_to_pem_pkcs8().or_fail("write the key")?)?;
    Ok((certificate + &pki.intermediate_pem(), private))
}

fn replace(mount: &Mount, chain: &str, key: &str) -> Result<String, Failure> {
    let root = mount.pki.root_pem();
    let files = [("cert-chain.pem", chain), ("key.pem", key), ("root-cert.pem", root.as_str())];
    mount.volume.replace(&files).or_fail("write the volume")?;
    serial(chain)
}

/// What Envoy certainly refuses is not the first, and replaces nothing.
#[tokio::test]
async fn certificates_that_envoy_rejects_are_not_served() -> testkit::Result {
    let small = rsa(1024)?;
    for at_first in [true, false] {
        let scene = Site::new().await?;
        let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
        let (chain, key) = issue(&mount.pki, &leaf(), &small)?;
        let elliptic = mount.pki.issue(&Leaf { key_encipherment_only: true, ..leaf() });
        if at_first {
            replace(&mount, &chain, &key)?;
        }
        let mut served = Served::start(scene, mounted).await?;
        if at_first {
            served
                .shim
                .wait_for_log("the leaf has an RSA key of less than 2048 bits: Envoy refuses it; Envoy waits")
                .await?;
            let ready = served.shim.admin("/readyz").await?;
            assert!(ready.status == 503 && ready.text().contains("less than 2048 bits"), "{}", ready.text());
            mount.rotate()?;
            served.certificate().await?;
            continue;
        }
        served.certificate().await?;
        for (chain, key, reason) in [
            (&chain, &key, "less than 2048 bits: Envoy refuses it; still serving the previous one"),
            (
                &elliptic.chain_pem,
                &elliptic.key_pem,
                "without digitalSignature: Envoy refuses it; still serving the previous one",
            ),
        ] {
            replace(&mount, chain, key)?;
            served.shim.wait_for_log(reason).await?;
            served.default.expect_silence(&served.shim).await?;
        }
        assert_eq!(served.shim.admin("/readyz").await?.status, 200);
    }
    Ok(())
}

/// What peers refuse is served, with one warning for each generation, in the metrics, the status, and in `check`.
#[tokio::test]
async fn certificates_that_peers_reject_are_served_with_a_warning() -> testkit::Result {
    let scene = Site::new().await?;
    let mount = Mount::new(&scene, "./etc/certs", ISTIO)?;
    let mut served = Served::start(scene, mounted).await?;
    served.certificate().await?;
    assert!(
        !served.shim.log().lines().iter().any(|line| line.contains("serving the mounted certificate, but")),
        "nothing is wrong"
    );
    let (large, other) = (rsa(2048)?, Pki::new("other"));
    let one_side = mount.pki.issue(&Leaf { client_auth: false, ..leaf() });
    let foreign = other.issue(&leaf());
    let whole = mount.pki.issue(&leaf());
    let alone = whole.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap_or_default().to_owned();
    let usage = issue(&mount.pki, &Leaf { key_encipherment_only: true, ..leaf() }, &large)?;
    for (chain, key, reason, text) in [
        (one_side.chain_pem.as_str(), one_side.key_pem.as_str(), "extended_key_usage", "lacks clientAuth"),
        (&usage.0, &usage.1, "key_usage", "lacks digitalSignature"),
        (&alone, &whole.key_pem, "path", "leads to none of the trust anchors"),
        (&foreign.chain_pem, &foreign.key_pem, "path", "leads to none of the trust anchors"),
    ] {
        let mark = served.shim.log().mark();
        let serial = replace(&mount, chain, key)?;
        assert_eq!(served.certificate().await?.serial()?, serial);
        served.shim.wait_for_log_after(mark, text).await?;
        let told = served.shim.log().lines()[mark..]
            .iter()
            .filter(|line| line.contains("serving the mounted certificate, but"))
            .count();
        assert_eq!(told, 1, "of {reason}");
        let metrics = served.shim.admin("/metrics").await?.text();
        let metric = format!("sds_shim_certificate_flaw{{identity=\"{ID}\",reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&metric), "{metrics}");
        let status = served.status().await?;
        let flaw = &status["workloads"][0]["flaws"][0];
        assert!(flaw["reason"] == reason && flaw["text"].to_string().contains(text), "{status}");
        let mut check = mounted(served.scene.shim()).arg("check").start()?;
        check.wait_exit().await?;
        let lines = check.log().lines();
        assert!(lines.iter().any(|line| line.contains("ERROR") && line.contains(text)), "{lines:#?}");
    }
    // A chain in no order, with doubles and the root, is none of it.
    let mark = served.shim.log().mark();
    let upper = mount.pki.intermediate_pem();
    let mixed = [mount.pki.root_pem(), upper.clone(), alone.clone(), upper, alone].concat();
    replace(&mount, &mixed, &whole.key_pem)?;
    // The key in place and the next chain come as one generation: what is served is in order.
    assert_eq!(served.certificate().await?.chain_pem, whole.chain_pem);
    assert!(
        !served.shim.log().lines()[mark..].iter().any(|line| line.contains("serving the mounted certificate, but"))
    );
    let metrics = served.shim.admin("/metrics").await?.text();
    let has_flaw = |line: &str| line.starts_with("sds_shim_certificate_flaw{") && line.ends_with(" 1");
    assert!(!metrics.lines().any(has_flaw), "{metrics}");
    Ok(())
}

/// Why we warn: Envoy refuses peers with such certificates.
#[tokio::test]
async fn envoy_refuses_peers_with_these_flaws() -> testkit::Result {
    let gate = MtlsServer::start(Site::new().await?, &[ID], |shim| shim).await?;
    let (pki, large, other) = (&gate.scene.pki, rsa(2048)?, Pki::new("other"));
    let good = pki.issue(&leaf());
    let alone = good.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap_or_default().to_owned();
    let (chain_pem, key_pem) = issue(pki, &Leaf { key_encipherment_only: true, ..leaf() }, &large)?;
    for (what, peer) in [
        ("no clientAuth", pki.issue(&Leaf { client_auth: false, ..leaf() })),
        ("no digitalSignature", Issued { chain_pem, key_pem }),
        ("no intermediate", Issued { chain_pem: alone, key_pem: good.key_pem.clone() }),
        ("another CA", other.issue(&leaf())),
    ] {
        assert!(!gate.lets_in(&peer).await?, "{what}");
    }
    assert!(gate.lets_in(&good).await?, "and no others");
    Ok(())
}
