//! `sds-shim exec` with real commands: when they start, which signals they get, how it all ends. Some of these tests
//! make namespaces, so they need root.

use std::{fs, path::PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail,
    confined::helper,
    development_ca::Fault,
    fixture::{Logged, Pod, Site, names},
    scratch::Scratch,
    sds,
    shim::ShimBuilder,
    workload::SOCKET,
};
use tonic::Code;

/// A shell cannot catch what was ignored when it was started, as `nohup` and background jobs have it for some signals:
/// whoever runs the tests may be one.
const UNIGNORED: [&str; 2] = ["env", "--default-signal"];

/// A shim without a CA or a token, which starts a script.
struct Alone {
    scratch: Scratch,
    shim: ShimBuilder,
}

impl Alone {
    fn new() -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let shim = testkit::shim::Shim::builder(scratch.path()).env("CA_ADDR", "localhost:1");
        Ok(Self { shim: shim.env("POD_NAMESPACE", "foo").env("SERVICE_ACCOUNT", "sleep"), scratch })
    }

    fn start(&self, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Logged, Failure> {
        Ok(Logged(edit(self.shim.clone()).start()?))
    }

    fn script(&self, script: &str) -> Result<Logged, Failure> {
        self.start(|shim| shim.exec(&["sh", "-c", script]))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

#[tokio::test]
async fn it_ends_as_the_command_ends() -> testkit::Result {
    let alone = Alone::new()?;
    for (script, code) in [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
        // A real-time signal, for which the usual libraries have no name.
        ("kill -34 $$", 128 + 34),
    ] {
        let mut shim = alone.script(script)?;
        assert_eq!(shim.wait_exit().await?.code(), Some(code), "{script}");
        assert!(!alone.file(SOCKET).exists(), "{script}: the socket is left behind");
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_cannot_start_is_named_with_a_shells_exit_code() -> testkit::Result {
    let alone = Alone::new()?;
    fs::write(alone.file("plain"), "no program").or_fail("write a file")?;
    for (command, code, told) in [
        (&["exec", "no-such-program"][..], 127, "no-such-program: no such program"),
        (&["exec", "--", "-x"], 127, "-x: no such program"),
        (&["exec", "./plain", "secret-argument"], 126, "cannot execute ./plain: Permission denied"),
        (&["exec", "/"], 126, "cannot execute /: Permission denied"),
        (&["exec"], 64, "missing program"),
        (&["exec", "--"], 64, "missing program"),
        (&["exec", "-x", "true"], 64, "-x: no such command"),
    ] {
        let mut shim = alone.start(|shim| command.iter().fold(shim, |shim, word| shim.arg(*word)))?;
        assert_eq!(shim.wait_exit().await?.code(), Some(code), "{command:?}");
        assert!(shim.log().contains(told), "{command:?}: {told:?} is not told");
        assert!(!shim.log().contains("secret-argument"));
        assert!(!alone.file(SOCKET).exists());
    }
    Ok(())
}

#[tokio::test]
async fn a_shim_that_cannot_serve_starts_nothing() -> testkit::Result {
    let alone = Alone::new()?;
    fs::write(alone.file("var"), "in the way").or_fail("write a file")?;
    let mut shim = alone.script("touch started")?;
    assert_eq!(shim.wait_exit().await?.code(), Some(69));
    assert!(!alone.file("started").exists());
    Ok(())
}

/// Istio's agent dials once, when it starts, and waits a second for the SETTINGS.
#[tokio::test]
async fn the_command_always_finds_a_server_at_the_socket() -> testkit::Result {
    let alone = Alone::new()?;
    let spy = helper("spy")?.display().to_string();
    for _ in 0..25 {
        let mut shim = alone.start(|shim| shim.exec(&[&spy, SOCKET]))?;
        assert_eq!(shim.wait_exit().await?.code(), Some(0));
        assert!(shim.log().contains("settings: allowed"));
    }
    Ok(())
}

#[tokio::test]
async fn signals_reach_the_command_but_for_the_one_that_renews() -> testkit::Result {
    const PASSED: &[Signal] = &[
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGCONT,
        Signal::SIGWINCH,
        Signal::SIGPWR,
    ];
    let site = Site::new().await?;
    let script = "for s in HUP INT QUIT USR1 USR2 ALRM CONT WINCH PWR; do trap \"echo got SIG$s\" $s; done
        trap 'echo got SIGTERM; exit 4' TERM; echo ready; while :; do sleep 0.02; done";
    let shim = site.shim().env("SDS_SHIM_WAIT", "certificate").through(&UNIGNORED).exec(&["sh", "-c", script]);
    let mut pod = site.serve_with(shim).await?;
    pod.shim.wait_for_log("ready").await?;
    for signal in PASSED {
        pod.shim.signal(*signal)?;
        pod.shim.wait_for_log(&format!("got {signal}")).await?;
    }
    let renewed = pod.rotate_and_see().await?;
    assert_eq!(names(&renewed)?, ["default"]);
    assert_eq!(pod.shim.terminate().await?.code(), Some(4));
    assert!(!pod.shim.log().contains("got SIGUSR1"));
    Ok(())
}

#[tokio::test]
async fn sds_is_served_until_a_command_that_takes_its_time_has_ended() -> testkit::Result {
    let site = Site::new().await?;
    let script = "trap '' TERM; echo ready; until [ -e go ]; do sleep 0.02; done; exit 5";
    let shim = site.shim().exec(&["sh", "-c", script]);
    let mut pod = site.serve_with(shim).await?;
    let (mut stream, _) = pod.ask(&["default"]).await?;
    pod.shim.wait_for_log("ready").await?;
    pod.shim.signal(Signal::SIGTERM)?;
    pod.shim.wait_for_log("forwarding SIGTERM").await?;

    // Old streams, new ones, renewals and their failures: all as before.
    pod.rotate()?;
    assert_eq!(names(&stream.recv().await?)?, ["default"]);
    pod.site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    pod.rotate()?;
    pod.shim.wait_for_log("still serving the current certificate").await?;
    let late = pod.shim.connect().await?;
    let answer = late.fetch(sds::request(&["default"])).await.or_fail("fetch while the command drains")?;
    assert_eq!(names(&answer)?, ["default"]);
    assert!(pod.shim.exited().is_none());

    fs::write(pod.site.workload.path().join("go"), "").or_fail("let the command go")?;
    assert_eq!(pod.shim.wait_exit().await?.code(), Some(5));
    stream.expect_closed().await?;
    assert!(!pod.shim.socket().exists());
    Ok(())
}

#[tokio::test]
async fn a_command_that_needs_a_certificate_starts_when_the_ca_is_back() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down".to_owned())));
    let shim = site.shim().env("SDS_SHIM_WAIT", "certificate").exec(&["sh", "-c", "echo it runs; exit 6"]);
    let Pod { mut shim, site, .. } = site.serve_with(shim).await?;
    shim.wait_for_log("cannot obtain a certificate").await?;
    site.ca.wait_for_calls(3).await;
    assert!(!shim.log().contains("it runs"));
    site.ca.set_fault(None);
    assert_eq!(shim.wait_exit().await?.code(), Some(6));
    let lines = shim.log().lines();
    let at = |text: &str| lines.iter().position(|line| line.contains(text));
    let succeeded = at("renewal succeeded");
    assert!(succeeded.is_some() && succeeded < at("command started"), "{lines:#?}");
    assert!(shim.log().contains("it runs"));
    Ok(())
}

#[tokio::test]
async fn sigterm_before_the_command_starts_ends_the_wait() -> testkit::Result {
    let alone = Alone::new()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let waiting = |shim: ShimBuilder| shim.env("SDS_SHIM_WAIT", "certificate").exec(&["touch", "started"]);
        let mut shim = alone.start(waiting)?;
        shim.wait_for_log("waiting for the first certificate").await?;
        shim.signal(signal)?;
        assert_eq!(shim.wait_exit().await?.code(), Some(0), "{signal}");
        assert!(!alone.file("started").exists() && !alone.file(SOCKET).exists());
    }
    Ok(())
}

/// The process that `unshare` has started, which is the first one of its namespace.
fn first_child(parent: u32) -> Result<Pid, Failure> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).or_fail("list the children")?;
    let first = children.split(' ').next().and_then(|pid| pid.parse().ok());
    first.map(Pid::from_raw).ok_or_else(|| Failure::new(format!("{parent} has no child")))
}

#[tokio::test]
async fn as_the_first_process_it_reaps_whatever_is_left_to_it() -> testkit::Result {
    let alone = Alone::new()?;
    // Many at once, so that one signal stands for several of them.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do (sh -c 'exit 7' &); done
        set -- /proc/[0-9]*; while [ $# -gt 2 ]; do sleep 0.02; set -- /proc/[0-9]*; done
        trap 'exit 8' TERM; echo parent $PPID, nobody else; while :; do sleep 0.02; done";
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let mut shim =
        alone.start(|shim| shim.through(&unshare).env("SDS_SHIM_LOG", "debug").exec(&["sh", "-c", script]))?;
    shim.wait_for_log("parent 1, nobody else").await?;
    kill(first_child(shim.pid())?, Signal::SIGTERM).or_fail("signal the first process")?;
    assert_eq!(shim.wait_exit().await?.code(), Some(8));
    assert_eq!(shim.log().count("reaped an orphan: exit status: 7"), 20);
    Ok(())
}

#[tokio::test]
async fn orphans_come_to_it_also_when_it_is_not_the_first_process() -> testkit::Result {
    let script = "(sh -c 'echo $$ > orphan; exit 7' &); until [ -s orphan ]; do sleep 0.02; done
        while [ -e /proc/$(cat orphan) ]; do sleep 0.02; done";
    let alone = Alone::new()?;
    let mut shim = alone.start(|shim| shim.env("SDS_SHIM_LOG", "debug").exec(&["sh", "-c", script]))?;
    assert_eq!(shim.wait_exit().await?.code(), Some(0));
    assert_eq!(shim.log().count("reaped an orphan: exit status: 7"), 1);
    Ok(())
}

#[tokio::test]
async fn the_command_is_not_waited_for_by_those_that_it_leaves_behind() -> testkit::Result {
    let alone = Alone::new()?;
    // The one that stays has no hold on our output.
    let script = "sh -c 'until [ -e end ]; do sleep 0.05; done' >/dev/null 2>&1 & echo left: $!; exit 9";
    let mut shim = alone.script(script)?;
    assert_eq!(shim.wait_exit().await?.code(), Some(9));
    let left = shim.log().lines().iter().find_map(|line| line.strip_prefix("left: ").map(str::to_owned));
    let left = PathBuf::from("/proc").join(left.ok_or_else(|| shim.failure("nothing is left behind"))?).join("exe");
    assert!(fs::read_link(&left).is_ok(), "it has ended as well");
    fs::write(alone.file("end"), "").or_fail("end what is left")?;
    // The directory must not go away before it has seen that.
    shim.until("the end of what is left behind", || fs::read_link(&left).is_err().then_some(())).await
}

#[tokio::test]
async fn a_key_on_the_terminal_is_not_sent_twice() -> testkit::Result {
    let alone = Alone::new()?;
    let ready = "trap 'echo got INT; exit 4' INT; echo ready; while :; do sleep 0.02; done";
    fs::write(alone.file("script"), ready).or_fail("write the script")?;
    // A terminal on which somebody presses Ctrl-C once the script is ready.
    let typist = "(until grep -q ready typescript; do sleep 0.02; done; printf '\\003'
        until grep -q 'command exited' typescript; do sleep 0.02; done) |
        script --quiet --return --flush --command \"exec $*\" typescript";
    let launcher = [&UNIGNORED[..], &["timeout", "20", "sh", "-c", typist, "sh"]].concat();
    let mut shim = alone.start(|shim| shim.through(&launcher).exec(&["sh", "script"]))?;
    assert_eq!(shim.wait_exit().await?.code(), Some(4));
    assert!(shim.log().contains("got INT") && !shim.log().contains("forwarding SIGINT"));
    Ok(())
}
