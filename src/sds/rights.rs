use std::sync::Arc;

use crate::store::Snapshot;

/// What names there are.
pub trait Names: Send + Sync + 'static {
    /// Whether something can ever be held under it.
    fn is_known(&self, name: &str) -> bool;

    /// Whether it stands for files, which are looked for once somebody asks for them.
    fn is_file(&self, name: &str) -> bool;

    /// Whether users beside our own may have these files.
    fn is_open(&self, name: &str) -> bool;
}

/// What a client may have by its user. Our own user could read by itself what we read for it; for others we would lend
/// our eyes to whoever names a file.
#[derive(Clone)]
pub(super) struct Rights {
    names: Arc<dyn Names>,
    /// The user, if it is not our own.
    other: Option<u32>,
}

impl Rights {
    /// Those of this user; without one, of our own.
    pub(super) fn new(names: Arc<dyn Names>, other: Option<u32>) -> Self {
        Self { names, other }
    }

    /// Whether there may ever be something under this name for the client.
    pub(super) fn can_have(&self, name: &str) -> bool {
        self.is_known(name) && self.may_have(name)
    }

    /// Whether there may ever be something under this name for anybody.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.names.is_known(name)
    }

    pub(super) fn may_have(&self, name: &str) -> bool {
        self.other.is_none() || !self.names.is_file(name) || self.names.is_open(name)
    }

    /// Those of the names whose files are to be looked for.
    pub(super) fn files<'a>(&self, names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
        names.filter(|name| self.names.is_file(name) && self.may_have(name))
    }

    /// What of the snapshot the client may see: somebody else may have asked for a file that it may not have.
    pub(super) fn seen(&self, snapshot: Snapshot) -> Snapshot {
        if snapshot.keys().all(|name| self.may_have(name)) {
            return snapshot;
        }
        let seen = snapshot.iter().filter(|(name, _)| self.may_have(name));
        Arc::new(seen.map(|(name, secret)| (name.clone(), Arc::clone(secret))).collect())
    }

    /// Those of the names that the client may not have, and its user.
    pub(super) fn refused<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<(u32, Vec<&'a str>)> {
        let refused: Vec<_> = names.filter(|name| !self.may_have(name)).collect();
        self.other.filter(|_| !refused.is_empty()).map(|uid| (uid, refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Content, Encoded, SecretStore, View};

    struct Files;

    impl Names for Files {
        fn is_known(&self, name: &str) -> bool {
            name == "default" || self.is_file(name)
        }

        fn is_file(&self, name: &str) -> bool {
            name.starts_with("file-")
        }

        fn is_open(&self, name: &str) -> bool {
            name == "file-root:/open"
        }
    }

    #[test]
    fn a_user_without_rights_never_sees_a_file_another_user_requested() {
        let store = SecretStore::new(|_, _| Encoded::default());
        for name in ["default", "file-root:/open", "file-root:/closed"] {
            store.publish([(name, Content::anchors(Default::default()), 0)]);
        }
        let View::Open(snapshot) = store.look() else { panic!("it is open") };
        let (own, other) = (Rights::new(Arc::new(Files), None), Rights::new(Arc::new(Files), Some(7)));
        let seen = |rights: &Rights| rights.seen(snapshot.clone()).keys().cloned().collect::<Vec<_>>();
        assert_eq!(seen(&other), ["default", "file-root:/open"]);
        assert_eq!(seen(&own).len(), 3);
        let names = || ["default", "file-root:/closed", "unknown"].into_iter();
        assert_eq!(other.refused(names()), Some((7, vec!["file-root:/closed"])));
        assert_eq!(own.refused(names()), None);
        let can = |rights: &Rights| names().map(|name| rights.can_have(name)).collect::<Vec<_>>();
        assert_eq!((can(&own), can(&other)), (vec![true, true, false], vec![true, false, false]));
    }
}
