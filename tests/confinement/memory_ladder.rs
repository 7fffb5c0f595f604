//! Each rung of the ladder: what a kernel, a seccomp profile or a limit takes away, what is told, and what holds.
//! These tests start the shim as another user, so they need root.

use testkit::{
    Failure,
    confined::Confinement,
    fixture::{Logged, Site},
    sds,
};

/// A shim that starts although protection is missing: what it says of it, and that it serves.
async fn serves(confinement: Confinement, required: &str, told: &[&str]) -> testkit::Result {
    started(confinement, required, told).await.map(drop)
}

/// The same; returns it.
async fn started(confinement: Confinement, required: &str, told: &[&str]) -> Result<Logged, Failure> {
    let site = Site::new().await?;
    let builder = site.shim().confined(confinement).env("SDS_SHIM_REQUIRE_LOCKED", required);
    let mut shim = Logged(builder.start()?);
    let client = shim.connect().await?;
    for part in told {
        shim.wait_for_log(part).await?;
        assert_eq!(shim.log().count(part), 1, "{part:?} is told once");
    }
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await?;
    Ok(shim)
}

/// A shim that refuses to start: the exit code, and what it says.
async fn refuses(confinement: Confinement, required: Option<&str>, told: &[&str]) -> testkit::Result {
    let site = Site::new().await?;
    let mut builder = site.shim().confined(confinement);
    if let Some(required) = required {
        builder = builder.env("SDS_SHIM_REQUIRE_LOCKED", required);
    }
    let mut shim = Logged(builder.start()?);
    let status = shim.wait_exit().await?;
    assert_eq!(status.code(), Some(71));
    for part in told {
        assert!(shim.log().contains(part), "{part:?} is not told");
    }
    assert!(!shim.socket().exists(), "it must not listen");
    Ok(())
}

fn memlock(bytes: u64) -> Confinement {
    Confinement { memlock: bytes, ..Confinement::default() }
}

#[tokio::test]
async fn without_secret_memory_keys_are_in_locked_memory() -> testkit::Result {
    let confinement = Confinement { without_secret_memory: true, ..Confinement::default() };
    let told = [
        "keys are in locked memory, the whole process is locked",
        "keys are not in secret memory: memfd_secret is forbidden; allow this system call in the seccomp profile",
    ];
    serves(confinement.clone(), "locked", &told).await?;
    refuses(confinement, Some("secret"), &["SDS_SHIM_REQUIRE_LOCKED=secret", "memfd_secret is forbidden"]).await
}

#[tokio::test]
async fn with_room_for_the_arena_alone_the_rest_is_not_locked() -> testkit::Result {
    let told = [
        "keys are in secret memory (32 KiB), the rest of the process is not locked",
        "the process as a whole is not locked in memory",
    ];
    serves(memlock(4 << 20), "locked", &told).await?;
    refuses(memlock(4 << 20), Some("secret"), &["the process as a whole is not locked in memory"]).await
}

#[tokio::test]
async fn with_too_little_for_the_arena_it_refuses_to_start_unless_allowed() -> testkit::Result {
    for (bytes, keys, what) in [
        (1 << 20, "secret memory (32 KiB)", "tokens"),
        (512 << 10, "secret memory (32 KiB)", "tokens"),
        (256 << 10, "secret memory (32 KiB)", "tokens"),
        (64 << 10, "secret memory (32 KiB)", "tokens"),
        (0, "memory that is NOT locked", "keys"),
    ] {
        let limit = format!("is {} KiB: raise it to at least 2432 KiB, or grant the IPC_LOCK capability", bytes >> 10);
        let what = format!("{what} can be swapped out");
        refuses(memlock(bytes), None, &["SDS_SHIM_REQUIRE_LOCKED=locked", &what, &limit]).await?;
        serves(memlock(bytes), "none", &[&format!("keys are in {keys}, the process is NOT locked"), &what]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_capability_makes_up_for_the_limit() -> testkit::Result {
    let told = ["keys are in secret memory (32 KiB), the whole process is locked"];
    let with_the_capability = |memlock| Confinement { memlock, ipc_lock: true, ..Confinement::default() };
    let shim = started(with_the_capability(64 << 10), "secret", &told).await?;
    // Where secret memory is counted by user, it must fit into the limit nevertheless.
    if shim.log().contains("counts secret memory for each process") {
        serves(with_the_capability(0), "secret", &told).await?;
    }
    Ok(())
}
