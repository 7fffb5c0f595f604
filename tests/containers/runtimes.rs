//! Under the seccomp profile that each container runtime takes by default: which of our calls it refuses, and that the
//! image serves with the level that the manual's page says. `RUNTIMES_TABLE=1` writes the table there anew. Where the
//! machine does not let us start containers nothing can be tested, which is said past the test harness; so is a profile
//! that is not to be had any more.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use nix::{
    libc,
    sys::{
        resource::{Resource, getrlimit},
        signal::Signal,
    },
};
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    calls::{LOOKED_AT, STARTING},
    container::{Containment, Images, SHIM, podman, possible},
    fixture::{Logged, Site},
    sds, workspace,
};

const PAGE: &str = "src/manual/evidence/runtimes.md";

/// A runtime at a version: its name, the file of its profile, and whose profile that is.
const RUNTIMES: [(&str, &str, &str); 6] = [
    ("containerd", "containerd", "containerd"),
    ("Docker Engine", "docker", "moby/profiles"),
    ("CRI-O", "cri-o", "containers-common"),
    ("podman", "podman", "containers-common"),
    ("podman of Debian 13", "podman-13", "containers-common"),
    ("podman of Debian 12", "podman-12", "containers-common"),
];

/// A profile and its version; `None` where it is not there.
fn profile(name: &str) -> Result<Option<(PathBuf, String)>, Failure> {
    let directory = workspace().join("target/seccomp-profiles");
    if !directory.is_dir() {
        return Err(Failure::new("the runtimes' profiles are missing: run `make seccomp-profiles`"));
    }
    if name == "cri-o" {
        return cri_o(&directory);
    }
    let Ok(version) = fs::read_to_string(directory.join(format!("{name}.version"))) else {
        let told = format!("NOT TESTED: there is no profile of {name} here; `make seccomp-profiles` says why");
        let _ = writeln!(std::io::stderr(), "{told}");
        return Ok(None);
    };
    Ok(Some((directory.join(format!("{name}.json")), version.trim().trim_start_matches('v').to_owned())))
}

/// CRI-O takes the calls that make namespaces out of containers-common's profile, unless they are capable of that, and
/// has libc fall back to `clone` (internal/config/seccomp/seccomp.go, CRI-O 1.37).
fn cri_o(directory: &Path) -> Result<Option<(PathBuf, String)>, Failure> {
    const NAMESPACES: [libc::c_int; 7] = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWCGROUP,
    ];
    let Some((from, version)) = profile("podman")? else { return Ok(None) };
    let mut profile: Value =
        serde_json::from_slice(&fs::read(from).or_fail("read the profile")?).or_fail("parse the profile")?;
    let rules = profile["syscalls"].as_array_mut().ok_or_else(|| Failure::new("the profile has no rules"))?;
    for rule in rules.iter_mut().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && is_unconditional(rule)) {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| !["clone", "clone3", "unshare"].contains(&name.as_str().unwrap_or_default()));
        }
    }
    let masked = |value: libc::c_int, equal: libc::c_int| json!({"index": 0, "value": value, "valueTwo": equal, "op": "SCMP_CMP_MASKED_EQ"});
    let all = NAMESPACES.iter().fold(0, |all, flag| all | flag);
    rules.extend([
        json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [masked(all, 0)]}),
        json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM,
               "args": NAMESPACES.map(|flag| masked(flag, flag))}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ]);
    let path = directory.join("cri-o.json");
    fs::write(&path, profile.to_string()).or_fail("write the profile")?;
    Ok(Some((path, version)))
}

/// Whether a rule counts here for a container without capabilities.
fn is_unconditional(rule: &Value) -> bool {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let listed = |key: &str| rule["includes"][key].as_array().filter(|list| !list.is_empty());
    listed("caps").is_none() && listed("arches").is_none_or(|list| list.iter().any(|one| one == architecture))
}

/// Those of our calls that a profile refuses whatever their arguments, and with which error.
fn refused(profile: &Value) -> BTreeMap<String, i64> {
    let ours = [locked::SERVING_CALLS, locked::FOLLOWING_CALLS, natives()].into_iter().flatten();
    let ours = ours.filter_map(|name| name.strip_prefix("SYS_")).chain(STARTING.iter().chain(LOOKED_AT).copied());
    // Of libc, for a thread and a program.
    let ours = ours.chain(["clone3", "landlock_create_ruleset", "landlock_restrict_self"]);
    let rules: Vec<_> = profile["syscalls"].as_array().into_iter().flatten().filter(|r| is_unconditional(r)).collect();
    let named =
        |rule: &Value, call: &str| rule["names"].as_array().is_some_and(|all| all.iter().any(|one| one == call));
    let error = |place: &Value, or: i64| place.as_i64().unwrap_or(or);
    let usual = error(&profile["defaultErrnoRet"], i64::from(libc::EPERM));
    let judged = ours.filter_map(|call| {
        let about: Vec<_> = rules.iter().filter(|rule| named(rule, call)).collect();
        if about.iter().any(|rule| rule["action"] == "SCMP_ACT_ALLOW") {
            return None;
        }
        let told = about.iter().find(|rule| rule["action"] == "SCMP_ACT_ERRNO");
        Some((call.to_owned(), told.map_or(usual, |rule| error(&rule["errnoRet"], i64::from(libc::EPERM)))))
    });
    judged.collect()
}

/// Calls that libc makes on this architecture alone.
fn natives() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") { locked::OLDER_CALLS } else { locked::NEWER_CALLS }
}

fn start(site: &Site, containment: Containment, arguments: &[&str]) -> Result<Logged, Failure> {
    let builder = site.shim().contained(containment);
    Ok(Logged(arguments.iter().fold(builder, |builder, argument| builder.arg(*argument)).start()?))
}

/// Serves under the profile, renews, and starts a command; the level with which it does.
async fn level_under(image: &str, profile: &Path) -> Result<String, Failure> {
    let containment = Containment { seccomp: Some(profile.to_owned()), ..Containment::new(image) };
    let site = Site::new().await?;
    let mut shim = start(&site, containment.clone(), &[])?;
    let mut stream = shim.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    stream.send(sds::ack(&first, &["default"]));
    shim.container().exec(&[SHIM, "renew"]).await?;
    stream.recv().await?;
    assert_eq!(shim.container().status("Seccomp").await?, "2", "there is a filter");
    let status = shim.container().run(&[SHIM, "status", "--json"]).await?;
    let status: Value = serde_json::from_str(&status.lines.join("\n")).or_fail("parse the status")?;
    let level = status["memory"]["level"].as_str().unwrap_or_default().to_owned();
    // The text is that of the level.
    let line = shim.wait_for_log("keys are in").await?;
    if level == "secret" {
        assert!(line.contains("keys are in secret memory (32 KiB), the whole process is locked"), "{line}");
        assert_eq!(status["memory"]["missing"], json!([]));
    } else {
        assert!(!line.contains("keys are in secret memory"), "{line}");
        assert_ne!(status["memory"]["missing"], json!([]));
    }
    shim.signal(Signal::SIGTERM)?;
    assert_eq!(shim.wait_exit().await?.code(), Some(0));

    let site = Site::new().await?;
    let mut shim = start(&site, containment, &["exec", "--", SHIM, "wait"])?;
    assert_eq!(shim.wait_exit().await?.code(), Some(0), "{:?}", shim.log().lines());
    shim.wait_for_log("command exited: exit status: 0").await?;
    Ok(level)
}

fn row(runtime: &str, of: &str, version: &str, refused: &BTreeMap<String, i64>, level: &str) -> String {
    let name = |errno: &i64| nix::errno::Errno::from_raw(*errno as i32);
    let calls: Vec<_> = refused.iter().map(|(call, errno)| format!("`{call}` ({:?})", name(errno))).collect();
    let calls = if calls.is_empty() { "none".to_owned() } else { calls.join(", ") };
    format!("| {runtime} | {of} {version} | {calls} | {level} |\n")
}

#[tokio::test]
async fn the_image_serves_under_the_default_profile_of_each_runtime_as_the_table_says() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let images = Images::build(None)?;
    let path = workspace().join(PAGE);
    let mut page = fs::read_to_string(&path).or_fail("read the page")?;
    for (runtime, file, of) in RUNTIMES {
        let Some((profile, version)) = profile(file)? else { continue };
        let rules =
            serde_json::from_slice(&fs::read(&profile).or_fail("read a profile")?).or_fail("parse a profile")?;
        let level = level_under(&images.binary(), &profile).await?;
        let row = row(runtime, of, &version, &refused(&rules), &level);
        let is_its = |line: &&str| line.starts_with(&format!("| {runtime} |"));
        let old = page.lines().find(is_its).map(|line| format!("{line}\n"));
        let old = old.ok_or_else(|| Failure::new(format!("{PAGE} has no row of {runtime}")))?;
        if std::env::var_os("RUNTIMES_TABLE").is_some() {
            page = page.replace(&old, &row);
            fs::write(&path, &page).or_fail("write the page")?;
        } else {
            assert_eq!(old, row, "run RUNTIMES_TABLE=1 cargo test --test containers runtimes::");
        }
    }
    Ok(())
}

/// As all of them do for which neither their configuration nor the pod says otherwise.
#[test]
fn podman_hands_its_own_limit_of_locked_memory_on() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let images = Images::build(None)?;
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"];
    let arguments =
        [&["run", "--rm", "--network", "none", "--user", "1337:1337"], &limits[..], &[&images.binary(), "check"]];
    // It has no environment to find right.
    let told = podman(&arguments.concat()).expect_err("a check without an environment").to_string();
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).or_fail("read our limit")?;
    let limit = if soft == libc::RLIM_INFINITY { "none".to_owned() } else { format!("{} KiB", soft / 1024) };
    assert!(told.contains(&format!("the limit is {limit}")), "{told}");
    Ok(())
}
