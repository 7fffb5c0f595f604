//! What the command of `sds-shim exec` has of the shim: what the shim was started with, and nothing of what it is.
//! These tests start the shim as another user, so they need root.

use std::{fs, time::Duration};

use testkit::{
    Failure, OrFail,
    confined::{Confinement, MEMLOCK, copy, helper},
    fixture::{Logged, QUIET, Site},
    sds,
    shim::ShimBuilder,
};

/// A shim as in a sidecar that has ended with its command, and the lines that the two have printed.
async fn run(edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Vec<String>, Failure> {
    let site = Site::new().await?;
    // Its user may not be able to reach ours.
    copy(&helper("spy")?, &site.workload.path().join("spy"))?;
    let mut shim = Logged(edit(site.shim().confined(Confinement::default())).start()?);
    assert_eq!(shim.wait_exit().await?.code(), Some(0));
    Ok(shim.log().lines())
}

#[tokio::test]
async fn the_command_cannot_look_into_the_process_that_started_it() -> testkit::Result {
    let lines = run(|shim| shim.env("SDS_SHIM_LOG", "debug").exec(&["./spy"])).await?;
    let told = |name: &str| lines.iter().filter(|line| line.starts_with(name)).cloned().collect::<Vec<_>>();
    let (control, parent) = (told("control "), told("parent "));
    assert_eq!((control.len(), parent.len()), (7, 7), "{lines:#?}");
    let (parent, signals): (Vec<_>, Vec<_>) = parent.into_iter().partition(|line| !line.contains(" kill: "));
    match lines.iter().any(|line| line.contains("Landlock keeps the command from signalling")) {
        true => assert_eq!(signals, ["parent kill: refused, Operation not permitted (os error 1)"]),
        // Older kernels than Linux 6.12, or one that was started without it.
        false => assert!(!scopes_signals(), "Landlock could keep the command from signalling us: {lines:#?}"),
    }
    assert!(control.iter().all(|line| line.ends_with(": allowed")), "the attempts are such as succeed: {control:#?}");
    assert!(parent.iter().all(|line| line.contains(": refused, ")), "{parent:#?}");
    Ok(())
}

/// Whether the kernel has domains of Landlock from which nobody outside can be signalled: those that know them are of
/// Linux 6.12 or later, and list it among what guards them where securityfs is mounted.
fn scopes_signals() -> bool {
    let uname = nix::sys::utsname::uname().expect("the kernel tells its version");
    let mut version = uname.release().to_string_lossy().into_owned();
    version.retain(|c| c.is_ascii_digit() || c == '.');
    let version: Vec<u32> = version.split('.').take(2).filter_map(|number| number.parse().ok()).collect();
    let lsm = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_else(|_| "landlock".to_owned());
    version >= vec![6, 12] && lsm.contains("landlock")
}

/// The filter makes `fork` fail, in the command as well: its subshell shows that the filter is there.
#[tokio::test]
async fn the_shim_never_forks() -> testkit::Result {
    let site = Site::new().await?;
    let filter = helper("without-fork")?.display().to_string();
    let mut shim =
        Logged(site.shim().through(&[&filter]).exec(&["sh", "-c", "echo started; (exit 0); echo forked"]).start()?);
    shim.wait_exit().await?;
    assert!(shim.log().contains("started") && shim.log().contains("Cannot fork") && !shim.log().contains("forked"));
    Ok(())
}

#[tokio::test]
async fn the_command_gets_what_the_shim_was_started_with() -> testkit::Result {
    // Started with a loose umask, a limit of cores, a descriptor, an ignored signal and an argument that is no text.
    let starter = "umask 0027; ulimit -S -c 100; ulimit -H -c 200; exec 7</dev/null; trap '' HUP
        echo of standard input | \"$@\" 'two words' '' -- \"$(printf '\\377')\"";
    // The shell reads its own state: it blocks all signals for a moment when it starts something that would.
    let script = "echo umask=$(umask) core=$(ulimit -S -c),$(ulimit -H -c); ls /proc/$$/fd | xargs echo fds=
        while read -r name value unit; do case $name in
            SigBlk:|SigIgn:|VmLck:) echo \"${name%:}=$value${unit:+ $unit}\";;
        esac; done </proc/$$/status
        echo secret mappings=$(grep -c secretmem /proc/$$/maps); echo stdin=$(cat)
        echo \"arguments=$#,$1,$2,$3,$(printf %s \"$4\" | od -An -tx1)\"; pwd
        echo $SDS_SHIM_LOG,$RUST_BACKTRACE,$RUST_LIB_BACKTRACE; echo standard error >&2";
    let lines = run(|shim| {
        let shim = shim.env("SDS_SHIM_LOG", "info").env("RUST_BACKTRACE", "full").env("RUST_LIB_BACKTRACE", "0");
        shim.through(&["env", "--default-signal", "sh", "-c", starter, "sh"]).exec(&["sh", "-c", script, "sh"])
    })
    .await?;
    for expected in [
        "umask=0027 core=100,200",
        "fds= 0 1 2",
        "SigBlk=0000000000000000",
        "VmLck=0 kB",
        "secret mappings=0",
        "stdin=of standard input",
        "arguments=4,two words,,--, ff",
        "info,full,0",
        "standard error",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected:?} is not in {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.ends_with("/w")), "the working directory");
    let ignored = lines.iter().find_map(|line| line.strip_prefix("SigIgn=")).unwrap_or_default();
    let ignored = u64::from_str_radix(ignored, 16).or_fail("parse the mask")?;
    // Two real-time signals are libc's own, which it ignores in every program that it starts.
    assert_eq!(ignored & 0x7fff_ffff, 1, "SIGHUP, as whoever started the shim has wanted it, and no SIGPIPE");
    Ok(())
}

#[tokio::test]
async fn how_the_command_ends_is_known_also_when_sigchld_was_ignored() -> testkit::Result {
    let site = Site::new().await?;
    let shim = site.shim().through(&["env", "--ignore-signal=CHLD"]).exec(&["sh", "-c", "exit 3"]);
    let mut shim = Logged(shim.start()?);
    assert_eq!(shim.wait_exit().await?.code(), Some(3));
    Ok(())
}

/// A field of a process's status.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the kernel tells it");
    value.trim().to_owned()
}

fn wakeups(pid: u32) -> [String; 2] {
    ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"].map(|name| status(pid, name))
}

#[tokio::test]
async fn with_a_command_it_stays_as_small_as_quiet_and_as_hardened() -> testkit::Result {
    const WHILE: Duration = Duration::from_secs(5);
    let site = Site::new().await?;
    let shim =
        site.shim().confined(Confinement::default()).env("SDS_SHIM_WAIT", "certificate").env("SDS_SHIM_LOG", "debug");
    // What it was started with would allow more; the command does nothing.
    let shim = shim.through(&["sh", "-c", "umask 0; ulimit -c unlimited; exec \"$@\"", "sh"]).exec(&["sleep", "100"]);
    let mut shim = Logged(shim.start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let answer = stream.recv().await?;
    stream.send(sds::ack(&answer, &["default"]));
    shim.wait_for_log("command started").await?;
    shim.wait_for_log("Envoy accepted").await?;
    stream.expect_silence(QUIET).await?;

    let pid = shim.pid();
    let before = wakeups(pid);
    tokio::time::sleep(WHILE).await;
    assert_eq!(wakeups(pid), before, "an idle shim woke up");
    assert_eq!(status(pid, "Threads"), "1");
    let peak = status(pid, "VmPeak");
    println!("VmPeak {peak}, VmSize {}", status(pid, "VmSize"));
    let peak: u64 = peak.trim_end_matches(" kB").parse().or_fail("parse the size")?;
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    assert_eq!(status(pid, "Umask"), "0077");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).or_fail("read its limits")?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    assert_eq!(core.split_whitespace().filter(|field| *field == "0").count(), 2, "{core}");
    assert_eq!(shim.terminate().await?.code(), Some(128 + 15));
    Ok(())
}
