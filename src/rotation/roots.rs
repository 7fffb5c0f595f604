//! Which trust anchors are served: the union of all sources, and for a while what they have dropped. Pure: time is an
//! argument.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    budget,
    identity::{AnchorNames, TrustAnchor, TrustBundle},
};

/// The anchors of one workload.
#[derive(Debug)]
pub(super) struct Roots {
    grace: Option<Duration>,
    answered: TrustBundle,
    files: TrustBundle,
    served: BTreeMap<[u8; 32], Served>,
    /// Dropped because they ended, and not yet told.
    ended: Vec<Arc<TrustAnchor>>,
    /// What had no room the last time.
    without_room: Option<Room>,
    /// NotAfter of the leaf that is held.
    leaf_end: i64,
}

/// Of what there is not enough for all anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Memory.
    Arena,
    /// Bytes in which Envoy names them to its clients.
    Names,
}

#[derive(Debug)]
struct Served {
    anchor: Arc<TrustAnchor>,
    /// NotAfter of the last leaf that was seen under it.
    leaf_end: i64,
    /// Until when it is served; `None` while a source has it.
    until: Option<i64>,
}

impl Roots {
    pub(super) fn new(grace: Option<Duration>) -> Self {
        let (answered, files) = (TrustBundle::default(), TrustBundle::default());
        Self {
            grace,
            answered,
            files,
            served: BTreeMap::new(),
            ended: Vec::new(),
            without_room: None,
            leaf_end: i64::MIN,
        }
    }

    /// The CA answered with these, and a leaf that ends at `leaf_end` (Unix seconds) under `anchor`.
    pub(super) fn answered(&mut self, roots: TrustBundle, anchor: [u8; 32], leaf_end: i64, now: i64) {
        self.answered = roots;
        self.settle(now);
        self.leaf_end = leaf_end;
        if let Some(served) = self.served.get_mut(&anchor) {
            served.leaf_end = served.leaf_end.max(leaf_end);
        }
    }

    /// A mounted leaf that ends at `leaf_end` (Unix seconds) is served.
    pub(super) fn mounted(&mut self, leaf_end: i64) {
        self.leaf_end = leaf_end;
    }

    /// The files hold these now.
    pub(super) fn in_files(&mut self, roots: TrustBundle, now: i64) {
        self.files = roots;
        self.settle(now);
    }

    /// Drops what has been served long enough, and what has ended: Envoy builds a peer's path to the first anchor that
    /// fits, and when that has ended it refuses the peer although its successor stands beside. Answers when to look
    /// again (Unix seconds).
    pub(super) fn expire(&mut self, now: i64) -> Option<i64> {
        let ends =
            |served: &Served| served.until.map_or(served.anchor.not_after(), |end| end.min(served.anchor.not_after()));
        self.ended
            .extend(self.served.values().map(|served| &served.anchor).filter(|one| one.not_after() <= now).cloned());
        self.served.retain(|_, served| ends(served) > now);
        self.served.values().map(ends).min()
    }

    /// The anchors that ended while they were served, since this was asked for last.
    pub(super) fn take_ended(&mut self) -> Vec<Arc<TrustAnchor>> {
        std::mem::take(&mut self.ended)
    }

    /// What is served although no source has it any more, each with its last moment (Unix seconds).
    pub(super) fn leaving(&self) -> Vec<(Arc<TrustAnchor>, i64)> {
        let mut leaving = Vec::new();
        leaving.extend(self.served.values().filter_map(|served| Some((Arc::clone(&served.anchor), served.until?))));
        leaving
    }

    /// The same as it was before a crash. For the moment before the answer of the CA that was served with it.
    pub(super) fn still_leaving(&mut self, leaving: Vec<(Arc<TrustAnchor>, i64)>) {
        for (anchor, until) in leaving {
            let served = Served { anchor, leaf_end: i64::MIN, until: Some(until) };
            self.served.entry(*served.anchor.digest()).or_insert(served);
        }
    }

    /// What is to be served: what the CA answered first, and last what its sources have dropped.
    pub(super) fn bundle(&self) -> TrustBundle {
        let sources = self.answered.anchors().iter().chain(self.files.anchors());
        let present = sources.filter(|anchor| self.served.contains_key(anchor.digest()));
        let served = self.served.values().map(|served| &served.anchor);
        TrustBundle::new(present.chain(served).cloned().collect())
    }

    /// How many anchors of the sources found no room, and which was missing; `None` if there are none.
    pub(super) fn left_out(&self, now: i64) -> Option<(usize, Room)> {
        let sources = self.answered.anchors().iter().chain(self.files.anchors());
        let count =
            sources.filter(|anchor| anchor.not_after() > now && !self.served.contains_key(anchor.digest())).count();
        self.without_room.filter(|_| count > 0).map(|room| (count, room))
    }

    fn settle(&mut self, now: i64) {
        let grace = self.grace.map(|grace| now.saturating_add(grace.as_secs() as i64));
        let sources = [&self.answered, &self.files];
        for (digest, served) in &mut self.served {
            let present = sources.iter().any(|source| source.anchors().iter().any(|anchor| anchor.digest() == digest));
            served.until = match served.until {
                _ if present => None,
                None => {
                    // Peers' leaves under it cannot be seen; they are taken to live as long as ours.
                    let until = grace.unwrap_or(served.leaf_end.max(self.leaf_end));
                    Some(until.min(served.anchor.not_after()))
                }
                leaving => leaving,
            };
        }
        self.expire(now);
        self.make_room(now);
    }

    /// Serves what the sources have, as much as there is room for: the CA's answer first, since our own chain leads
    /// there, and last what is on its way out.
    fn make_room(&mut self, now: i64) {
        let sources = self.answered.anchors().iter().chain(self.files.anchors());
        let sources = sources.filter(|anchor| anchor.not_after() > now);
        let leaving = self.served.values().filter(|served| served.until.is_some()).map(|served| &served.anchor);
        let (mut bytes, mut kept) = (0, BTreeMap::new());
        let mut names = AnchorNames::default();
        self.without_room = None;
        for anchor in sources.chain(leaving) {
            let size = if kept.contains_key(anchor.digest()) { 0 } else { anchor.size() };
            let missing = match bytes + size <= budget::for_anchors() {
                false => Some(Room::Arena),
                true if !names.take(anchor) => Some(Room::Names),
                true => None,
            };
            match missing {
                Some(room) => self.without_room = Some(room),
                None => {
                    bytes += size;
                    kept.entry(*anchor.digest()).or_insert_with(|| Arc::clone(anchor));
                }
            }
        }
        self.served.retain(|digest, _| kept.contains_key(digest));
        for (digest, anchor) in kept {
            self.served.entry(digest).or_insert(Served { anchor, leaf_end: i64::MIN, until: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::development_ca::{Lifetime, Pki, PkiOptions};

    /// When the tests take place, Unix seconds; roots of the development CA are valid for years.
    const NOW: i64 = 1_795_000_000;

    struct Source(Vec<String>);

    impl Source {
        fn of(count: usize) -> Self {
            Self((0..count).map(|number| Pki::new(&format!("root {number}")).root_pem()).collect())
        }

        fn bundle(&self, roots: &[usize]) -> TrustBundle {
            let text: String = roots.iter().map(|root| self.0[*root].as_str()).collect();
            TrustBundle::from_pem(&text, NOW).map(|(bundle, _)| bundle).unwrap_or_default()
        }

        fn digest(&self, root: usize) -> [u8; 32] {
            *self.bundle(&[root]).anchors()[0].digest()
        }

        fn end(&self, root: usize) -> i64 {
            self.bundle(&[root]).anchors()[0].not_after()
        }

        fn served(&self, roots: &Roots) -> Vec<usize> {
            let digests: Vec<_> = (0..self.0.len()).map(|root| self.digest(root)).collect();
            let index = |anchor: &Arc<TrustAnchor>| digests.iter().position(|digest| digest == anchor.digest());
            roots.bundle().anchors().iter().filter_map(index).collect()
        }
    }

    #[test]
    fn the_union_of_all_sources_is_served_without_duplicates() {
        let source = Source::of(3);
        let mut roots = Roots::new(None);
        roots.in_files(source.bundle(&[1, 2]), NOW);
        roots.answered(source.bundle(&[1, 0]), source.digest(0), NOW + 100, NOW);
        assert_eq!(source.served(&roots), [1, 0, 2]);
        roots.expire(NOW + 1_000_000);
        assert_eq!(source.served(&roots), [1, 0, 2]);
    }

    #[test]
    fn a_root_stays_until_the_last_leaf_under_it_has_expired() {
        let source = Source::of(2);
        let mut roots = Roots::new(None);
        roots.answered(source.bundle(&[0]), source.digest(0), NOW + 100, NOW);
        roots.answered(source.bundle(&[1]), source.digest(1), NOW + 150, NOW + 50);
        assert_eq!(source.served(&roots), [1, 0]);
        assert_eq!(roots.expire(NOW + 99), Some(NOW + 100));
        assert_eq!(roots.expire(NOW + 100), Some(source.end(1)));
        assert_eq!(source.served(&roots), [1]);
    }

    #[test]
    fn a_root_under_which_no_leaf_was_seen_stays_as_long_as_ours() {
        let source = Source::of(2);
        let mut roots = Roots::new(None);
        roots.in_files(source.bundle(&[1]), NOW);
        roots.answered(source.bundle(&[0]), source.digest(0), NOW + 100, NOW);
        roots.in_files(TrustBundle::default(), NOW + 1);
        assert_eq!(source.served(&roots), [0, 1]);
        assert_eq!(roots.expire(NOW + 1), Some(NOW + 100));
    }

    #[test]
    fn a_root_that_comes_back_stays() {
        let source = Source::of(2);
        let mut roots = Roots::new(Some(Duration::from_secs(10)));
        roots.answered(source.bundle(&[0, 1]), source.digest(0), NOW + 100, NOW);
        roots.answered(source.bundle(&[0]), source.digest(0), NOW + 100, NOW);
        assert_eq!(roots.expire(NOW), Some(NOW + 10));
        roots.in_files(source.bundle(&[1]), NOW + 5);
        roots.expire(NOW + 20);
        assert_eq!(source.served(&roots), [0, 1]);
    }

    #[test]
    fn without_grace_a_root_goes_at_once() {
        let source = Source::of(2);
        let mut roots = Roots::new(Some(Duration::ZERO));
        roots.answered(source.bundle(&[0, 1]), source.digest(0), NOW + 100, NOW);
        roots.answered(source.bundle(&[0]), source.digest(0), NOW + 100, NOW);
        assert_eq!(source.served(&roots), [0]);
    }

    /// Whichever source has them.
    #[test]
    fn an_expired_anchor_is_removed_and_reported_once() {
        let mut source = Source::of(1);
        let options = PkiOptions { root: Lifetime { not_before: -60, not_after: 1000 }, ..PkiOptions::new("short") };
        source.0.push(Pki::with_options(&options).root_pem());
        let now = crate::clock::now();
        let bundle = |roots: &[usize]| {
            let text: String = roots.iter().map(|root| source.0[*root].as_str()).collect();
            TrustBundle::from_pem(&text, now).expect("anchors").0
        };
        let (lasting, short) = (bundle(&[0]), bundle(&[1]));
        let end = short.anchors()[0].not_after();
        for in_files in [true, false] {
            let mut roots = Roots::new(None);
            let (files, answer) = if in_files { (bundle(&[1]), bundle(&[0])) } else { (bundle(&[0]), bundle(&[0, 1])) };
            roots.in_files(files, now);
            roots.answered(answer, *lasting.anchors()[0].digest(), now + 10_000, now);
            assert_eq!(roots.bundle().anchors().len(), 2);
            assert_eq!(roots.expire(end - 1), Some(end));
            assert!(roots.take_ended().is_empty());
            roots.expire(end);
            assert!(roots.bundle().is_same_set(&lasting), "it is served although it has ended");
            assert_eq!(roots.take_ended().len(), 1);
            // The sources still have it.
            roots.in_files(if in_files { bundle(&[1]) } else { bundle(&[0]) }, end + 1);
            assert!(roots.bundle().is_same_set(&lasting) && roots.take_ended().is_empty());
            assert_eq!(roots.left_out(end + 1), None);
        }
    }

    /// More anchors of this size than there is room for.
    fn many(size: usize) -> TrustBundle {
        let many: Vec<_> = (0..budget::for_anchors() / size + 32).map(|_| Pki::new("many").root_pem()).collect();
        TrustBundle::from_pem(&many.concat(), NOW).unwrap().0
    }

    #[test]
    fn there_is_a_limit() {
        let source = Source::of(1);
        let mut roots = Roots::new(None);
        let size = source.bundle(&[0]).anchors()[0].size();
        let (bundle, most) = (many(size), budget::for_anchors());
        roots.in_files(bundle, NOW);
        let bytes: usize = roots.bundle().anchors().iter().map(|anchor| anchor.size()).sum();
        assert!(bytes <= most && bytes > most - 4 * size, "{bytes}");
        assert!(roots.left_out(NOW).is_some_and(|(count, room)| count > 0 && room == Room::Arena));
    }

    /// The names of those that the CA has answered with come first.
    #[test]
    fn names_have_a_limit_of_their_own() {
        let source = Source::of(1);
        let mut roots = Roots::new(None);
        let long = testkit::anchors::with_long_names(300).unwrap().concat();
        roots.in_files(TrustBundle::from_pem(&long, NOW).unwrap().0, NOW);
        assert!(roots.left_out(NOW).is_some_and(|(count, room)| (1..50).contains(&count) && room == Room::Names));
        roots.answered(source.bundle(&[0]), source.digest(0), NOW + 100, NOW);
        assert_eq!(source.served(&roots), [0]);
        roots.in_files(TrustBundle::default(), NOW);
        assert_eq!(roots.left_out(NOW), None);
    }

    #[test]
    fn files_do_not_crowd_out_what_the_ca_answers() {
        let source = Source::of(1);
        let mut roots = Roots::new(None);
        let size = source.bundle(&[0]).anchors()[0].size();
        let (bundle, most) = (many(size), budget::for_anchors());
        roots.in_files(bundle, NOW);
        roots.answered(source.bundle(&[0]), source.digest(0), NOW + 100, NOW);
        assert_eq!(roots.bundle().anchors()[0].digest(), &source.digest(0));
        let bytes: usize = roots.bundle().anchors().iter().map(|anchor| anchor.size()).sum();
        assert!(bytes <= most, "{bytes}");
    }
}
