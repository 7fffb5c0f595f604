//! SPIFFE bundle maps: `SDS_SHIM_BUNDLES=@FILE` reads one, and what `OUTPUT_CERTS` writes is taken by grpc-go's watcher.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::x509::X509;
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    development_ca::Pki,
    fixture::{Logged, Site},
    process::Process,
    workspace,
};

fn key(pki: &Pki) -> Result<Value, Failure> {
    let der = X509::from_pem(pki.root_pem().as_bytes()).and_then(|root| root.to_der()).or_fail("encode the root")?;
    Ok(json!({ "use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(der)] }))
}

fn serial(root: &str) -> Result<String, Failure> {
    testkit::tls::serial(&X509::from_pem(root.as_bytes()).or_fail("parse the root")?)
}

fn replace(file: &Path, text: &str) -> testkit::Result {
    let new = file.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, file)).or_fail("write the map")
}

#[tokio::test]
async fn a_map_is_followed_and_grpc_go_takes_what_is_written() -> testkit::Result {
    let site = Site::new().await?;
    let (map, output) = (site.workload.path().join("map.json"), site.workload.path().join("output"));
    let (one, two) = (Pki::new("one"), Pki::new("two"));
    let domains = json!({ "trust_domains": { "other.example": { "keys": [key(&one)?] } } });
    replace(&map, &domains.to_string())?;
    let shim = site.shim().env("SDS_SHIM_BUNDLES", format!("@{}", map.display()));
    let shim = shim.env("OUTPUT_CERTS", output.display().to_string()).env("SDS_SHIM_LANDLOCK", "strict");
    let mut shim = Logged(shim.start()?);
    let written = output.join("spiffe-bundle-map.json");
    shim.until("a map", || written.exists().then_some(())).await?;
    let program = workspace().join("target/workload-api/bundle-map");
    assert!(program.exists(), "run tests/testkit/install-workload-api.sh");
    let reader = Process::start("grpc-go", &program, &[written.display().to_string()], &[], site.workload.path())?;
    let own = format!("cluster.local={}", serial(&site.ca.root_pem())?);
    let mut serials = [serial(&one.root_pem())?, serial(&two.root_pem())?];
    let last = || reader.log().lines().pop().unwrap_or_default();
    let taken = |what: String| {
        let (reader, last) = (&reader, &last);
        async move { reader.until(&format!("grpc-go take {what}"), || (last() == what).then_some(())).await }
    };
    taken(format!("taken: {own} other.example={}", serials[0])).await?;
    // Envoy tells them apart, too.
    let root = shim.connect().await?.fetch(testkit::sds::request(&["ROOTCA"])).await.or_fail("fetch ROOTCA")?;
    let told = String::from_utf8_lossy(&root.resources[0].value).into_owned();
    assert!(told.contains("envoy.tls.cert_validator.spiffe") && told.contains("other.example"));

    // In any order, with a key that is none, one for JWTs, and one of ours, which counts for nothing.
    let jwt = json!({ "use": "jwt-svid", "kty": "EC" });
    let bad = json!({ "use": "x509-svid", "x5c": ["AAAA"] });
    let domains = json!({ "trust_domains": {
        "other.example": { "keys": [jwt, bad, key(&two)?, key(&one)?] },
        "cluster.local": { "keys": [key(&two)?] },
    } });
    replace(&map, &domains.to_string())?;
    serials.sort();
    taken(format!("taken: {own} other.example={}+{}", serials[0], serials[1])).await?;
    let line = shim.wait_for_log("the bundle map in ").await?;
    assert!(line.contains("other.example: key 2 is not an anchor"), "{line}");

    // What cannot be read changes nothing; a trust domain that is gone is.
    replace(&map, "no map")?;
    let line = shim.wait_for_log("it is not JSON").await?;
    assert!(line.contains("trust anchors of 2 trust domains in use"), "{line}");
    replace(&map, "{\"trust_domains\":{}}")?;
    taken(format!("taken: {own}")).await?;
    assert_eq!(reader.log().count("failed"), 0);
    Ok(())
}

/// One that takes much more memory than its text, and one whose domain has withdrawn all of its anchors.
#[tokio::test]
async fn a_map_that_finds_no_room_ends_nothing_and_an_empty_set_withdraws() -> testkit::Result {
    let site = Site::new().await?;
    let (map, output) = (site.workload.path().join("map.json"), site.workload.path().join("output"));
    let other = |keys: &[Value]| json!({ "trust_domains": { "other.example": { "keys": keys } } }).to_string();
    let one = other(&[key(&Pki::new("one"))?]);
    replace(&map, &one)?;
    let shim = site.shim().env("SDS_SHIM_BUNDLES", format!("@{}", map.display()));
    let shim = Logged(shim.env("OUTPUT_CERTS", output.display().to_string()).start()?);
    let written = output.join("spiffe-bundle-map.json");
    let has_other = || fs::read_to_string(&written).is_ok_and(|text| text.contains("other.example"));
    shim.until("a map", || has_other().then_some(())).await?;
    for keys in [vec![json!({}); 40_000], vec![json!(0); 60_000], vec![json!({ "a": [{ "b": 0 }] }); 8000]] {
        let mark = shim.log().mark();
        replace(&map, &other(&keys))?;
        shim.wait_for_log_after(mark, "not enough arena memory for its content").await?;
        assert!(has_other(), "it keeps what it had");
        replace(&map, &one)?;
        shim.wait_for_log_after(mark, "everything is usable again").await?;
    }
    replace(&map, &other(&[]))?;
    shim.until("a map without it", || (!has_other()).then_some(())).await?;
    assert!(!shim.log().contains("crashed"));
    Ok(())
}
