//! The image as it is shipped, in containers of podman as Kubernetes would start them. Where the machine does not let
//! us start containers nothing can be tested, which is said past the test harness.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use testkit::{
    Failure, OrFail, confined,
    container::{Containment, ENVOY_ARGUMENTS, Images, ProgramImage, SHIM, podman, possible},
    fixture::{Logged, Site},
    sds, workspace,
};

/// The images, built by the first test that needs them and removed by the last. `None` where there can be none.
fn images() -> Result<Option<Arc<Images>>, Failure> {
    static IMAGES: Mutex<Weak<Images>> = Mutex::new(Weak::new());
    if !possible() {
        return Ok(None);
    }
    let mut shared = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(images) = shared.upgrade() {
        return Ok(Some(images));
    }
    let images = Arc::new(Images::build(None)?);
    *shared = Arc::downgrade(&images);
    Ok(Some(images))
}

/// Starts the shim in a container.
fn start(
    site: &Site,
    containment: Containment,
    required: Option<&str>,
    env: &[(&str, &str)],
) -> Result<Logged, Failure> {
    let mut builder = site.shim().contained(containment);
    for (name, value) in env {
        builder = builder.env(*name, *value);
    }
    if let Some(required) = required {
        builder = builder.env("SDS_SHIM_REQUIRE_LOCKED", required);
    }
    Ok(Logged(builder.start()?))
}

/// Waits for the first certificate and has it renewed once.
async fn serves(shim: &mut Logged) -> testkit::Result {
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    stream.send(sds::ack(&first, &["default"]));
    shim.container().exec(&[SHIM, "renew"]).await?;
    let second = stream.recv().await?;
    assert_ne!(testkit::fixture::serial(&first)?, testkit::fixture::serial(&second)?);
    Ok(())
}

#[tokio::test]
async fn the_shipped_image_holds_all_its_promises_in_a_restricted_container() -> testkit::Result {
    let Some(images) = images()? else { return Ok(()) };
    let site = Site::new().await?;
    let mut shim = start(&site, Containment::new(&images.binary()), Some("secret"), &[])?;
    let told = "memory: keys are in secret memory (32 KiB), the whole process is locked";
    let line = shim.wait_for_log("keys are in").await?;
    assert!(line.contains(told), "{line}");
    assert_eq!(shim.log().lines().first(), Some(&line), "it is the first thing that is said");
    serves(&mut shim).await?;

    let container = shim.container();
    let number = |text: String| text.parse::<u64>().expect("a number");
    let (peak, mapped, locked) = (
        number(container.status("VmPeak").await?),
        number(container.status("VmSize").await?),
        number(container.status("VmLck").await?),
    );
    println!("VmPeak {peak} KiB, VmSize {mapped} KiB, VmLck {locked} KiB");
    assert!(peak <= confined::MEMLOCK >> 10, "{peak} KiB were mapped");
    // The kernel's own pages and the guard pages cannot be locked.
    assert!(locked + 64 >= mapped, "{locked} of {mapped} KiB are locked");
    for (name, value) in [
        ("VmSwap", "0"),
        ("Uid", "1337\t1337\t1337\t1337"),
        ("Gid", "1337\t1337\t1337\t1337"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        // A filter: the default profile.
        ("Seccomp", "2"),
    ] {
        assert_eq!(container.status(name).await?, value, "{name}");
    }
    container.exec(&[SHIM, "health"]).await?;
    let killed = podman(&["container", "inspect", "--format", "{{.State.OOMKilled}}", container.name()])?;
    assert_eq!(killed, "false");
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn without_secret_memory_and_as_any_user_it_steps_down_and_serves() -> testkit::Result {
    let Some(images) = images()? else { return Ok(()) };
    let site = Site::new().await?;
    let path = podman(&["info", "--format", "{{.Host.Security.SECCOMPProfilePath}}"])?;
    let usual = fs::read_to_string(&path).or_fail(format!("read podman's profile {path}"))?;
    let profile = site.workload.path().join("seccomp.json");
    let without = usual.replace("\"memfd_secret\",", "");
    assert_ne!(usual, without, "podman's profile allows it");
    fs::write(&profile, without).or_fail("write the profile")?;
    // As OpenShift chooses it: any user, of the group 0.
    let containment =
        Containment { user: (1_000_680_000, 0), seccomp: Some(profile), ..Containment::new(&images.binary()) };
    let mut shim = start(&site, containment.clone(), None, &[])?;
    shim.wait_for_log("keys are in locked memory, the whole process is locked").await?;
    shim.wait_for_log("memfd_secret is not available").await?;
    serves(&mut shim).await?;
    assert_eq!(shim.container().status("Uid").await?.split('\t').next(), Some("1000680000"));
    assert_eq!(shim.terminate().await?.code(), Some(0));

    let mut shim = start(&site, containment, Some("secret"), &[])?;
    assert_eq!(shim.wait_exit().await?.code(), Some(71));
    assert!(shim.log().contains("SDS_SHIM_REQUIRE_LOCKED=secret"));
    Ok(())
}

#[tokio::test]
async fn the_profile_of_our_own_is_enough_and_the_filter_goes_with_it() -> testkit::Result {
    let Some(images) = images()? else { return Ok(()) };
    let site = Site::new().await?;
    let profile = workspace().join("packaging/seccomp/sds-shim.json");
    let containment = Containment { seccomp: Some(profile), ..Containment::new(&images.binary()) };
    let mut shim = start(&site, containment, Some("secret"), &[("SDS_SHIM_SECCOMP", "strict")])?;
    shim.wait_for_log("keys are in secret memory (32 KiB), the whole process is locked").await?;
    shim.wait_for_log("sandbox: seccomp rejects system calls that serving does not need").await?;
    serves(&mut shim).await?;
    assert_eq!(shim.terminate().await?.code(), Some(0));
    Ok(())
}

/// What container runtimes give on kernels before 5.16.
#[tokio::test]
async fn with_an_old_kernels_limit_it_refuses_to_start_unless_allowed() -> testkit::Result {
    let Some(images) = images()? else { return Ok(()) };
    let site = Site::new().await?;
    let containment = Containment { memlock: 64 << 10, ..Containment::new(&images.binary()) };
    let mut shim = start(&site, containment.clone(), None, &[])?;
    assert_eq!(shim.wait_exit().await?.code(), Some(71));
    assert!(shim.log().contains("is 64 KiB: raise it to at least 2432 KiB, or grant the IPC_LOCK capability"));

    let mut shim = start(&site, containment, Some("none"), &[])?;
    shim.wait_for_log("the process is NOT locked").await?;
    serves(&mut shim).await
}

/// The sidecar's image: the shim starts what stands in the place of Istio's agent, with the arguments of the
/// container, and ends with it.
#[tokio::test]
async fn the_sidecar_image_starts_its_agent_beside_the_shim() -> testkit::Result {
    if images()?.is_none() {
        return Ok(());
    }
    let site = Site::new().await?;
    let base = ProgramImage::proxy(site.workload.path())?;
    let images = Images::build(Some(base.name()))?;
    let containment = Containment::sidecar(&images.sidecar(), &site.workload)?;
    let mut builder = site.shim().contained(containment).env("SDS_SHIM_REQUIRE_LOCKED", "secret");
    builder = builder.env("SDS_SHIM_LOG", "debug");
    for argument in ENVOY_ARGUMENTS {
        builder = builder.arg(argument);
    }
    let mut shim = Logged(builder.start()?);
    shim.wait_for_log("command started").await?;
    for name in ["default", "ROOTCA"] {
        shim.wait_for_log(&format!("Envoy accepted resources=\"{name}\"")).await?;
    }
    assert_eq!(shim.terminate().await?.code(), Some(0));
    shim.wait_for_log("command exited: exit status: 0").await?;
    Ok(())
}
