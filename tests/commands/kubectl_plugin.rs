//! `kubectl sds-shim status`: the real script by `sh`, and rows of the shipped shim. What stands in place of kubectl is
//! there for what goes wrong, and for the order: `tests/kubernetes/status.rs` has the real one.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testkit::{
    Failure, OrFail,
    development_ca::Fault,
    fixture::{Site, renew, write, write_program},
    process::Process,
    scratch::Scratch,
    sds, shim, workspace,
};
use tonic::Code;

/// Says what its files say: `pods` is what kubectl's template makes of the pods, `exec.POD` and `proxy.POD` are scripts.
const KUBECTL: &str = r#"#!/bin/sh
cd DIRECTORY || exit
printf '%s\n' "$*" >>calls
case " $* " in
*" get pods "*) . ./pods ;;
*" get --raw "*)
    pod=${*##*/pods/}
    . "./proxy.${pod%%:*}" ;;
*" exec "*)
    pod=${*##* exec }
    . "./exec.${pod%% *}" ;;
esac
"#;
const HEADER: [&str; 9] = ["NAMESPACE", "POD", "IDENTITY", "STATE", "ENDS", "ANCHORS", "NACKS", "MEMORY", "TROUBLE"];
const GOOD: &str = "printf 'spiffe://a/ns/foo/sa/b\\tready\\tin 13 h\\t1, in 9 y\\t0\\tsecret\\t-\\n'";

/// A pod as kubectl's template tells it, with a container of the chart.
fn pod(name: &str, phase: &str, state: &str) -> String {
    format!("P\tfoo\t{name}\t{phase}\t\nC\tsds-shim\t\"localhost/sds-shim:1\"\t\nS\tsds-shim\t{state}\nE\n")
}

struct Stage(Scratch);

impl Stage {
    fn new(pods: &str) -> Result<Self, Failure> {
        let stage = Self(Scratch::new("kubectl")?);
        let kubectl = stage.path("kubectl");
        write_program(&kubectl, &KUBECTL.replace("DIRECTORY", &stage.0.path().display().to_string()))?;
        write(&stage.path("list"), pods)?;
        stage.says("pods", "cat list")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn says(self, what: &str, script: &str) -> Result<Self, Failure> {
        write(&self.path(what), script)?;
        Ok(self)
    }

    /// This shim is asked in the pod.
    fn runs(self, pod: &str, scene: &Site) -> Result<Self, Failure> {
        let (program, directory) = (shim::program()?, scene.workload.path().display().to_string());
        self.says(&format!("exec.{pod}"), &format!("cd {directory} && exec {} status --row", program.display()))
    }

    fn run(&self, arguments: &[&str]) -> Result<Told, Failure> {
        self.run_by(&["sh"], arguments)
    }

    fn run_by(&self, shell: &[&str], arguments: &[&str]) -> Result<Told, Failure> {
        let others = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(script()).args(arguments).current_dir(self.0.path());
        command.env("PATH", format!("{}:{others}", self.0.path().display())).env("TMPDIR", self.0.path());
        let Output { status, stdout, stderr } = command.output().or_fail("run the plugin")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Told { code: status.code(), output: text(&stdout), errors: text(&stderr) })
    }

    fn left_nothing(&self) -> testkit::Result {
        let left = fs::read_dir(self.0.path()).or_fail("list the directory")?.flatten();
        let left: Vec<_> = left.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        assert!(!left.iter().any(|name| name.contains("kubectl-sds-shim")), "{left:?}");
        Ok(())
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Told {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl Told {
    /// The cells of the table, which stand where their headings do, by pod.
    fn rows(&self) -> BTreeMap<&str, Vec<&str>> {
        let header = self.output.lines().next().unwrap_or_default();
        let starts = HEADER.map(|name| header.find(name).unwrap_or_else(|| panic!("no {name} in {self:?}")));
        self.output
            .lines()
            .skip(1)
            .map(|line| {
                let ends = starts.iter().skip(1).copied().chain([line.len()]);
                let cells: Vec<_> = starts.iter().zip(ends).map(|(start, end)| line[*start..end].trim()).collect();
                (cells[1], cells)
            })
            .collect()
    }
}

fn script() -> PathBuf {
    workspace().join("packaging/kubectl/kubectl-sds_shim")
}

/// Those of this machine that call themselves a POSIX shell.
fn shells() -> Vec<Vec<&'static str>> {
    let known = [vec!["sh"], vec!["dash"], vec!["busybox", "sh"], vec!["bash", "--posix"]];
    let there =
        |shell: &Vec<&str>| Path::new("/usr/bin").join(shell[0]).exists() || Path::new("/bin").join(shell[0]).exists();
    known.into_iter().filter(there).collect()
}

#[test]
fn every_shell_reads_it() {
    for shell in shells() {
        let ran = Command::new(shell[0]).args(&shell[1..]).arg("-n").arg(script()).output().expect("run a shell");
        assert!(ran.status.success() && ran.stderr.is_empty(), "{shell:?}: {ran:?}");
    }
    let mode = fs::metadata(script()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "kubectl runs only what is executable");
}

#[test]
fn an_invalid_command_line_is_reported_without_a_request() -> testkit::Result {
    let stage = Stage::new("")?;
    for (arguments, expected) in [
        (&[][..], "missing command"),
        (&["list"], "list: no such command"),
        (&["status", "status"], "one command at a time"),
        (&["status", "--all"], "--all: no such option"),
        (&["status", "--color=yes"], "--color: no such option"),
        (&["status", "-n"], "-n: its value is missing"),
        (&["status", "--context="], "--context: its value is empty"),
        (&["status", "-A", "-n", "foo"], "exclude each other"),
        (&["status", "--via", "ssh"], "--via ssh: expected exec or proxy"),
    ] {
        let told = stage.run(arguments)?;
        assert!(told.code == Some(2) && told.errors.contains(expected) && told.output.is_empty(), "{told:?}");
    }
    for help in ["-h", "--help"] {
        let told = stage.run(&["status", help])?;
        assert!(told.code == Some(0) && told.output.contains("Usage: kubectl sds-shim status"), "{told:?}");
    }
    assert_eq!(stage.calls(), "");
    Ok(())
}

#[tokio::test]
async fn a_shim_that_is_well_is_a_row() -> testkit::Result {
    let scene = Site::new().await?;
    let running = scene.shim().start()?;
    running.wait_for_log("certificate issued").await?;
    let stage = Stage::new(&pod("sleep", "Running", "running"))?.runs("sleep", &scene)?;
    let options = ["-nfoo", "--context=c", "--kubeconfig", "f", "-l", "app=sleep"];
    let told = stage.run(&[&["status"][..], &options].concat())?;
    let rows = told.rows();
    let row = &rows["sleep"];
    assert_eq!(row[..4], ["foo", "sleep", "spiffe://cluster.local/ns/foo/sa/sleep", "ready"], "{told:?}");
    assert!(row[4].starts_with("in ") && row[5].starts_with("1, in ") && row[6] == "0", "{told:?}");
    // What this machine lacks of protection is a trouble.
    assert_eq!((told.code, row[7]), if row[8] == "-" { (Some(0), "secret") } else { (Some(1), row[7]) }, "{told:?}");
    let calls = stage.calls();
    let expected = "--context=c --kubeconfig=f --request-timeout=30s exec sleep --namespace=foo --container=sds-shim -- \
                    sds-shim status --row\n";
    assert!(calls.ends_with(expected) && !calls.contains("--raw"), "{calls}");
    assert!(calls.contains("get pods --namespace=foo --selector=app=sleep -o go-template="), "{calls}");
    Ok(())
}

#[tokio::test]
async fn a_shim_in_trouble_says_why() -> testkit::Result {
    let scene = Site::new().await?;
    let message = "down\tfor the\ntest".to_owned();
    scene.ca.set_fault(Some(Fault::Status(Code::Unavailable, message)));
    let running = scene.shim().start()?;
    running.wait_for_log("cannot obtain a certificate").await?;
    let stage = Stage::new(&pod("sleep", "Pending", "running"))?.runs("sleep", &scene)?;
    let told = stage.run(&["status"])?;
    let rows = told.rows();
    assert_eq!((told.code, rows["sleep"][3], rows["sleep"][4]), (Some(1), "NOT READY", "-"), "{told:?}");
    let why = rows["sleep"][8];
    assert!(why.starts_with("default is not available yet: the CA answered UNAVAILABLE"), "{told:?}");
    assert_eq!(why.matches("UNAVAILABLE").count(), 1, "{told:?}");
    Ok(())
}

#[tokio::test]
async fn a_rejection_is_shown_until_the_next_acceptance() -> testkit::Result {
    let scene = Site::new().await?;
    let mut running = scene.shim().start()?;
    let stage = Stage::new(&pod("sleep", "Running", "running"))?.runs("sleep", &scene)?;
    let client = running.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    stream.send(sds::ack(&first, &["default"]));
    renew(&running)?;
    let second = stream.recv().await?;
    stream.send(sds::nack(&second, &first.version_info, &["default"], "not to my taste"));
    running.wait_for_log("not to my taste").await?;
    let told = stage.run(&["status"])?;
    let row = &told.rows()["sleep"];
    assert_eq!((told.code, row[3], row[6]), (Some(1), "ready", "1"), "{told:?}");
    assert!(row[8].starts_with("Envoy refused default: not to my taste"), "{told:?}");
    renew(&running)?;
    let third = stream.recv().await?;
    // What else it asks for is answered after that.
    stream.send(sds::ack(&third, &["default", "ROOTCA"]));
    stream.recv().await?;
    let told = stage.run(&["status"])?;
    let row = &told.rows()["sleep"];
    assert!(row[6] == "1" && !row[8].contains("refused"), "{told:?}");
    Ok(())
}

/// Ctrl-C while somebody does not answer.
#[tokio::test]
async fn an_interrupt_ends_it_and_leaves_nothing() -> testkit::Result {
    let stage =
        Stage::new(&pod("silent", "Running", "running"))?.says("exec.silent", "echo $$ >asked; exec sleep 60")?;
    // Where this runs in the background of a script, it ignores the signal, and what it starts could not trap it.
    let arguments = ["--default-signal=INT", "sh", &script().display().to_string(), "status"].map(ToOwned::to_owned);
    let path = format!("{}:{}", stage.0.path().display(), std::env::var("PATH").unwrap_or_default());
    let variables = [("PATH".to_owned(), path), ("TMPDIR".to_owned(), stage.0.path().display().to_string())];
    let mut plugin = Process::start("the plugin", Path::new("/usr/bin/env"), &arguments, &variables, stage.0.path())?;
    let asked = || fs::read_to_string(stage.path("asked")).ok()?.trim().parse().ok();
    let silent = plugin.until("asking", asked).await?;
    plugin.signal(Signal::SIGINT)?;
    assert_eq!(plugin.wait_exit().await?.code(), Some(130));
    kill(Pid::from_raw(silent), Signal::SIGKILL).or_fail("end what stands in for kubectl")?;
    stage.left_nothing()
}

#[test]
fn unreachable_pods_are_rows_as_well() -> testkit::Result {
    for shell in shells() {
        let pods = ["dumb", "denied", "far", "evil"].map(|name| pod(name, "Running", "running")).concat();
        let stage = Stage::new(&pods)?
            .says(
                "exec.dumb",
                "echo 'sds-shim: --row: no such command' >&2; echo 'command terminated with exit code 64' >&2; exit 1",
            )?
            .says("proxy.dumb", "echo not found")?
            .says("exec.denied", "echo 'Error from server (Forbidden): no' >&2; exit 1")?
            .says("proxy.denied", GOOD)?
            .says("exec.far", "echo >&2; echo 'error: no\troute' >&2; exit 1")?
            .says("proxy.far", "exit 1")?
            .says("exec.evil", &GOOD.replace("-\\n", "\\033[2Jred\\r\\n"))?;
        let told = stage.run_by(&shell, &["status", "-A"])?;
        assert_eq!(told.code, Some(1), "{told:?}");
        let rows = told.rows();
        let unknown = ["-", "unknown", "-", "-", "-", "-"];
        assert_eq!(rows["dumb"][2..8], unknown, "{told:?}");
        assert_eq!(
            rows["dumb"][8],
            "cannot be asked: sds-shim: --row: no such command; by the proxy: the answer is not from a shim that knows \
             `status --row`"
        );
        assert_eq!(
            rows["denied"][2..],
            ["spiffe://a/ns/foo/sa/b", "ready", "in 13 h", "1, in 9 y", "0", "secret", "-"]
        );
        assert_eq!(rows["far"][8], "cannot be asked: error: no; route; by the proxy: kubectl says nothing");
        assert_eq!(rows["evil"][8], "[2Jred");
        assert!(stage.calls().contains("get --raw /api/v1/namespaces/foo/pods/denied:15022/proxy/status/row\n"));

        let told = stage.run_by(&shell, &["status", "--via=exec"])?;
        assert_eq!(told.rows()["denied"][8], "cannot be asked: Error from server (Forbidden): no", "{told:?}");
        let stage = stage.says("calls", "")?.says("proxy.evil", GOOD)?;
        let told = stage.run_by(&shell, &["status", "--via", "proxy"])?;
        assert!(told.rows()["evil"][8] == "-" && !stage.calls().contains(" exec "), "{told:?}");
        stage.left_nothing()?;
    }
    Ok(())
}

#[test]
fn a_pod_that_does_not_run_is_a_row() -> testkit::Result {
    let pods = [
        pod("young", "Pending", ""),
        pod("stuck", "Pending", "is waiting: \"ImagePullBackOff\""),
        pod("crashed", "Running", "has ended: \"Error\""),
        pod("done", "Succeeded", "has ended: \"Completed\""),
        pod("evicted", "Failed", "").replace("Failed\t", "Failed\t\"Evicted\""),
    ];
    let stage = Stage::new(&pods.concat())?;
    let told = stage.run(&["status"])?;
    let ends = |pod: &str| (told.rows()[pod][3], told.rows()[pod][8]);
    assert_eq!(ends("young"), ("Pending", "the pod is Pending"), "{told:?}");
    assert_eq!(ends("stuck"), ("Pending", "container sds-shim is waiting: ImagePullBackOff"));
    assert_eq!(ends("crashed"), ("Running", "container sds-shim has ended: Error"));
    assert_eq!(ends("done"), ("Succeeded", "-"));
    assert_eq!(ends("evicted"), ("Failed", "the pod has failed: Evicted"));
    let calls = stage.calls();
    assert!(told.code == Some(1) && !calls.contains(" exec ") && !calls.contains("--raw"), "nobody is asked: {calls}");
    // What has done its work is no trouble.
    let told = Stage::new(&pods[3])?.run(&["status"])?;
    assert_eq!(told.code, Some(0), "{told:?}");
    Ok(())
}

#[test]
fn the_container_with_the_shim_is_found() -> testkit::Result {
    let with = |name: &str, containers: &[(&str, &str, &str)]| {
        let container = |(name, image, env): &(&str, &str, &str)| format!("C\t{name}\t\"{image}\"\t{env}\n");
        format!("P\tfoo\t{name}\tRunning\t\n{}E\n", containers.iter().map(container).collect::<String>())
    };
    let (shim, proxy) = ("r.example:5000/a/sds-shim:1@sha256:0", "proxyv2:1");
    let pods = [
        with("chart", &[("envoy", proxy, ""), ("sds-shim", "any", "SDS_SHIM_ADMIN=\"[::]:15099\" ")]),
        with("istio", &[("istio-init", shim, ""), ("app", "app", ""), ("istio-proxy", shim, "")]),
        with("own", &[("istio-proxy", proxy, ""), ("mine", "mine", "A= SDS_SHIM_LOG= ")]),
        with("plain", &[("app", "app", ""), ("istio-proxy", proxy, "SDS_SHIM_ADMIN=\"unix:./a:b\" ")]),
        with("ca", &[("ca", "localhost/sds-shim-development-ca:1", "")]),
    ];
    let mut stage = Stage::new(&pods.concat())?;
    for name in ["chart", "istio", "own", "plain"] {
        stage = stage.says(&format!("exec.{name}"), "exit 1")?.says(&format!("proxy.{name}"), GOOD)?;
    }
    let told = stage.run(&["status"])?;
    assert_eq!((told.code, told.rows().len()), (Some(0), 4), "{told:?}");
    let calls = stage.calls();
    for (pod, container, port) in [
        ("chart", "sds-shim", 15099),
        ("istio", "istio-proxy", 15022),
        ("own", "mine", 15022),
        ("plain", "istio-proxy", 15022),
    ] {
        let asked = format!("exec {pod} --namespace=foo --container={container} -- ");
        assert!(calls.contains(&asked) && calls.contains(&format!("pods/{pod}:{port}/proxy")), "{pod}: {calls}");
    }
    let told = stage.run(&["status", "-c", "app", "--via=proxy"])?;
    assert_eq!(told.rows().into_keys().collect::<Vec<_>>(), ["istio", "plain"], "{told:?}");
    Ok(())
}

/// The first ones end only when eight have begun, and the first of all when others have ended. Each lasts long enough for
/// one too many to begin beside it.
#[test]
fn eight_are_asked_at_a_time_and_keep_their_order() -> testkit::Result {
    let names: Vec<_> = (1..=20).map(|number| format!("pod-{number}")).collect();
    let mut stage = Stage::new(&names.iter().map(|name| pod(name, "Running", "running")).collect::<String>())?;
    for (at, name) in names.iter().enumerate() {
        let until = match at {
            0 => "[ \"$(grep -c '^-1$' log)\" -ge 12 ]",
            1..8 => "[ \"$(grep -c '^1$' log)\" -ge 8 ]",
            _ => "true",
        };
        let script = format!(
            "echo 1 >>log; left=600; until {until}; do left=$((left - 1)); [ $left -gt 0 ] || exit; sleep 0.05; done; \
             sleep 0.2; echo -1 >>log; {}",
            GOOD.replace("sa/b", &format!("sa/{name}"))
        );
        stage = stage.says(&format!("exec.{name}"), &script)?;
    }
    let told = stage.run(&["status"])?;
    assert_eq!(told.code, Some(0), "{told:?}");
    let listed: Vec<_> = told.output.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(listed, names);
    assert!(told.rows().iter().all(|(pod, row)| row[2] == format!("spiffe://a/ns/foo/sa/{pod}")), "{told:?}");
    let log = fs::read_to_string(stage.path("log")).or_fail("read the log")?;
    let steps: Vec<i32> = log.lines().filter_map(|step| step.parse().ok()).collect();
    let most = (1..=steps.len()).map(|at| steps[..at].iter().sum::<i32>()).max();
    assert_eq!(most, Some(8), "{log}");
    Ok(())
}

#[test]
fn kubectls_own_errors_are_shown() -> testkit::Result {
    let stage = Stage::new("")?.says("pods", "echo 'Error from server (Forbidden): pods is forbidden' >&2; exit 1")?;
    let told = stage.run(&["status"])?;
    assert_eq!((told.code, told.output.as_str()), (Some(1), ""), "{told:?}");
    assert_eq!(told.errors, "kubectl sds-shim: Error from server (Forbidden): pods is forbidden\n");
    let told = Stage::new("")?.run(&["status"])?;
    assert!(told.code == Some(0) && told.errors == "kubectl sds-shim: no sidecars found\n", "{told:?}");
    Ok(())
}
