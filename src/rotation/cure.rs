//! What a failed attempt hung on, and the end of the wait after it when that changes.

use std::{
    fs, future,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use tokio::time::sleep;

use super::failure::Hangs;
use crate::{
    ca::{NAME_FILES, Way},
    config::CaConfig,
    files::FileWatcher,
};

/// Pause between two looks at files when the kernel cannot tell us of changes.
const WITHOUT_WATCHER: Duration = Duration::from_secs(1);
/// Pause between two looks at the way to the CA, and after how many of them its name is looked up. Nobody tells us of
/// routes and names: netlink is a system call too many, and a nameserver tells whoever asks.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS_A_NAME: u32 = 3;
/// The same while something valid is held: there is no hurry, and a fleet shares its nameservers.
const CALM_LOOK: Duration = Duration::from_secs(5);
/// How long a name may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Files of `PROV_CERT`.
const PROVISIONED: [&str; 2] = ["cert-chain.pem", "key.pem"];

/// What tells a file from another one, or from itself at another time: cheap, and no key is read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print([i64; 7]);

impl Print {
    fn of(file: &Path) -> Option<Self> {
        let data = fs::metadata(file).ok()?;
        let (device, inode, size) = (data.dev() as i64, data.ino() as i64, data.size() as i64);
        Some(Self([device, inode, size, data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()]))
    }
}

/// The files that attempts depend on, as they were before one.
#[derive(Debug, Default)]
pub(super) struct Before(Vec<(Kind, PathBuf, Option<Print>)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Anchors,
    Provisioned,
    Names,
}

impl Before {
    pub(super) fn now(config: &CaConfig) -> Self {
        let provisioned = config.provisioned.iter().flat_map(|directory| PROVISIONED.map(|file| directory.join(file)));
        let files = [(Kind::Anchors, config.roots_file())].into_iter();
        let files = files.chain(provisioned.map(|file| (Kind::Provisioned, file)));
        let files = files.chain(NAME_FILES.map(|file| (Kind::Names, PathBuf::from(file))));
        Self(files.map(|(kind, file)| (kind, file.clone(), Print::of(&file))).collect())
    }

    /// Waits until one of those that the failure hung on is another one; says which.
    async fn changed(&self, hangs: Hangs) -> String {
        let concerned = |kind: &Kind| match kind {
            Kind::Anchors => hangs.anchors,
            Kind::Provisioned => hangs.provisioned,
            Kind::Names => hangs.way,
        };
        let files: Vec<_> = self.0.iter().filter(|(kind, ..)| concerned(kind)).collect();
        if files.is_empty() {
            return future::pending().await;
        }
        let paths: Vec<_> = files.iter().map(|(_, path, _)| path.as_path()).collect();
        // Watched before they are looked at, so that no change falls in between.
        let mut watcher = FileWatcher::new(&paths);
        loop {
            if let Some((_, path, _)) = files.iter().find(|(_, path, print)| Print::of(path) != *print) {
                return path.display().to_string();
            }
            let watched = match &mut watcher {
                Ok(watcher) => watcher.changed().await.is_ok(),
                Err(_) => false,
            };
            if !watched {
                sleep(WITHOUT_WATCHER).await;
            }
        }
    }
}

/// What would end a wait.
pub(super) struct Cure {
    pub(super) hangs: Hangs,
    /// The ways to the CA as they are after the attempt.
    pub(super) ways: Vec<Way>,
    /// Whether something valid is held.
    pub(super) calm: bool,
    /// Whether each attempt looks for the way by itself, and soon.
    pub(super) probed: bool,
}

impl Cure {
    /// Returns once something has changed that the failure hung on; says what. Boxed, so that its code is there once
    /// and not for each kind of token.
    pub(super) fn comes<'a>(&'a self, before: &'a Before) -> Pin<Box<dyn Future<Output = String> + Send + 'a>> {
        Box::pin(async {
            tokio::select! {
                biased;
                file = before.changed(self.hangs) => file,
                way = self.another_way() => way,
            }
        })
    }

    async fn another_way(&self) -> String {
        if !self.hangs.way || self.probed {
            return future::pending().await;
        }
        let pause = if self.calm { CALM_LOOK } else { LOOK };
        let mut looks = 0;
        loop {
            sleep(pause).await;
            looks += 1;
            if self.ways.iter().any(Way::has_another_source) {
                return "the network".to_owned();
            }
            if looks % LOOKS_A_NAME == 0 {
                for way in self.ways.iter().filter(|way| way.is_named()) {
                    if way.leads_elsewhere(LOOK_UP).await {
                        return "the address of the CA's name".to_owned();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::scratch::Scratch;

    use super::*;

    fn before(file: &Path) -> Before {
        Before(vec![(Kind::Anchors, file.to_owned(), Print::of(file))])
    }

    #[tokio::test]
    async fn a_replaced_file_is_noticed_however_it_was_replaced() {
        let directory = Scratch::new("tests").unwrap();
        let directory = directory.path();
        let file = directory.join("root-cert.pem");
        let anchors = Hangs { anchors: true, ..Hangs::default() };
        let changes: [(&str, &dyn Fn()); 4] = [
            ("appears", &|| fs::write(&file, "one").unwrap()),
            ("is written", &|| fs::write(&file, "other").unwrap()),
            ("is replaced", &|| {
                fs::write(directory.join("new"), "other").unwrap();
                fs::rename(directory.join("new"), &file).unwrap();
            }),
            ("goes", &|| fs::remove_file(&file).unwrap()),
        ];
        for (what, change) in changes {
            let seen = before(&file);
            let told = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                change();
                future::pending::<String>().await
            };
            let told = tokio::select! { told = seen.changed(anchors) => told, told = told => told };
            assert_eq!(told, file.display().to_string(), "it {what}");
            // A change during the attempt is seen at once.
            assert_eq!(seen.changed(anchors).await, told);
        }
    }

    #[tokio::test]
    async fn unrelated_changes_do_not_end_the_wait() {
        let seen = before(Path::new("/no/such/file"));
        let hangs = Hangs { provisioned: true, clock: true, ..Hangs::default() };
        let cure = Cure { hangs, ways: Vec::new(), calm: false, probed: false };
        assert!(tokio::time::timeout(Duration::from_millis(100), cure.comes(&seen)).await.is_err());
    }
}
