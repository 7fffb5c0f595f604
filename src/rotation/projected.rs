use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;
use tracing::warn;

use super::renewal::TokenSource;
use crate::{
    config::FileCheck,
    files::{FileWatcher, look_again},
    identity::{BearerToken, TokenDigest, TokenError},
};

/// Pause between two looks at the file when the kernel cannot tell us of changes.
const WITHOUT_WATCHER: Duration = Duration::from_secs(1);

/// The projected service-account token, read anew for each call.
pub struct ProjectedToken {
    file: PathBuf,
    audience: Option<String>,
    last: Option<Result<TokenDigest, TokenError>>,
    /// When to look at the file though nobody tells of a change.
    check: FileCheck,
    /// Whether it was said that the file cannot be watched.
    told: bool,
}

impl ProjectedToken {
    /// The token in `file`, which must be meant for `audience`, if that is any.
    pub fn new(file: &Path, audience: Option<String>, check: FileCheck) -> Self {
        Self { audience, told: false, ..Self::besides(file, check) }
    }

    /// The token in `file` for somebody besides the renewal, which tells what there is to tell of the file.
    pub(super) fn besides(file: &Path, check: FileCheck) -> Self {
        Self { file: file.to_owned(), audience: None, last: None, check, told: true }
    }

    fn seen(token: &Result<BearerToken, TokenError>) -> Result<TokenDigest, TokenError> {
        token.as_ref().map(BearerToken::digest).map_err(Clone::clone)
    }
}

impl TokenSource for ProjectedToken {
    const FIXED: bool = false;

    fn read(&mut self, now: i64) -> Result<Arc<BearerToken>, TokenError> {
        let token = BearerToken::read(&self.file);
        self.last = Some(Self::seen(&token));
        let token = token?;
        token.check(self.audience.as_deref(), now)?;
        Ok(Arc::new(token))
    }

    async fn changed(&mut self) -> bool {
        loop {
            // Watched before it is read, so that no change falls in between; and watched only while somebody waits,
            // so that the kubelet's refreshes do not wake an idle process.
            let watcher = FileWatcher::new(&[&self.file]);
            if Some(Self::seen(&BearerToken::read(&self.file))) != self.last {
                return true;
            }
            let watched = match watcher {
                Ok(mut watcher) => match look_again(std::slice::from_ref(&self.file), self.check) {
                    Some(pause) => timeout(pause, watcher.changed()).await.unwrap_or(Ok(())),
                    None => watcher.changed().await,
                },
                Err(error) => Err(error),
            };
            if let Err(error) = watched {
                if !std::mem::replace(&mut self.told, true) {
                    warn!("{}: cannot watch for changes, polling every second: {error}", self.file.display());
                }
                tokio::time::sleep(WITHOUT_WATCHER).await;
            }
        }
    }
}
