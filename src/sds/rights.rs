use std::sync::Arc;

use crate::store::{Snapshot, is_on_demand};

/// Whether users beside our own may have the files that this name stands for.
pub(super) type OpenToOthers = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What a client may have by its user. Our own user could read by itself what we read for it; for others we would lend
/// our eyes to whoever names a file.
#[derive(Clone)]
pub(super) enum Rights {
    /// Everything.
    Own,
    /// Everything but files that are not open to this user.
    Other(u32, OpenToOthers),
}

impl Rights {
    pub(super) fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Own => true,
            Self::Other(_, open) => !is_on_demand(name) || open(name),
        }
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
        let Self::Other(uid, _) = self else { return None };
        let refused: Vec<_> = names.filter(|name| !self.may_have(name)).collect();
        (!refused.is_empty()).then_some((*uid, refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Content, Encoded, SecretStore, View};

    #[test]
    fn who_may_not_have_a_file_does_not_see_it_when_somebody_else_has_asked() {
        let store = SecretStore::new(|_, _| Encoded::default());
        for name in ["default", "file-root:/open", "file-root:/closed"] {
            store.publish([(name, Content::anchors(Default::default()), 0)]);
        }
        let View::Open(snapshot) = store.look() else { panic!("it is open") };
        let other = Rights::Other(7, Arc::new(|name: &str| name == "file-root:/open"));
        let seen = |rights: &Rights| rights.seen(snapshot.clone()).keys().cloned().collect::<Vec<_>>();
        assert_eq!(seen(&other), ["default", "file-root:/open"]);
        assert_eq!(seen(&Rights::Own).len(), 3);
        let names = || ["default", "file-root:/closed", "unknown"].into_iter();
        assert_eq!(other.refused(names()), Some((7, vec!["file-root:/closed"])));
        assert_eq!(Rights::Own.refused(names()), None);
    }
}
