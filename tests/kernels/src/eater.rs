//! Another process of a user that takes secret memory, and what it tells of how the kernel counts.

use std::path::Path;

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
    let confinement = Confinement { memlock_kib: Some(1024), ..Confinement::default() };
    let Some(first) = Eater::take(confinement, 256).await? else {
        return Ok("none");
    };
    let second = Eater::take(confinement, 256).await?;
    let rest = second.as_ref().map_or(0, |second| second.had);
    let had = first.had;
    first.let_go().await?;
    if let Some(second) = second {
        second.let_go().await?;
    }
    match (had, rest) {
        (256, 256) => Ok("process"),
        (256, 0) => Ok("user"),
        _ => Err(Failure::new(format!("of 256 pages one process had {had}, and another {rest} beside it"))),
    }
}
