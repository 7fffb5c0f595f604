//! Certificates in forms that are often found and cannot be read: `check` and the log say what they are, and what helps.

use openssl::base64;
use testkit::{
    Failure, OrFail,
    development_ca::{Issued, Pki},
    fixture::{Site, write},
    shim::ShimBuilder,
};

/// Each form of a text with certificates, and the words that help.
fn forms(pem: &str) -> Vec<(Vec<u8>, &'static str)> {
    let utf_16: Vec<u8> = pem.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let end = pem.rfind("-----END").unwrap_or_default();
    vec![
        (pem.replace(" CERTIFICATE-----", " TRUSTED CERTIFICATE-----").into(), "openssl x509 -in FILE"),
        (pem.replace(" CERTIFICATE-----", " X509 CERTIFICATE-----").into(), "openssl x509 -in FILE"),
        (pem[..end].into(), "a block has no END line"),
        ([&[0xff, 0xfe][..], &utf_16].concat(), "iconv -f UTF-16 -t UTF-8"),
        (utf_16, "iconv -f UTF-16 -t UTF-8"),
        (pem.replace('\n', "\\n").into(), "printf '%b'"),
        (base64::encode_block(pem.as_bytes()).into(), "base64 -d"),
        (pem.replace(" CERTIFICATE-----", " PKCS7-----").into(), "openssl pkcs7 -print_certs"),
    ]
}

async fn check(shim: ShimBuilder) -> Result<String, Failure> {
    let mut check = shim.arg("check").start()?;
    check.wait_exit().await?;
    Ok(check.log().lines().join("\n"))
}

#[tokio::test]
async fn the_form_of_unreadable_anchors_is_named() -> testkit::Result {
    let scene = Site::new().await?;
    let path = scene.workload.path().join("extra.pem");
    for (content, helps) in forms(&Pki::new("one").root_pem()) {
        std::fs::write(&path, content).or_fail("write the anchors")?;
        let shim = scene.shim().env("SDS_SHIM_EXTRA_ROOTS", "./extra.pem");
        let told = check(shim.clone()).await?;
        assert!(told.contains("ERROR    ./extra.pem: ") && told.contains(helps), "{helps}: {told}");
        let shim = shim.start()?;
        let line = shim.wait_for_log("trust anchors in ./extra.pem: ").await?;
        assert!(line.contains(helps), "{helps}: {line}");
    }
    Ok(())
}

#[tokio::test]
async fn the_form_of_an_unreadable_certificate_is_named() -> testkit::Result {
    let scene = Site::new().await?;
    let Issued { chain_pem, key_pem } = scene.issue(&scene.workload.spiffe_id());
    let directory = scene.workload.path().join("etc/certs");
    std::fs::create_dir_all(&directory).or_fail("make the directory")?;
    write(&directory.join("root-cert.pem"), &scene.pki.root_pem())?;
    let shim = || scene.shim().env("FILE_MOUNTED_CERTS", "true");
    let told_of = async |helps: &str| -> testkit::Result {
        let told = check(shim()).await?;
        assert!(told.contains("ERROR") && told.contains(helps), "{helps}: {told}");
        let shim = shim().start()?;
        let line = shim.wait_for_log("the mounted certificate: ").await?;
        assert!(line.contains(helps), "{helps}: {line}");
        Ok(())
    };
    for (content, helps) in forms(&chain_pem) {
        std::fs::write(directory.join("cert-chain.pem"), content).or_fail("write the chain")?;
        write(&directory.join("key.pem"), &key_pem)?;
        told_of(helps).await?;
    }
    write(&directory.join("cert-chain.pem"), &chain_pem)?;
    write(&directory.join("key.pem"), &key_pem.replace('\n', "\\n"))?;
    told_of("the line breaks of its private key are written as \\n").await?;

    // Indented, as it stands in YAML, both are what they are.
    let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    write(&directory.join("cert-chain.pem"), &indented(&chain_pem))?;
    write(&directory.join("key.pem"), &indented(&key_pem))?;
    let told = check(shim()).await?;
    assert!(told.contains("a certificate and its key"), "{told}");
    Ok(())
}
