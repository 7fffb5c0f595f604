//! Names of the user's own for files (`SDS_SHIM_NAMES`).

use std::{fs, path::PathBuf, time::Duration};

use testkit::{
    Failure, OrFail,
    confined::{Confinement, UID, own},
    development_ca::{Leaf, Pki},
    fixture::{Logged, Pod, QUIET, Site, delta_names, names, secret},
    sds,
};

use crate::on_demand::{envoy, shake_hands};

/// A pod whose certificate for `shop.example` is yet to be written, and who issues it.
struct Shop {
    pod: Pod,
    pki: Pki,
    file: PathBuf,
}

impl Shop {
    async fn open(confined: bool) -> Result<Self, Failure> {
        let (site, pki) = (Site::new().await?, Pki::new("shop"));
        let directory = site.workload.path().join("shop");
        fs::create_dir(&directory).or_fail("make a directory")?;
        fs::write(directory.join("ca.pem"), pki.root_pem()).or_fail("write the anchors")?;
        let file = directory.join("tls.pem");
        let names =
            format!("shop.example={0}~{0}, shop.example-cacert={1}/ca.pem", file.display(), directory.display());
        let shim = site.shim().env("SDS_SHIM_NAMES", names).env("SDS_SHIM_LANDLOCK", "strict");
        let shim = match confined {
            true => shim.confined(Confinement::default()).without("SDS_SHIM_FILE_DIRECTORIES"),
            false => shim,
        };
        own(site.workload.path(), UID, UID).or_fail("give the pod away")?;
        Ok(Self { pod: site.serve_with(shim).await?, pki, file })
    }

    /// Writes a certificate, and answers with its serial number.
    fn issue(&self) -> Result<String, Failure> {
        let issued = self.pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
        let new = self.file.with_extension("new");
        fs::write(&new, issued.key_pem + &issued.chain_pem).or_fail("write the certificate")?;
        own(&new, UID, UID).or_fail("give it away")?;
        fs::rename(&new, &self.file).or_fail("put it in place")?;
        let leaf = openssl::x509::X509::from_pem(issued.chain_pem.as_bytes()).or_fail("parse it")?;
        testkit::tls::serial(&leaf)
    }
}

#[tokio::test]
async fn files_are_served_by_a_name_of_ones_own_once_they_are_there() -> testkit::Result {
    // The tests are of another user than the shim: names are open to all who may connect.
    for confined in [false, true] {
        let mut shop = Shop::open(confined).await?;
        let (_, answer) = shop.pod.ask(&["shop.example-cacert"]).await?;
        assert_eq!(secret(&answer, "shop.example-cacert")?.trusted_ca_pem, shop.pki.root_pem());
        let (mut stream, mut delta) = (shop.pod.client.stream(), shop.pod.client.delta());
        stream.send(sds::request(&["shop.example"]));
        delta.send(sds::delta_request(&["shop.example", "other.example"], &[]));
        assert_eq!(delta.recv().await?.removed_resources, ["other.example"]);
        stream.expect_silence(QUIET).await?;
        let first = shop.issue()?;
        let answer = stream.recv().await?;
        assert_eq!(
            (names(&answer)?, secret(&answer, "shop.example")?.serial()?),
            (vec!["shop.example".to_owned()], first)
        );
        assert!(secret(&answer, "shop.example")?.key_pem.contains("PRIVATE KEY"));
        assert_eq!(delta_names(&delta.recv().await?)?, ["shop.example"]);
        let second = shop.issue()?;
        assert_eq!(secret(&stream.recv().await?, "shop.example")?.serial()?, second);
        let metrics = shop.pod.shim.admin("/metrics").await?.text();
        assert!(metrics.contains("sds_shim_sds_pushes_total{resource=\"shop.example\"}"), "{metrics}");
    }
    Ok(())
}

/// As a gateway has it: each host name that a client may want is a name of the shim's.
#[tokio::test]
async fn an_envoy_serves_a_name_by_sni_once_its_files_are_there() -> testkit::Result {
    let shop = Shop::open(false).await?;
    let root = shop.pki.root_pem();
    let (envoy, port) = envoy(&shop.pod).await?;
    let waiting = {
        let root = root.clone();
        tokio::spawn(async move { shake_hands(port, "shop.example", &root).await })
    };
    shop.pod.shim.wait_for_log("tls.pem: ").await?;
    assert!(!waiting.is_finished(), "there is no certificate yet");
    let first = shop.issue()?;
    assert_eq!(waiting.await.or_fail("wait for the handshake")??.0, first);
    let second = shop.issue()?;
    let next = || async { Ok(shake_hands(port, "shop.example", &root).await?.0 == second) };
    let mut envoy = envoy;
    envoy.wait_until("the next certificate", next).await
}

#[tokio::test]
async fn reserved_names_are_rejected_and_check_reads_the_files() -> testkit::Result {
    let site = Site::new().await?;
    for (names, told) in [
        ("default=a~b", "SDS_SHIM_NAMES: default, ROOTCA, * and names that begin with file- are reserved"),
        ("shop", "SDS_SHIM_NAMES: expected NAME=CHAIN~KEY"),
        ("shop=/nowhere/c.pem~/nowhere/k.pem", "/nowhere/c.pem: No such file"),
    ] {
        let mut shim = Logged(site.shim().env("SDS_SHIM_NAMES", names).arg("check").start()?);
        assert!(!shim.wait_exit().await?.success());
        assert!(shim.log().contains(told), "{told}: {:#?}", shim.log().lines());
    }
    Ok(())
}
