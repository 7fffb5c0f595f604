//! Whether another process of the same user can attach to the shim before it has closed itself to others. These tests
//! start it as another user, so they need root.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use testkit::{
    Failure, OrFail,
    confined::{UID, copy, helper, own},
    fixture::{Logged, Site},
    process::Process,
    scratch::Scratch,
    shim::program,
};

const ATTACHABLE: &str = "another process of the same user could have attached";
/// As UID 1337, without capabilities: setpriv still has root's when it starts a program, and `env` has none.
const AS_USER: [&str; 8] =
    ["--reuid", "1337", "--regid", "1337", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "env"];

fn arguments(more: &[&str]) -> Vec<String> {
    AS_USER.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

/// A copy of the shim that belongs to root.
fn install(directory: &Path, name: &str, mode: u32) -> testkit::Result {
    let path = directory.join(name);
    copy(&program()?, &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).or_fail("set the mode")
}

#[tokio::test]
async fn an_unreadable_program_cannot_be_attached_to() -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    copy(&helper("seizer")?, &scratch.path().join("seizer"))?;
    own(scratch.path(), UID, UID).or_fail("give the directory away")?;
    let attached = async |mode: u32| {
        let name = format!("shim-{mode:o}");
        install(scratch.path(), &name, mode)?;
        let arguments = arguments(&["./seizer", &format!("./{name}"), "100"]);
        let mut seizer = Process::start("seizer", Path::new("/usr/bin/setpriv"), &arguments, &[], scratch.path())?;
        assert_eq!(seizer.wait_exit().await?.code(), Some(0), "{:#?}", seizer.log().lines());
        let line = seizer.wait_for_log("attached to ").await?;
        println!("mode {mode:04o}: {line}");
        Ok::<_, Failure>(line)
    };
    assert_ne!(attached(0o755).await?, "attached to 0 of 100", "the attempt is one that can succeed");
    assert_eq!(attached(0o111).await?, "attached to 0 of 100");
    Ok(())
}

#[tokio::test]
async fn a_possible_attachment_is_reported() -> testkit::Result {
    for (mode, expected) in [(0o755, true), (0o111, false)] {
        let site = Site::new().await?;
        own(site.workload.path(), UID, UID).or_fail("give the pod away")?;
        install(site.workload.path(), "sds-shim", mode)?;
        let address = format!("localhost:{}", site.ca.address().port());
        let env = [("CA_ADDR", &*address), ("POD_NAMESPACE", "foo"), ("SERVICE_ACCOUNT", "sleep")];
        let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let start = |arguments: &[&str]| {
            let (program, directory) = (Path::new("/usr/bin/setpriv"), site.workload.path());
            Process::start("sds-shim of uid 1337", program, &self::arguments(arguments), &env, directory)
        };
        let mut check = start(&["./sds-shim", "check"])?;
        check.wait_exit().await?;
        assert_eq!(check.log().contains(ATTACHABLE), expected, "{mode:o}: {:#?}", check.log().lines());
        let shim = start(&["./sds-shim"])?;
        shim.wait_for_log("serving SDS").await?;
        let told: Vec<_> = shim.log().lines().into_iter().filter(|line| line.contains(ATTACHABLE)).collect();
        assert_eq!(told.len(), usize::from(expected), "{mode:o}: {told:#?}");
        assert!(told.iter().all(|line| line.contains(" WARN ") && line.contains("mode 0111")), "{told:#?}");
    }
    Ok(())
}

/// Root reads what it likes: where it may, the kernel closes nothing.
#[tokio::test]
async fn a_possible_attachment_is_reported_to_root_as_well() -> testkit::Result {
    let site = Site::new().await?;
    let shim = Logged(site.shim().start()?);
    shim.wait_for_log(ATTACHABLE).await?;
    Ok(())
}
