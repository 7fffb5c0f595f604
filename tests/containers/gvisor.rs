//! The image as it is shipped under gVisor: a kernel of its own, which knows some of what the shim asks for and pretends
//! to do some of the rest. Where the machine does not let us start containers nothing can be tested, which is said past
//! the test harness.

use std::path::PathBuf;

use testkit::{
    Failure, OrFail, PATIENCE, POLL, confined,
    container::{Containment, ENVOY_ARGUMENTS, Images, Output, ProgramImage, SHIM, possible},
    fixture::{Logged, Site},
    mount,
    shim::ShimBuilder,
    workspace,
};
use tokio::time::{Instant, sleep};

fn runsc() -> Result<PathBuf, Failure> {
    let path = workspace().join("target/gvisor/runsc");
    if path.exists() { Ok(path) } else { Err(Failure::new("runsc is missing: run `make gvisor`")) }
}

/// An image for gVisor, removed when this is dropped. `None` where there can be none.
fn image(site: &Site, base: Option<&str>) -> Result<Option<ProgramImage>, Failure> {
    if !possible() {
        return Ok(None);
    }
    let images = Images::build(base)?;
    let name = if base.is_some() { images.sidecar() } else { images.binary() };
    ProgramImage::readable(&site.workload.path().join("image"), &name).map(Some)
}

/// A container under gVisor, with a limit of locked memory as runtimes give it nowhere by themselves there.
fn sandbox(image: &str) -> Result<Containment, Failure> {
    Ok(Containment { gvisor: Some(runsc()?), ..Containment::new(image) })
}

/// A shim in it, with what gVisor cannot give accepted.
fn builder(site: &Site, containment: Containment) -> ShimBuilder {
    // There are no clients of ours: gVisor keeps its sockets to itself.
    site.shim().contained(containment).env("SDS_SHIM_REQUIRE_LOCKED", "none").without("SDS_SHIM_ALLOW_UIDS")
}

fn start(site: &Site, containment: Containment, env: &[(&str, &str)]) -> Result<Logged, Failure> {
    let builder = builder(site, containment);
    Ok(Logged(env.iter().fold(builder, |builder, (name, value)| builder.env(*name, *value)).start()?))
}

/// Asks the shim from inside.
async fn ask(shim: &Logged, command: &[&str]) -> Result<String, Failure> {
    let words: Vec<_> = [SHIM].iter().chain(command).copied().collect();
    let Output { code, lines } = shim.container().run(&words).await?;
    let text = lines.join("\n");
    if code == Some(0) { Ok(text) } else { Err(Failure::new(format!("{command:?} ended with {code:?}: {text}"))) }
}

#[tokio::test]
async fn it_serves_renews_by_command_and_tells_what_gvisor_does_not_keep() -> testkit::Result {
    let site = Site::new().await?;
    let Some(image) = image(&site, None)? else { return Ok(()) };
    let mut shim = start(&site, sandbox(image.name())?, &[])?;
    let told = "keys are in memory that is NOT locked, the process is NOT locked; ";
    let line = shim.wait_for_log("keys are in").await?;
    assert!(
        line.contains(told) && line.contains(" KiB are mapped, this kernel does not report what is locked"),
        "{line}"
    );
    // Neither a fault of the limit, nor anything that a setting would give.
    for missing in [
        "keys are not in secret memory: memfd_secret is not available in gVisor",
        "keys can be swapped out: gVisor accepts memory locks but does not pass them on to its host; where the host \
         has no swap, set SDS_SHIM_REQUIRE_LOCKED=none",
    ] {
        shim.wait_for_log(missing).await?;
    }
    shim.wait_for_log("gVisor does not report that the clock was set: it is checked every 60 s").await?;
    ask(&shim, &["wait"]).await?;
    assert!(!shim.log().contains("mode 0111"), "{:?}", shim.log().lines());
    assert!(!shim.log().contains("RLIMIT_MEMLOCK"), "{:?}", shim.log().lines());
    assert!(!shim.log().contains("the wall-clock timer failed"), "{:?}", shim.log().lines());
    // It is so: for the host nothing is locked.
    assert_eq!(shim.container().status("VmLck").await?, "0");

    let first = ask(&shim, &["get", "default"]).await?;
    assert!(ask(&shim, &["renew"]).await?.contains("serves a new certificate"));
    let second = ask(&shim, &["get", "default"]).await?;
    assert_ne!(first, second);
    assert_eq!(site.issued().len(), 2);
    let status: serde_json::Value =
        serde_json::from_str(&ask(&shim, &["status", "--json"]).await?).or_fail("parse the status")?;
    assert_eq!(status["memory"]["level"], "none");
    assert!(status["memory"]["locked_bytes"].is_null(), "{status}");
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

/// gVisor reads a program as its user, whom the shipped image keeps from that.
#[tokio::test]
async fn the_shipped_mode_is_not_started() -> testkit::Result {
    let site = Site::new().await?;
    let Some(_) = image(&site, None)? else { return Ok(()) };
    let images = Images::build(None)?;
    let mut shim = start(&site, sandbox(&images.binary())?, &[])?;
    assert_ne!(shim.wait_exit().await?.code(), Some(0));
    assert!(shim.log().contains("failed to load /usr/local/bin/sds-shim: permission denied"));
    Ok(())
}

/// By default it takes locked memory to start, which gVisor does not have whatever the limit.
#[tokio::test]
async fn it_does_not_start_where_locked_memory_is_required() -> testkit::Result {
    let site = Site::new().await?;
    let Some(image) = image(&site, None)? else { return Ok(()) };
    let mut shim = start(&site, sandbox(image.name())?, &[("SDS_SHIM_REQUIRE_LOCKED", "locked")])?;
    assert_eq!(shim.wait_exit().await?.code(), Some(71));
    assert!(shim.log().contains("gVisor accepts memory locks"), "{:?}", shim.log().lines());
    Ok(())
}

/// What the node's kubelet changes is not reported inside, and is found by looking.
#[tokio::test]
async fn files_that_change_outside_are_followed() -> testkit::Result {
    let site = Site::new().await?;
    let Some(image) = image(&site, None)? else { return Ok(()) };
    let mount = mount::Mount::new(&site, "./certs", mount::ISTIO)?;
    let mut containment = sandbox(image.name())?;
    let certificates = site.workload.path().join("certs");
    confined::own(&certificates, confined::UID, confined::UID).or_fail("give the files away")?;
    containment.shown.push((certificates, "/etc/certs".to_owned()));
    let env = [("FILE_MOUNTED_CERTS", "true"), ("SDS_SHIM_FILE_CHECK", "200ms")];
    let mut shim = start(&site, containment, &env)?;
    shim.wait_for_log("does not report changes; checking the file every").await?;
    ask(&shim, &["wait"]).await?;
    let mut before = ask(&shim, &["get", "default"]).await?;
    for _ in 0..2 {
        mount.rotate()?;
        confined::own(&site.workload.path().join("certs"), confined::UID, confined::UID).or_fail("give them away")?;
        let deadline = Instant::now() + PATIENCE;
        let now = loop {
            let now = ask(&shim, &["get", "default"]).await?;
            if now != before {
                break now;
            }
            assert!(Instant::now() < deadline, "{:?}", shim.log().lines());
            sleep(POLL).await;
        };
        before = now;
    }
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

/// gVisor before November 2025 tells everybody who connects as ourselves.
#[tokio::test]
async fn with_a_shared_socket_no_peer_is_mistaken_for_our_own() -> testkit::Result {
    let site = Site::new().await?;
    let Some(image) = image(&site, None)? else { return Ok(()) };
    let mut shim = start(&site, sandbox(image.name())?, &[("SDS_SHIM_ALLOW_UIDS", "2000")])?;
    shim.wait_for_log("serving SDS").await?;
    let answer = ask(&shim, &["get", "default"]).await;
    assert!(answer.is_err(), "{answer:?}");
    shim.wait_for_log("refused a connection to the SDS socket: this kernel does not report who connects").await?;
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

/// Envoy beside it, which takes what is rotated.
#[tokio::test]
async fn the_sidecar_image_starts_its_agent_and_rotates() -> testkit::Result {
    let site = Site::new().await?;
    let base = ProgramImage::proxy(site.workload.path())?;
    let Some(image) = image(&site, Some(base.name()))? else { return Ok(()) };
    let containment = Containment::sidecar(image.name(), &site.workload)?;
    let containment = Containment { gvisor: Some(runsc()?), ..containment };
    let builder = builder(&site, containment).env("SDS_SHIM_LOG", "debug");
    let builder = ENVOY_ARGUMENTS.iter().fold(builder, |builder, argument| builder.arg(*argument));
    let mut shim = Logged(builder.start()?);
    shim.wait_for_log("command started").await?;
    for name in ["default", "ROOTCA"] {
        shim.wait_for_log(&format!("Envoy accepted resources=\"{name}\"")).await?;
    }
    let mark = shim.log().mark();
    assert!(ask(&shim, &["renew"]).await?.contains("serves a new certificate"));
    shim.wait_for_log_after(mark, "Envoy accepted resources=\"default\"").await?;
    assert_eq!(shim.terminate().await?.code(), Some(0));
    shim.wait_for_log("command exited: exit status: 0").await?;
    Ok(())
}
