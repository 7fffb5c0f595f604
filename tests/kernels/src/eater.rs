//! Another process of a user that takes secret memory, and what it tells of how the kernel counts.

use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};
use testkit::{Failure, OrFail, process::Process};

use crate::confine::Confinement;

const PROGRAM: &str = "/bin/secret-pages";

/// A process that holds pages of secret memory until it is told to let go.
pub(crate) struct Eater {
    process: Process,
    /// How many pages it got.
    pub(crate) had: usize,
}

impl Eater {
    /// Takes so many pages, or what there is of them; none when the kernel has no secret memory.
    pub(crate) async fn take(confinement: Confinement, pages: usize) -> Result<Option<Self>, Failure> {
        let mut command = confinement.launcher();
        command.extend([PROGRAM.to_owned(), pages.to_string()]);
        let program = command.remove(0);
        let process = Process::start_tethered("the eater of secret memory", Path::new(&program), &command)?;
        let line = process.wait_for_log("secret memory: ").await?;
        let told = line.trim_start_matches("secret memory: ");
        if told == "none" {
            return Ok(None);
        }
        let had = told.parse().or_fail(format!("read what the eater says: {line}"))?;
        Ok(Some(Self { process, had }))
    }

    /// Ends it; the kernel has taken its pages back then.
    pub(crate) async fn let_go(mut self) -> Result<(), Failure> {
        self.process.kill().await.map(drop)
    }
}

/// Whom the kernel counts secret memory for: `none` has any, each `process`, or all processes of a `user`.
pub(crate) async fn counting() -> Result<&'static str, Failure> {
    const KIB: u64 = 1024;
    let confinement = Confinement { memlock_kib: Some(KIB), ..Confinement::default() };
    let all = pages(KIB)?;
    let Some(first) = Eater::take(confinement, all).await? else {
        return Ok("none");
    };
    let second = Eater::take(confinement, all).await?;
    let rest = second.as_ref().map_or(0, |second| second.had);
    let had = first.had;
    first.let_go().await?;
    if let Some(second) = second {
        second.let_go().await?;
    }
    match (had == all, rest) {
        (true, rest) if rest == all => Ok("process"),
        (true, 0) => Ok("user"),
        _ => Err(Failure::new(format!("of {all} pages one process had {had}, and another {rest} beside it"))),
    }
}

/// How many pages that is.
pub(crate) fn pages(kib: u64) -> Result<usize, Failure> {
    let page = sysconf(SysconfVar::PAGE_SIZE).or_fail("ask for the size of a page")?.unwrap_or(4096);
    let page = u64::try_from(page).or_fail("read the size of a page")?;
    usize::try_from(kib * 1024 / page).or_fail("count pages")
}
