//! The socket in a directory that others can write to. These tests give files away, so they need root.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
};

use testkit::{
    Failure, OrFail,
    fixture::{Site, names},
};

/// The mode of a socket is its own from the first moment: whoever may write to its directory could have a mode that is
/// set by name land on another file.
#[tokio::test]
async fn a_link_that_is_planted_for_the_socket_leads_no_mode_astray() -> testkit::Result {
    const STARTS: usize = 3;
    // Whoever plants it has all the time that it takes.
    const SLOWLY: &[&str] = &[
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "signal=none",
        "-e",
        "trace=/^f?chmod",
        "-e",
        "inject=/^f?chmod:delay_enter=500000",
    ];
    let site = Site::new().await?;
    let precious = site.workload.path().join("precious");
    fs::write(&precious, "precious").or_fail("write a file")?;
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).or_fail("close it")?;
    let directory = site.workload.socket().parent().map(Path::to_owned).unwrap_or_default();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).or_fail("open the directory")?;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (planted, target) = (directory.clone(), precious.clone());
    let planting = std::thread::spawn(move || {
        let link = planted.join("link");
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            for entry in fs::read_dir(&planted).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(".socket.") {
                    let _ = symlink(&target, &link).and_then(|()| fs::rename(&link, entry.path()));
                }
            }
        }
    });
    let mut led = 0;
    for _ in 0..STARTS {
        let mut shim =
            site.shim().env("SDS_SHIM_ALLOW_UIDS", "2000").env("SDS_SHIM_ADMIN", "off").through(SLOWLY).start()?;
        // It may find out, and end.
        let _ = shim.wait_for_log("serving SDS").await;
        shim.kill().await?;
        let mode = fs::metadata(&precious).or_fail("look at the file")?.permissions().mode() & 0o7777;
        led += usize::from(mode != 0o600);
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).or_fail("close it again")?;
        for entry in fs::read_dir(&directory).or_fail("list the directory")?.flatten() {
            match fs::remove_file(entry.path()) {
                // The planting thread has just renamed the link that the list still names.
                Err(missing) if missing.kind() == ErrorKind::NotFound => {}
                removed => removed.or_fail("clear the directory")?,
            }
        }
    }
    drop(stop);
    planting.join().map_err(|_| Failure::new("the planting thread has failed"))?;
    assert_eq!(led, 0, "of {STARTS} starts so many have set the mode of another file");
    Ok(())
}

#[tokio::test]
async fn a_directory_writable_by_others_is_reported_with_its_mode() -> testkit::Result {
    const OTHERS: &str = "other users can replace the SDS socket with their own";
    for (mode, owner, told) in
        [(0o777, 0, true), (0o2775, 0, true), (0o755, 7, true), (0o1777, 0, false), (0o755, 0, false)]
    {
        let site = Site::new().await?;
        let directory = site.workload.socket().parent().map(Path::to_owned).unwrap_or_default();
        chown(&directory, Some(owner), None).or_fail("set the owner")?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).or_fail("set the mode")?;
        let pod = site.serve().await?;
        assert_eq!(names(&pod.ask(&["default"]).await?.1)?, ["default"]);
        assert_eq!(pod.shim.log().contains(OTHERS), told, "{mode:o} {owner}");
        if told {
            let line = pod.shim.wait_for_log(OTHERS).await?;
            let expected = format!("workload-spiffe-uds has owner {owner}:0 and mode {mode:04o}");
            assert!(line.contains(&expected) && line.contains(" WARN "), "{line}");
        }
    }
    Ok(())
}
