//! The key and the certificate over a crash: kept where nobody else could have read them, and only then.

use std::{fs, sync::Arc, time::Duration};

use testkit::{
    Failure, OrFail,
    confined::Confinement,
    development_ca::{CaOptions, DevelopmentCa, Fault},
    fixture::{Pod, QUIET, Site, tokens, within},
    shim::ShimBuilder,
};
use tokio::time::sleep;
use tonic::Code;

use super::{break_and_see, certificate, served};

const KEPT: &str = "still serving the certificate from before the crash";
const LOST: &str = "not serving the certificate from before the crash: ";

async fn serve(confinement: Confinement, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Pod, Failure> {
    let site = Site::new().await?;
    let shim = edit(site.shim().may_crash().confined(confinement));
    site.serve_with(shim).await
}

/// What its descriptors are.
fn descriptors(pid: u32) -> Result<Vec<String>, Failure> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).or_fail("list its descriptors")?;
    let mut found = Vec::new();
    for one in all {
        let link = fs::read_link(one.or_fail("look at a descriptor")?.path()).or_fail("read it")?;
        found.push(link.display().to_string());
    }
    Ok(found)
}

/// The most that it has mapped since it was executed, in KiB.
fn peak(pid: u32) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).or_fail("read its status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.ok_or_else(|| Failure::new("its status has no VmPeak"))
}

/// The warning with which it was lost, of which there must be one, and the serial number of the next certificate.
async fn lost(pod: &mut Pod) -> Result<(String, String), Failure> {
    let mark = pod.shim.log().mark();
    break_and_see(&pod.shim).await?;
    let line = pod.shim.wait_for_log_after(mark, LOST).await?;
    assert!(line.contains(" WARN ") && line.ends_with("; requesting a new one"), "{line}");
    let serial = served(&mut pod.shim).await?;
    let lines = pod.shim.log().lines().split_off(mark);
    assert_eq!(lines.iter().filter(|line| line.contains(LOST)).count(), 1, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains(KEPT)), "{lines:#?}");
    Ok((line, serial))
}

#[tokio::test]
async fn a_crash_keeps_the_key_and_the_certificate() -> testkit::Result {
    for variables in [&[][..], &[("ECC_CURVE", "P384")], &[("WORKLOAD_RSA_KEY_SIZE", "2048")]] {
        let with = |shim: ShimBuilder| variables.iter().fold(shim, |shim, (name, value)| shim.env(*name, *value));
        let mut pod = serve(Confinement::CLOSED, with).await?;
        let before = certificate(&mut pod.shim).await?;
        for _ in 0..2 {
            let mark = pod.shim.log().mark();
            break_and_see(&pod.shim).await?;
            pod.shim.wait_for_log_after(mark, KEPT).await?;
            assert!(certificate(&mut pod.shim).await? == before);
            let descriptors = descriptors(pod.shim.pid())?;
            assert!(!descriptors.iter().any(|link| link.contains("secretmem")), "{descriptors:#?}");
            let peak = peak(pod.shim.pid())?;
            assert!(peak <= 8192, "{peak} KiB mapped");
            let status = pod.shim.admin("/status").await?.text();
            let status: serde_json::Value = serde_json::from_str(&status).or_fail("read the status")?;
            assert_eq!(status["memory"]["level"], "secret", "{status}");
        }
        assert_eq!(pod.site.ca.calls().len(), 1);
        println!("{variables:?}: {} KiB mapped at the most by a successor", peak(pod.shim.pid())?);
        // What was handed on is a certificate like any other: it is renewed.
        let mark = pod.shim.log().mark();
        pod.rotate()?;
        pod.shim.wait_for_log_after(mark, "certificate issued").await?;
        assert!(certificate(&mut pod.shim).await?.serial()? != before.serial()?);
    }
    Ok(())
}

#[tokio::test]
async fn twenty_crashes_make_no_call_to_the_ca() -> testkit::Result {
    for _ in 0..10 {
        let mut pod = serve(Confinement::CLOSED, |shim| shim).await?;
        let before = served(&mut pod.shim).await?;
        for _ in 0..2 {
            break_and_see(&pod.shim).await?;
            assert_eq!(served(&mut pod.shim).await?, before);
        }
        assert_eq!(pod.site.ca.calls().len(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn the_third_crash_within_a_minute_costs_the_key() -> testkit::Result {
    let mut pod = serve(Confinement::CLOSED, |shim| shim).await?;
    let before = served(&mut pod.shim).await?;
    for _ in 0..2 {
        let mark = pod.shim.log().mark();
        break_and_see(&pod.shim).await?;
        pod.shim.wait_for_log_after(mark, KEPT).await?;
    }
    let (line, after) = lost(&mut pod).await?;
    assert!(line.contains("the process crashed 3 times within a minute"), "{line}");
    assert_ne!(before, after);
    assert_eq!(pod.site.ca.calls().len(), 2);
    Ok(())
}

/// A program that its user can read is one to which others of that user can attach while it starts.
#[tokio::test]
async fn a_program_that_others_could_attach_to_hands_on_no_key() -> testkit::Result {
    let mut pod = serve(Confinement::DEFAULT, |shim| shim).await?;
    let before = served(&mut pod.shim).await?;
    let (line, after) = lost(&mut pod).await?;
    assert!(line.contains("another process of the same user could have read it"), "{line}");
    assert_ne!(before, after);
    assert_eq!(pod.site.ca.calls().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_not_in_secret_memory_is_not_handed_on() -> testkit::Result {
    let confinement = Confinement { without_secret_memory: true, ..Confinement::CLOSED };
    let mut pod = serve(confinement, |shim| shim).await?;
    let before = served(&mut pod.shim).await?;
    let (line, after) = lost(&mut pod).await?;
    assert!(line.contains("its key was not in secret memory"), "{line}");
    assert_ne!(before, after);
    Ok(())
}

#[tokio::test]
async fn an_expired_certificate_is_not_served_again() -> testkit::Result {
    const LIFE: Duration = Duration::from_secs(4);
    let site = Site::new().await?;
    site.ca.set_ttl(Some(LIFE));
    let shim = site.shim().may_crash().confined(Confinement::CLOSED);
    let mut pod = site.serve_with(shim).await?;
    let before = served(&mut pod.shim).await?;
    pod.site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    pod.shim.wait_for_log("the certificate expired at").await?;
    pod.site.ca.set_ttl(None);
    pod.site.ca.set_fault(None);
    let (line, after) = lost(&mut pod).await?;
    assert!(line.contains("a certificate is valid from "), "{line}");
    assert_ne!(before, after);
    Ok(())
}

/// A renewal that is due while the CA asks for patience: the certificate is served on, and the CA is asked no earlier.
#[tokio::test]
async fn a_crash_in_an_outage_keeps_the_certificate_and_the_cas_patience() -> testkit::Result {
    let mut pod = serve(Confinement::CLOSED, |shim| shim).await?;
    let before = served(&mut pod.shim).await?;
    pod.site.ca.set_fault(Some(Fault::later(Code::Unavailable, 60)));
    pod.rotate()?;
    pod.shim.wait_for_log("retrying in").await?;
    let calls = pod.site.ca.calls().len();
    for _ in 0..2 {
        let mark = pod.shim.log().mark();
        break_and_see(&pod.shim).await?;
        let line = pod.shim.wait_for_log_after(mark, KEPT).await?;
        let wait = line.split_once("renewal_in_s=").and_then(|(_, wait)| wait.split(' ').next()?.parse::<u64>().ok());
        assert!(wait.is_some_and(|wait| wait > 10), "{line}");
        assert_eq!(served(&mut pod.shim).await?, before);
    }
    sleep(QUIET).await;
    assert_eq!(pod.site.ca.calls().len(), calls);
    Ok(())
}

/// Of two addresses one has asked for patience: a successor asks the other alone.
#[tokio::test]
async fn a_successor_honours_each_addresss_retry_after() -> testkit::Result {
    let site = Site::new().await?;
    let other = DevelopmentCa::start(Arc::clone(&site.pki), tokens(), CaOptions::default()).await;
    let other = other.or_fail("start another CA")?;
    let addresses = [site.ca.address(), other.address()].map(|address| format!("localhost:{}", address.port()));
    let shim = site.shim().may_crash().env("CA_ADDR", addresses.join(", ")).confined(Confinement::CLOSED);
    let mut pod = site.serve_with(shim).await?;
    served(&mut pod.shim).await?;
    pod.site.ca.set_fault(Some(Fault::later(Code::Unavailable, 60)));
    other.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    pod.rotate()?;
    pod.shim.wait_for_log("retrying in").await?;
    assert_eq!(pod.site.ca.calls().len(), 2);
    let mark = pod.shim.log().mark();
    break_and_see(&pod.shim).await?;
    pod.shim.wait_for_log_after(mark, KEPT).await?;
    let asked = other.calls().len();
    pod.rotate()?;
    within(&pod.shim, "a call to the other CA", other.wait_for_calls(asked + 1)).await?;
    assert_eq!(pod.site.ca.calls().len(), 2);
    Ok(())
}

/// The CA's root is replaced: the one that is on its way out is served by a successor as well, also without its CA.
#[tokio::test]
async fn anchors_that_are_on_their_way_out_are_kept() -> testkit::Result {
    let mut pod = serve(Confinement::CLOSED, |shim| shim).await?;
    served(&mut pod.shim).await?;
    // Envoy has it before it is logged.
    pod.shim.wait_for_log("certificate issued").await?;
    let other = testkit::development_ca::Pki::new("other").root_pem();
    let anchors = async |pod: &mut Pod| -> Result<String, Failure> {
        let mut stream = pod.shim.connect().await?.stream();
        stream.send(testkit::sds::request(&["ROOTCA"]));
        Ok(testkit::fixture::secret(&stream.recv().await?, "ROOTCA")?.trusted_ca_pem)
    };
    for extra in [vec![other.clone()], Vec::new()] {
        pod.site.ca.set_extra_roots(extra);
        let mark = pod.shim.log().mark();
        pod.rotate()?;
        pod.shim.wait_for_log_after(mark, "certificate issued").await?;
    }
    let before = anchors(&mut pod).await?;
    assert!(before.contains(other.trim()), "{before}");
    for _ in 0..2 {
        break_and_see(&pod.shim).await?;
        assert_eq!(anchors(&mut pod).await?, before);
    }
    assert_eq!(pod.site.ca.calls().len(), 3);
    Ok(())
}
