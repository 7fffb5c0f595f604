//! The short-lived commands against a running shim: what they print, and their exit codes.

use std::time::Duration;

use serde_json::Value;
use testkit::{
    Failure, OrFail, POLL,
    development_ca::{CaOptions, Fault},
    fixture::{Open, Site},
    shim::ShimBuilder,
};
use tokio::time::sleep;
use tonic::Code;

/// What a command printed, and its exit code.
async fn run(shim: ShimBuilder, arguments: &[&str]) -> Result<(i32, String), Failure> {
    let mut command = arguments.iter().fold(shim, |shim, argument| shim.arg(*argument)).start()?;
    let code = command.wait_exit().await?.code();
    Ok((code.ok_or_else(|| command.failure("it was ended by a signal"))?, command.log().lines().join("\n")))
}

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down for the test".to_owned())
}

#[tokio::test]
async fn the_status_is_a_table_for_people() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    // The acknowledgement is on its way.
    while !shim.admin("/status").await?.text().contains(r#""acks":1"#) {
        sleep(POLL).await;
    }
    let (code, text) = run(scene.shim(), &["status", "--table"]).await?;
    assert_eq!(code, 0, "{text}");
    let port = scene.ca.address().port().to_string();
    let masked = mask(&text.replace(&port, "PORT").replace(&std::process::id().to_string(), "CLIENT"));
    let golden = "\
sds-shim 0.1.0, process #, up # s: ready
source   the CA, with the token in ./var/run/secrets/tokens/istio-token

spiffe://cluster.local/ns/foo/sa/sleep
renewal  renews in # h # min; last success # s ago
token    the last one used expires in # min # s
RESOURCE  KIND  SERIAL   ISSUER   BEGAN   ENDS
ROOTCA    root  SERIAL   ISSUER   # min # s ago   in # y # d
default   leaf  SERIAL   ISSUER   # min # s ago   in # h # min
default   intermediate  SERIAL   ISSUER   # min # s ago   in # h # min

CA       localhost:PORT answers; # call, # failed, #.# ms each; TLS #.#, X#MLKEM#
SDS      default: sent # time, # ACK, # NACK

STREAM   PID   UID   OPEN   RESOURCE  STATE
StreamSecrets   CLIENT   #   # s   default   accepted # s ago

memory   keys are in MEMORY
sandbox  SANDBOX";
    assert_eq!(simple(&masked), simple(golden), "\n{text}");
    assert!(!text.contains('\x1b'), "no terminal, no colour");
    Ok(())
}

/// Numbers, names of the PKI and what the machine allows differ from run to run.
fn mask(text: &str) -> String {
    let mut masked = String::new();
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if line.starts_with("missing") {
            continue;
        }
        if line.starts_with("memory") {
            masked.push_str("memory   keys are in MEMORY\n");
            continue;
        }
        if line.starts_with("sandbox  seccomp rejects ") {
            masked.push_str("sandbox  SANDBOX\n");
            continue;
        }
        if matches!(words[0].as_str(), "ROOTCA" | "default") {
            let cells: Vec<_> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            words = [cells[0], cells[1], "SERIAL", "ISSUER", cells[4], cells[5]].map(str::to_owned).to_vec();
        }
        masked.push_str(&words.join("  "));
        masked.push('\n');
    }
    let mut out = String::new();
    for (at, part) in masked.split("0.1.0").enumerate() {
        if at > 0 {
            out.push_str("0.1.0");
        }
        let mut digits = false;
        for character in part.chars() {
            match (character.is_ascii_digit(), digits) {
                (true, true) => {}
                (true, false) => out.push('#'),
                (false, _) => out.push(character),
            }
            digits = character.is_ascii_digit();
        }
    }
    out
}

/// Without what depends on widths, and on whether a time is told in one unit or two.
fn simple(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let unit = ["s", "min", "h", "d", "y"].contains(&word.trim_end_matches([';', ':']));
        match words.last().map(String::as_str) {
            Some("#") if unit => {
                words.pop();
                if words.last().is_some_and(|last| last == "TIME") {
                    words.pop();
                }
                words.push(word.replace(char::is_alphabetic, "").replacen("", "TIME", 1));
            }
            _ => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

#[tokio::test]
async fn the_status_is_json_for_programs() -> testkit::Result {
    let scene = Site::new().await?;
    // Also when nothing listens for HTTP: the commands need only the SDS socket.
    let shim = scene.shim().env("SDS_SHIM_ADMIN", "off").start()?;
    shim.wait_for_log("certificate issued").await?;
    let (code, text) = run(scene.shim(), &["status"]).await?;
    assert_eq!(code, 0, "{text}");
    let status: Value = serde_json::from_str(&text).or_fail("read the status")?;
    assert_eq!((&status["ready"], &status["pid"]), (&true.into(), &shim.pid().into()));
    Ok(())
}

#[tokio::test]
async fn health_is_an_exit_code_with_a_reason() -> testkit::Result {
    let scene = Site::new().await?;
    let (code, text) = run(scene.shim(), &["health"]).await?;
    assert_eq!(code, 69, "nobody runs: {text}");
    scene.ca.set_fault(Some(down()));
    let shim = scene.shim().start()?;
    shim.wait_for_log("cannot obtain a certificate").await?;
    let (code, text) = run(scene.shim(), &["health"]).await?;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("default is not available yet") && text.contains("down for the test"), "{text}");
    scene.ca.set_fault(None);
    assert_eq!(run(scene.shim(), &["wait"]).await?, (0, "ready".to_owned()));
    assert_eq!(run(scene.shim(), &["health"]).await?, (0, "ready".to_owned()));
    Ok(())
}

#[tokio::test]
async fn wait_waits_for_the_shim_and_its_certificate_and_no_longer() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(down()));
    let (code, text) = run(scene.shim(), &["wait", "--timeout", "200ms"]).await?;
    assert_eq!(code, 69, "{text}");
    let mut waiting = scene.shim().arg("wait").arg("--timeout=60s").start()?;
    let shim = scene.shim().start()?;
    shim.wait_for_log("cannot obtain a certificate").await?;
    let (code, text) = run(scene.shim(), &["wait", "--timeout", "200ms"]).await?;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("not ready: default is not available yet"), "{text}");
    assert!(waiting.exited().is_none(), "it waits");
    scene.ca.set_fault(None);
    assert_eq!(waiting.wait_exit().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn renew_tells_what_came_of_it() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().start()?;
    shim.wait_for_log("certificate issued").await?;
    let (code, text) = run(scene.shim(), &["renew"]).await?;
    assert_eq!((code, text.contains(&format!("process {} serves a new certificate", shim.pid()))), (0, true), "{text}");
    assert_eq!(scene.issued().len(), 2);
    scene.ca.set_fault(Some(down()));
    let (code, text) = run(scene.shim(), &["renew"]).await?;
    assert_eq!((code, text.contains("the renewal failed: the CA answered UNAVAILABLE")), (1, true), "{text}");
    assert!(text.ends_with("still serving the current certificate"), "{text}");
    Ok(())
}

#[tokio::test]
async fn renew_does_not_promise_what_is_not_held() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(down()));
    let shim = scene.shim().start()?;
    shim.wait_for_log("cannot obtain a certificate").await?;
    let (code, text) = run(scene.shim(), &["renew"]).await?;
    assert_eq!((code, text.ends_with("nothing is served yet")), (1, true), "{text}");
    Ok(())
}

/// A signal that nobody expects would end whoever else serves the socket.
#[tokio::test]
async fn renew_leaves_a_stranger_alone() -> testkit::Result {
    let scene = Site::new().await?;
    let socket = scene.workload.socket();
    let listener = tokio::net::UnixListener::bind(&socket).or_fail("serve the socket")?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    let (code, text) = run(scene.shim(), &["renew"]).await?;
    assert_eq!(code, 69, "{text}");
    sleep(Duration::from_millis(100)).await;
    Ok(())
}

#[tokio::test]
async fn get_prints_what_is_public_and_nothing_else() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let held = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    let (code, chain) = run(scene.shim(), &["get", "default"]).await?;
    assert_eq!(code, 0, "{chain}");
    assert_eq!(chain.trim(), held.chain_pem.trim());
    assert!(!chain.contains("PRIVATE KEY"));
    let (code, roots) = run(scene.shim(), &["get", "ROOTCA"]).await?;
    assert_eq!((code, roots.trim()), (0, scene.ca.root_pem().trim()));
    let (code, text) = run(scene.shim(), &["get", "nothing"]).await?;
    assert_eq!((code, text.contains("none of the requested resources is known")), (1, true), "{text}");
    Ok(())
}

#[tokio::test]
async fn check_tells_all_mistakes_and_shows_no_secret() -> testkit::Result {
    let mut scene = Site::without_token(CaOptions::default()).await?;
    let (code, text) = run(scene.shim(), &["check"]).await?;
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("ERROR    ./var/run/secrets/tokens/istio-token: "), "{text}");

    let token = testkit::fixture::token();
    scene.write_token(&token)?;
    let shim = scene.shim().env("CA_HEADER_X-KEY", "private-value").env("SECRET_TTL", "2h");
    let (code, text) = run(shim, &["check"]).await?;
    assert_eq!(code, 0, "{text}");
    for expected in [
        "SECRET_TTL = 2h  (environment)",
        "ECC_CURVE = P256  (default)",
        "CA_HEADER_X-KEY is set, not shown",
        "identity spiffe://cluster.local/ns/foo/sa/sleep",
        "the token is for the audience [\"istio-ca\"], of system:serviceaccount:foo:sleep, from \
         https://kubernetes.default.svc.cluster.local, and expires at 2",
        "root-cert.pem: 1 trust anchors",
        "the configuration is valid",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    assert!(!text.contains("private-value") && !text.contains(&token[..20]), "{text}");

    let shim = scene.shim().env("SDS_SHIM_COMPAT", "istio").env("CA_ROOT_CA", "SYSTEM").without("CA_ADDR");
    let shim =
        shim.env("PROXY_CONFIG", r#"{"discoveryAddress":"istiod.example:15012"}"#).env("SDS_SHIM_ALLOW_UIDS", "7");
    let (code, text) = run(shim.env("SSL_CERT_FILE", "./var/run/secrets/istio/root-cert.pem"), &["check"]).await?;
    assert_eq!(code, 0, "{text}");
    for expected in [
        "CA_ADDR = istiod.example:15012  (PROXY_CONFIG, else default)",
        "WORKLOAD_RSA_KEY_SIZE = 2048  (SDS_SHIM_COMPAT)",
        "PKCS8_KEY = false  (SDS_SHIM_COMPAT)",
        "SECRET_GRACE_PERIOD_RATIO_JITTER = 0.01  (SDS_SHIM_COMPAT)",
        "CA       istiod.example:15012 with TLS, verified as istiod.example",
        "verified with the anchors in ./var/run/secrets/istio/root-cert.pem",
        "key      RSA with 2048 bits as PKCS#1",
        "audience istio-ca",
        "ROOTCA   the CA's answer\n",
        "output   none",
        "for our own user, 7\n",
        "root-cert.pem: 1 trust anchors",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    assert!(!text.contains("Some(") && !text.contains("Dns("), "{text}");

    let (code, text) = run(scene.shim().env("SECRET_TTL", "x").env("SDS_SHIM_X", "y"), &["check"]).await?;
    assert_eq!((code, text.contains("2 errors")), (64, true), "{text}");
    Ok(())
}

#[tokio::test]
async fn check_tells_the_identity_that_will_be_asked_for() -> testkit::Result {
    let scene = Site::new().await?;
    let shim = scene.shim().env("SDS_SHIM_TRUST_DOMAIN_FILE", "./td");
    for (content, code, domain, told, verdict) in [
        (
            None,
            0,
            "cluster.local",
            "of TRUST_DOMAIN until there is one in",
            "note     ./td: No such file or directory (os error 2); TRUST",
        ),
        (
            Some(""),
            64,
            "cluster.local",
            "of TRUST_DOMAIN until there is one in",
            "ERROR    ./td: a trust domain has only lower-case",
        ),
        (Some("td.example\n"), 0, "td.example", "from", "ok       ./td: the trust domain td.example"),
    ] {
        if let Some(content) = content {
            std::fs::write(scene.workload.path().join("td"), content).or_fail("write the file")?;
        }
        let (ended, text) = run(shim.clone(), &["check"]).await?;
        assert_eq!((ended, text.contains(verdict)), (code, true), "{text}");
        let identity = format!("identity spiffe://{domain}/ns/foo/sa/sleep\n");
        assert!(text.contains(&identity) && text.contains(&format!("in the trust domain {told} ./td\n")), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_fatal_end_is_noted_for_kubernetes() -> testkit::Result {
    let scene = Site::new().await?;
    let file = scene.workload.path().join("termination-log");
    let shim = || scene.shim().env("SDS_SHIM_TERMINATION_LOG", "./termination-log");
    assert_eq!(run(shim().env("SECRET_TTL", "x"), &[]).await?.0, 64);
    assert!(!file.exists(), "only a file that is there is written");
    std::fs::write(&file, "before").or_fail("make the file")?;
    assert_eq!(run(shim().env("SECRET_TTL", "x"), &[]).await?.0, 64);
    let noted = std::fs::read_to_string(&file).or_fail("read the file")?;
    assert!(noted.starts_with("sds-shim: invalid configuration") && noted.contains("SECRET_TTL"), "{noted}");
    Ok(())
}

#[tokio::test]
async fn a_commands_fetch_does_not_count_as_sent_to_envoy() -> testkit::Result {
    let scene = Site::new().await?;
    let mut shim = scene.shim().start()?;
    let (code, told) = run(scene.shim(), &["wait"]).await?;
    assert_eq!(code, 0, "{told}");
    let (code, told) = run(scene.shim(), &["get", "default"]).await?;
    assert!(code == 0 && told.contains("BEGIN CERTIFICATE"), "{told}");
    shim.wait_for_log("sent in answer to FetchSecrets").await?;
    assert_eq!(shim.log().count("sent to Envoy"), 0);
    let status: Value = serde_json::from_str(&shim.admin("/status").await?.text()).or_fail("read the status")?;
    assert!(status["sds"]["resources"]["default"]["pushes"].as_u64().unwrap_or(0) == 0, "{status:#}");
    Ok(())
}
