//! With nothing valid held: how soon there is a certificate once the CA is back, or whatever kept it away has changed.
//! `make recovery` compares us with Istio's agent and writes the table.

mod field;
mod scenes;

use std::{env, fmt::Write as _, fs, time::Duration};

use field::Crowd;
use scenes::Took;
use testkit::{Failure, OrFail, workspace};

const PAGE: &str = "src/manual/evidence/recovery.md";
/// Some of ours alone, and for how long they have waited.
const FEW: Crowd = Crowd { each: 6, agents: false, wait: Duration::from_secs(25) };
/// The same where an attempt at a dead address takes ten seconds.
const LONG: Crowd = Crowd { wait: Duration::from_secs(50), ..FEW };
/// The crowd of the table.
const MANY: Crowd = Crowd { each: 20, agents: true, wait: Duration::from_secs(60) };
/// What the last of them may take, in seconds, on a machine that has other things to do.
const SOON: f64 = 6.0;

fn soon(took: Result<Took, Failure>) -> testkit::Result {
    let [ours, _] = took?;
    println!("seconds: {ours:.2?}");
    match ours.last() {
        Some(last) if *last <= SOON => Ok(()),
        _ => Err(Failure::new(format!("certificates came after {ours:.1?} s"))),
    }
}

#[tokio::test]
async fn a_ca_that_refused_connections_is_found_soon() -> testkit::Result {
    soon(scenes::refused(FEW).await)
}

#[tokio::test]
async fn a_ca_that_is_back_after_the_certificates_have_ended_is_found_soon() -> testkit::Result {
    soon(scenes::ended(FEW).await)
}

#[tokio::test]
async fn a_network_that_is_back_is_seen() -> testkit::Result {
    soon(scenes::unreachable(FEW).await)
}

#[tokio::test]
async fn new_anchors_end_the_wait() -> testkit::Result {
    soon(scenes::another_root(FEW).await)
}

#[tokio::test]
async fn another_address_of_the_name_ends_the_wait() -> testkit::Result {
    soon(scenes::another_address(LONG).await)
}

#[tokio::test]
async fn another_line_in_hosts_ends_the_wait() -> testkit::Result {
    soon(scenes::another_line(LONG).await)
}

#[tokio::test]
async fn another_nameserver_ends_the_wait() -> testkit::Result {
    soon(scenes::another_nameserver(FEW).await)
}

#[tokio::test]
async fn another_certificate_in_prov_cert_ends_the_wait() -> testkit::Result {
    soon(scenes::another_credential(FEW).await)
}

/// With `RECOVERY_TABLE` set: ours beside Istio's agents, one scene after the other.
#[tokio::test]
async fn the_table() -> testkit::Result {
    if env::var_os("RECOVERY_TABLE").is_none() {
        return Ok(());
    }
    let mut rows = String::new();
    let mut behind = Vec::new();
    let mut row = |what: &str, took: Took| {
        let [ours, theirs] = took.map(|seconds| (seconds[seconds.len() / 2], seconds[seconds.len() - 1]));
        let line = format!("| {what} | **{:.1}** / **{:.1}** | {:.1} / {:.1} |\n", ours.0, ours.1, theirs.0, theirs.1);
        print!("{line}");
        rows += &line;
        if ours.0 > theirs.0 || ours.1 > theirs.1 {
            behind.push(what.to_owned());
        }
    };
    row("the CA refuses connections from the start, for 60 s", scenes::refused(MANY).await?);
    row(
        "the CA refuses connections until certificates of 20 s have ended, and for 60 s more",
        scenes::ended(MANY).await?,
    );
    row("the kernel has no route to the CA, for 60 s", scenes::unreachable(MANY).await?);
    row("the mount has a root that is not the CA's, for 60 s", scenes::another_root(MANY).await?);
    row("the nameserver gives an address where nobody answers, for 60 s", scenes::another_address(MANY).await?);
    row("`/etc/hosts` gives an address where nobody answers, for 60 s", scenes::another_line(MANY).await?);
    row("`/etc/resolv.conf` has a nameserver without the name, for 60 s", scenes::another_nameserver(MANY).await?);
    row("`PROV_CERT` is of a root that the CA does not know, for 60 s", scenes::another_credential(MANY).await?);
    write(&rows)?;
    if behind.is_empty() { Ok(()) } else { Err(Failure::new(format!("Istio's agent is ahead: {behind:?}"))) }
}

fn write(rows: &str) -> testkit::Result {
    let file = workspace().join(PAGE);
    let page = fs::read_to_string(&file).or_fail("read the page")?;
    let (head, rest) = page.split_once("|---|---|---|\n").ok_or_else(|| Failure::new("the page has no table"))?;
    let tail = rest.split_once("\n\n").map_or("", |(_, tail)| tail);
    let mut text = head.to_owned();
    let _ = write!(text, "|---|---|---|\n{rows}\n{tail}");
    fs::write(&file, text).or_fail("write the page")
}
