//! The log: what a line says of each class of failure, its forms and levels, and that no secret is in it or in anything
//! else that is shown.

use serde_json::Value;
use testkit::{
    Failure, OrFail,
    development_ca::{CaOptions, Fault},
    fixture::{Open, Site, renew},
    sds,
    shim::ShimBuilder,
};
use tonic::Code;

fn status(code: Code) -> Fault {
    Fault::Status(code, "because of the test".to_owned())
}

/// An RFC 3339 time of this century.
fn has_time(text: &str) -> bool {
    text.match_indices("20").any(|(at, _)| {
        let time = text.as_bytes().get(at..at + 20).unwrap_or_default();
        time.len() == 20 && [time[4], time[7], time[10], time[13], time[19]] == *b"--T:Z"
    })
}

#[tokio::test]
async fn each_failure_tells_what_happened_what_is_served_and_what_is_next() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().start()?;
    shim.wait_for_log("certificate issued").await?;
    for (fault, cause) in [
        (status(Code::Unavailable), "the CA answered UNAVAILABLE: because of the test"),
        (status(Code::ResourceExhausted), "the CA answered RESOURCE_EXHAUSTED"),
        (Fault::Chain(vec!["nonsense".to_owned(), "nonsense".to_owned()]), "the CA's answer was rejected"),
    ] {
        let mark = shim.log().mark();
        scene.ca.push_fault(fault);
        renew(&shim)?;
        let line = shim.wait_for_log_after(mark, "renewal failed").await?;
        let (_, told) = line.split_once("renewal failed: ").unwrap_or_default();
        assert!(line.contains(" WARN  rotation: ") && told.starts_with(cause), "{line}");
        let (_, served) = told.split_once("; still serving the current certificate until ").unwrap_or_default();
        assert!(has_time(&served[..20.min(served.len())]), "{line}");
        assert!(served.contains("Z; retrying in ") && line.contains(" not_after=\"20"), "{line}");
        // A CA that is overloaded is left alone for half a minute and more.
        renew(&shim)?;
        let line = shim.wait_for_log_after(mark, "renewal succeeded").await?;
        assert!(line.contains("after 1 failed attempts since 20"), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_the_ca_does_not_accept_is_explained() -> testkit::Result {
    let mut scene = Site::without_token(CaOptions::default()).await?;
    let token = testkit::fixture::token();
    scene.write_token(&token)?;
    scene.ca.set_fault(Some(Fault::Status(Code::Unauthenticated, "request authenticate failure".to_owned())));
    let shim = scene.shim().start()?;
    let line = shim.wait_for_log("cannot obtain a certificate").await?;
    for expected in [
        "the CA answered UNAUTHENTICATED: request authenticate failure",
        "the token is for the audience [\"istio-ca\"], of system:serviceaccount:foo:sleep, from \
         https://kubernetes.default.svc.cluster.local, and expires at 20",
        "; requested spiffe://cluster.local/ns/foo/sa/sleep with ClusterID Kubernetes: check that the CA knows",
        "serves this trust domain and cluster and can reach its API server",
        "Envoy waits; retrying in ",
    ] {
        assert!(line.contains(expected), "{expected:?} is not in {line}");
    }
    assert!(token.split('.').all(|part| !line.contains(part)), "{line}");
    Ok(())
}

#[tokio::test]
async fn failures_get_louder_near_expiry_once_per_stage() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SECRET_TTL", "5s").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    scene.ca.set_fault(Some(status(Code::Unavailable)));
    renew(&shim)?;
    let line = shim.wait_for_log("the certificate expired at 20").await?;
    assert!(line.contains(" ERROR ") && line.contains("new streams get none"), "{line}");
    let lines = shim.log().lines();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("renewal failed")).collect();
    let failed = scene.ca.calls().len() - 1;
    assert!((2..=4).contains(&told.len()) && failed >= told.len(), "{failed} failed: {told:#?}");
    assert!(told[0].contains(" WARN "), "{told:#?}");
    assert!(told[1..].iter().all(|line| line.contains("failed attempts since 20")), "{told:#?}");
    Ok(())
}

#[tokio::test]
async fn json_is_one_object_a_line() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().env("SDS_SHIM_LOG_FORMAT", "json").start()?;
    shim.wait_for_log("certificate issued").await?;
    for line in shim.log().lines() {
        let event: Value = serde_json::from_str(&line).or_fail(format!("read {line}"))?;
        assert!(event["time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{line}");
        assert!(["info", "warn"].contains(&event["level"].as_str().unwrap_or_default()), "{line}");
        assert!(event["scope"].is_string() && event["message"].is_string(), "{line}");
        if event["message"] == "certificate issued" {
            assert_eq!(event["identity"], scene.workload.spiffe_id());
            assert!(event["renewal_in_s"].is_u64(), "{line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_scope_has_its_level() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "error,sds=debug").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    shim.wait_for_log("Envoy accepted").await?;
    assert!(shim.log().lines().iter().all(|line| line.contains(" sds: ")), "{:#?}", shim.log().lines());
    Ok(())
}

/// Everything that can be asked of a shim, after everything that usually happens to it.
#[tokio::test]
async fn no_secret_is_in_anything_that_is_shown() -> testkit::Result {
    let mut scene = Site::without_token(CaOptions::default()).await?;
    let token = testkit::fixture::token();
    scene.write_token(&token)?;
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").env("CA_HEADER_X-KEY", "a-header-value").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?;
    let client = shim.connect().await?;
    let mut refusing = client.stream();
    refusing.send(sds::request(&["default"]));
    let pushed = refusing.recv().await?;
    // As Envoy has done: the text of a refusal carries the key.
    refusing.send(sds::nack(&pushed, "", &["default"], &format!("cannot use {}", first.key_pem)));
    shim.wait_for_log("Envoy rejected the secret").await?;
    scene.ca.push_fault(Fault::Status(Code::Unauthenticated, format!("bad token {token}")));
    renew(&shim)?;
    let second = stream.next(&shim).await?;

    let mut shown = shim.log().lines().join("\n");
    for path in ["/", "/livez", "/readyz", "/metrics", "/status", "/status/row", "/nothing"] {
        shown += &shim.admin(path).await?.text();
    }
    let all = scene.shim().env("CA_HEADER_X-KEY", "a-header-value");
    for arguments in [
        &["status", "--table"][..],
        &["status", "--json"],
        &["health"],
        &["get", "default"],
        &["get", "ROOTCA"],
        &["check"],
        &["env"],
        &["renew"],
    ] {
        shown += &output(&all, arguments).await?;
    }
    let body = |pem: &str| pem.lines().filter(|line| !line.contains("-----")).map(str::to_owned).collect::<Vec<_>>();
    let mut secrets = [body(&first.key_pem), body(&second.key_pem)].concat();
    secrets.extend(token.split('.').map(str::to_owned));
    secrets.push("a-header-value".to_owned());
    assert!(secrets.len() >= 8 && shown.len() > 5000);
    for secret in secrets {
        assert!(!shown.contains(&secret), "{} bytes of a secret are shown", secret.len());
    }
    // The control: what is public is found in the same way.
    assert!(body(&first.chain_pem).iter().chain(&body(&second.chain_pem)).any(|line| shown.contains(line)));
    Ok(())
}

async fn output(shim: &ShimBuilder, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = arguments.iter().fold(shim.clone(), |shim, argument| shim.arg(*argument)).start()?;
    let status = command.wait_exit().await?;
    match status.success() {
        true => Ok(command.log().lines().join("\n")),
        false => Err(command.failure(format!("{arguments:?}: {status}"))),
    }
}
