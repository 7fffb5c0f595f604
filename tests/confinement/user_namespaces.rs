//! Users of other user namespaces: of all that ours has no number for the kernel tells one and the same. These tests make
//! user namespaces and start the shim in them, so they need root.

use std::{fs, os::unix::fs::chown, path::Path};

use nix::{sys::stat::Mode, unistd::mkfifo};
use testkit::{
    Failure, OrFail,
    confined::{copy, helper, own},
    fixture::{Logged, Site},
    process::Process,
    sds::{self, SdsClient},
    shim::program,
};

/// What the kernel tells of users without a number.
const NOBODY: u32 = 65534;
/// Who that user of the namespace is outside.
const OUTSIDE: u32 = 165_534;
const SHARED: &str = "running as the overflow user";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn env(site: &Site) -> Vec<(String, String)> {
    let address = format!("localhost:{}", site.ca.address().port());
    let env =
        [("CA_ADDR", &*address), ("POD_NAMESPACE", "foo"), ("SERVICE_ACCOUNT", "sleep"), ("SDS_SHIM_ADMIN", "off")];
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A shim that is the user `nobody` of a user namespace of its own, as an image with that user is in a pod with
/// `hostUsers: false`.
async fn nobody(site: &Site, more: &[(&str, &str)]) -> Result<Process, Failure> {
    let directory = site.workload.path();
    copy(&program()?, &directory.join("sds-shim"))?;
    let go = directory.join("go");
    mkfifo(&go, Mode::S_IRUSR | Mode::S_IWUSR).or_fail("make a pipe")?;
    own(directory, OUTSIDE, OUTSIDE).or_fail("give the pod away")?;
    chown(&go, Some(0), Some(0)).or_fail("keep the pipe")?;
    let script = "echo inside; read -r _ <go; exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                  --ambient-caps=-all --inh-caps=-all --bounding-set=-all $THROUGH ./sds-shim";
    let mut variables = env(site);
    variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    variables.push(("PATH".to_owned(), "/usr/bin:/bin".to_owned()));
    let arguments = words(&["--user", "--keep-caps", "sh", "-c", script]);
    let shim = Process::start("sds-shim of nobody", Path::new("/usr/bin/unshare"), &arguments, &variables, directory)?;
    shim.wait_for_log("inside").await?;
    for map in ["uid_map", "gid_map"] {
        let told = format!("0 100000 1\n{NOBODY} {OUTSIDE} 1\n");
        fs::write(format!("/proc/{}/{map}", shim.pid()), told).or_fail(format!("write the {map}"))?;
    }
    fs::write(&go, "\n").or_fail("let it go on")?;
    shim.wait_for_log("serving SDS").await?;
    Ok(shim)
}

/// Asks the shim as a user of the first user namespace.
async fn asked_by(site: &Site, launcher: &[&str]) -> Result<(Option<i32>, String), Failure> {
    let arguments = words(&[launcher, &["./sds-shim", "wait", "--timeout", "20s"]].concat());
    let directory = site.workload.path();
    let mut asking = Process::start("sds-shim wait", Path::new("/usr/bin/setpriv"), &arguments, &[], directory)?;
    let code = asking.wait_exit().await?.code();
    Ok((code, asking.log().lines().join("\n")))
}

#[tokio::test]
async fn an_unmapped_user_is_not_mistaken_for_our_own() -> testkit::Result {
    let site = Site::new().await?;
    let shim = nobody(&site, &[]).await?;
    // Our own user, whose process nobody may look into, and who may be in a user namespace of its own.
    let own = ["--reuid", "165534", "--regid", "165534", "--clear-groups"];
    let (code, told) = asked_by(&site, &own).await?;
    assert_eq!(code, Some(0), "{told}\n{:#?}", shim.log().lines());
    let (code, told) = asked_by(&site, &[&own[..], &["unshare", "--user"]].concat()).await?;
    assert_eq!(code, Some(0), "{told}\n{:#?}", shim.log().lines());
    assert!(!shim.log().contains("refused a connection to the SDS socket"));
    // Root of the first user namespace: modes do not keep it out, and the kernel tells of it what it tells of our user.
    let refused = match SdsClient::connect(&site.workload.socket()).await {
        Ok(client) => client.fetch(sds::request(&["default"])).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "{:#?}", shim.log().lines());
    let line = shim.wait_for_log("refused a connection to the SDS socket").await?;
    assert!(line.contains("uid=65534") && line.contains("our user namespace does not map"), "{line}");
    let line = shim.wait_for_log(SHARED).await?;
    assert!(line.contains(" WARN ") && line.contains("65534") && line.contains("does not map"), "{line}");
    assert_eq!(shim.log().count(SHARED), 1);
    Ok(())
}

#[tokio::test]
async fn an_unverifiable_user_namespace_is_reported() -> testkit::Result {
    let site = Site::new().await?;
    copy(&helper("filtered")?, &site.workload.path().join("filtered"))?;
    let shim = nobody(&site, &[("THROUGH", "./filtered without-signals --")]).await?;
    let line = shim.wait_for_log(SHARED).await?;
    assert!(line.contains("where a seccomp profile forbids kill they cannot be told from our own"), "{line}");
    Ok(())
}

#[tokio::test]
async fn uid_65534_of_the_initial_user_namespace_is_served_with_a_warning() -> testkit::Result {
    let site = Site::new().await?;
    copy(&program()?, &site.workload.path().join("sds-shim"))?;
    own(site.workload.path(), NOBODY, NOBODY).or_fail("give the pod away")?;
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let arguments = words(&[&user[..], &["./sds-shim"]].concat());
    let directory = site.workload.path();
    let shim = Process::start("sds-shim", Path::new("/usr/bin/setpriv"), &arguments, &env(&site), directory)?;
    let line = shim.wait_for_log(SHARED).await?;
    assert!(line.contains("every process of that user can request the key"), "{line}");
    let (code, told) = asked_by(&site, &user).await?;
    assert_eq!((code, shim.log().count(SHARED)), (Some(0), 1), "{told}");
    Ok(())
}

#[tokio::test]
async fn the_overflow_uid_cannot_be_allowed() -> testkit::Result {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().env("SDS_SHIM_ALLOW_UIDS", "1337,65534").start()?);
    assert_eq!(shim.wait_exit().await?.code(), Some(64));
    let told = shim.log().lines().join("\n");
    for part in ["SDS_SHIM_ALLOW_UIDS: 65534", "does not map", "all of them would be admitted"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    Ok(())
}
