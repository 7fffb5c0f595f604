//! The one error of the kit: a sentence, and the logs that explain it.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};

/// Lines of a log that are shown with a failure.
const SHOWN_LINES: usize = 25;

/// Something did not go as promised.
///
/// `Debug` prints the same text as `Display`, so that `unwrap` in a test shows the logs line by line.
pub struct Failure {
    what: String,
    logs: Vec<(String, Vec<String>)>,
}

/// What a test ends with.
pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure that says what went wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), logs: Vec::new() }
    }

    /// Puts the circumstances before the sentence.
    #[must_use]
    pub fn context(mut self, circumstances: impl Display) -> Self {
        self.what = format!("{circumstances}: {}", self.what);
        self
    }

    /// Puts a remark after the sentence.
    #[must_use]
    pub fn remark(mut self, remark: impl Display) -> Self {
        self.what = format!("{} ({remark})", self.what);
        self
    }

    /// Adds the end of a log; a log that is there already is not added again.
    #[must_use]
    pub fn with_log(mut self, name: &str, lines: &[String]) -> Self {
        if self.logs.iter().all(|(known, _)| known != name) {
            let skipped = lines.len().saturating_sub(SHOWN_LINES);
            self.logs.push((name.to_owned(), lines.iter().skip(skipped).cloned().collect()));
        }
        self
    }

    /// What went wrong, without the logs.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl Display for Failure {
    fn fmt(&self, out: &mut Formatter<'_>) -> FmtResult {
        write!(out, "{}", self.what)?;
        for (name, lines) in &self.logs {
            write!(out, "\n--- end of the log of {name} ---")?;
            if lines.is_empty() {
                write!(out, "\n(empty)")?;
            }
            for line in lines {
                write!(out, "\n{line}")?;
            }
        }
        Ok(())
    }
}

impl Debug for Failure {
    fn fmt(&self, out: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, out)
    }
}

impl std::error::Error for Failure {}

/// Turns any error into a [`Failure`] that says what was being done.
pub trait OrFail<T> {
    /// `what` names the action that failed, as in "read the token".
    fn or_fail(self, what: impl Display) -> Result<T, Failure>;
}

impl<T, E: Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("cannot {what}: {error}")))
    }
}
