//! The unit for virtual machines, held by systemd's own tool.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use nix::unistd::getegid;
use testkit::{
    OrFail,
    calls::{LOOKED_AT, STARTING},
    fixture::{Logged, Site},
    scratch::Scratch,
    sds, workspace,
};

/// What `systemd-analyze security` may say at most: 0 is a service that can do nothing, 10 one that can do all.
const MOST_EXPOSED: f64 = 1.4;

fn unit() -> String {
    fs::read_to_string(workspace().join("packaging/systemd/sds-shim.service")).expect("the unit")
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let ran = Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_COLORS", "0").output();
    let ran = ran.expect("run make systemd");
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    (ran.status.success(), told)
}

#[test]
fn the_unit_is_valid_and_exposes_little() {
    let scratch = Scratch::new("tests").expect("a directory");
    // The program must be there, and the tool looks for it on this machine.
    let usual = || workspace().join("target/dist/sds-shim").display().to_string();
    let program = std::env::var("SHIM_BINARY").unwrap_or_else(|_| usual());
    let path = scratch.path().join("sds-shim.service");
    fs::write(&path, unit().replace("/usr/local/bin/sds-shim", &program)).expect("write the unit");
    let (valid, told) = analyze(&["verify", "--man=no"], &path);
    assert!(valid && told.trim().is_empty(), "{told}");

    let (_, told) = analyze(&["security", "--offline=true", "--no-pager"], &path);
    let line = told.lines().find(|line| line.contains("Overall exposure level")).expect("a score");
    println!("{line}");
    let score = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).expect("a number");
    assert!(score <= MOST_EXPOSED, "{told}");
}

/// What the program needs, as tests/measured/memory.rs and src/main.rs have it.
#[test]
fn the_unit_gives_what_the_program_needs() {
    let unit = unit();
    for line in ["LimitMEMLOCK=8M", "WorkingDirectory=/", "RestartPreventExitStatus=64 71"] {
        assert!(unit.lines().any(|found| found == line), "{line} is missing");
    }
    let socket = sds_shim::config::SOCKET_DIRECTORY.trim_start_matches("./var/run/");
    assert!(unit.contains(&format!("RuntimeDirectory={socket}\n")), "the socket's directory is another one");
}

/// What is made at each boot leads from where the program looks to what lasts.
#[test]
fn the_links_lead_from_where_the_program_looks() {
    let scratch = Scratch::new("tests").expect("a directory");
    let root = format!("--root={}", scratch.path().display());
    let made = Command::new("systemd-tmpfiles")
        .args(["--create", &root])
        .arg(workspace().join("packaging/systemd/sds-shim.conf"))
        .output()
        .expect("run make systemd");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for (path, file) in [("tokens/istio-token", "istio-token"), ("istio/root-cert.pem", "root-cert.pem")] {
        let link = fs::read_link(scratch.path().join("run/secrets").join(path)).expect("it is a link");
        assert_eq!(link, Path::new("/etc/sds-shim").join(file));
    }
}

/// A machine that was off for longer than its token lasts: what `OUTPUT_CERTS` left vouches for the next certificate.
#[tokio::test]
async fn a_restart_takes_no_token_where_the_last_certificate_is_kept() -> testkit::Result {
    let mut site = Site::new().await?;
    let kept = site.workload.path().join("certs");
    let shim = site.shim().env("OUTPUT_CERTS", kept.display().to_string()).env("PROV_CERT", kept.display().to_string());
    let shim = shim.env("CA_ROOT_CA", site.workload.root_certificate().display().to_string());
    let mut first = Logged(shim.clone().start()?);
    first.connect().await?;
    file_of(&first, &kept.join("root-cert.pem")).await?;
    first.terminate().await?;
    site.workload.remove_token().or_fail("remove the token")?;
    let mut second = Logged(shim.start()?);
    let mut stream = second.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await?;
    Ok(())
}

/// Waits for a file that `shim` writes.
async fn file_of(shim: &Logged, path: &Path) -> testkit::Result {
    shim.until(&format!("a file {}", path.display()), || path.exists().then_some(())).await
}

/// The sets of system calls that systemd knows, by name, as `systemd-analyze syscall-filter` lists them.
fn sets() -> BTreeMap<String, Vec<String>> {
    let ran =
        Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]).env("SYSTEMD_COLORS", "0").output();
    let text = String::from_utf8(ran.expect("run make systemd").stdout).expect("it is text");
    let mut sets = BTreeMap::<_, Vec<_>>::new();
    let mut last = None;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if line.starts_with('@') {
            last = Some(sets.entry(line.to_owned()).or_default());
        } else if let (Some(set), true) = (&mut last, line.starts_with(' ')) {
            set.push(line.trim().to_owned());
        }
    }
    sets
}

fn expand(name: &str, sets: &BTreeMap<String, Vec<String>>, into: &mut BTreeSet<String>) {
    match name.starts_with('@') {
        true => sets[name].iter().for_each(|part| expand(part, sets, into)),
        false => drop(into.insert(name.to_owned())),
    }
}

/// The system calls that the unit allows: each of its lines adds some or, with a tilde, takes some away.
fn allowed() -> BTreeSet<String> {
    let (sets, unit) = (sets(), unit());
    let mut allowed = BTreeSet::new();
    // systemd adds this one to every list of what is allowed.
    expand("@default", &sets, &mut allowed);
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let mut named = BTreeSet::new();
        line.trim_start_matches('~').split_whitespace().for_each(|name| expand(name, &sets, &mut named));
        match line.starts_with('~') {
            true => allowed.retain(|call| !named.contains(call)),
            false => allowed.extend(named),
        }
    }
    allowed
}

#[test]
fn the_unit_allows_every_call_that_the_filter_of_the_program_allows() {
    let allowed = allowed();
    let ours = [locked::SERVING_CALLS, locked::OLDER_CALLS, locked::NEWER_CALLS, locked::FOLLOWING_CALLS].into_iter();
    let ours =
        ours.flatten().filter_map(|name| name.strip_prefix("SYS_")).chain(STARTING.iter().chain(LOOKED_AT).copied());
    // A newer libc may start a command by this one.
    let ours = ours.chain(["clone3"]);
    let refused: Vec<_> = ours.filter(|call| !allowed.contains(*call)).collect();
    assert!(refused.is_empty(), "the unit refuses {refused:?}");
    for call in ["ptrace", "mount", "setuid", "keyctl", "bpf"] {
        assert!(!allowed.contains(call), "the unit allows {call}");
    }
}

/// What a whole life takes, from its start to its end, is not only what we think that it takes.
#[tokio::test]
async fn the_unit_allows_every_call_of_a_life() -> testkit::Result {
    let site = Site::new().await?;
    let (output, trace) = (site.workload.path().join("output"), site.workload.path().join("trace"));
    // Beside the shim instead of above it, so that the shim is what the test ends.
    let launcher = ["strace", "-D", "-f", "-qq", "-e", "signal=none", "-o", &trace.display().to_string()];
    let shim = site.shim().through(&launcher).env("SDS_SHIM_SECCOMP", "strict");
    let shim = shim.env("OUTPUT_CERTS", output.display().to_string()).env("SDS_SHIM_OUTPUT_GID", getegid().to_string());
    // Whoever is traced may not be able to protect its memory as usual.
    let mut shim = Logged(shim.env("SDS_SHIM_REQUIRE_LOCKED", "none").start()?);
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    stream.recv().await?;
    file_of(&shim, &output.join("root-cert.pem")).await?;
    assert_eq!(shim.terminate().await?.code(), Some(0));
    let text = fs::read_to_string(&trace).or_fail("read what was traced")?;
    let name = |line: &str| line.split_once(' ')?.1.trim_start().split_once('(').map(|(name, _)| name.to_owned());
    let made: BTreeSet<_> = text.lines().filter_map(name).filter(|name| !name.starts_with('<')).collect();
    for call in ["execve", "seccomp", "fchown", "accept4"] {
        assert!(made.contains(call), "{call} is not in what was traced: {made:?}");
    }
    let allowed = allowed();
    let refused: Vec<_> = made.difference(&allowed).collect();
    assert!(refused.is_empty(), "the unit refuses {refused:?}");
    Ok(())
}
