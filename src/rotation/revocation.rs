//! Which revocation lists are served: those of the file that Envoy can use, and what was served before in the place of
//! those that it cannot. Pure: time is an argument.

use std::{cmp::Reverse, sync::Arc};

use openssl::x509::X509;

use crate::{
    config::RootsConfig,
    identity::{CrlSigner, CrlState, Revocation as InFile, RevocationList},
};

type List = Arc<RevocationList>;

/// The lists of one workload.
#[derive(Debug, Default)]
pub(super) struct Revocation {
    file: InFile,
    fail_open: bool,
    leaf_only: bool,
    /// The CAs of our own certificate from its issuer upwards, as far as they come with it.
    own: Vec<CrlSigner>,
    /// The same before anybody has looked at them, which takes as long as a signature.
    unread: Vec<X509>,
    served: Vec<List>,
}

/// What is to be served at one moment.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) lists: Vec<List>,
    /// Whether Envoy is to look for CA certificates in them as well.
    pub(super) whole_chain: bool,
    /// A CA on the way to an anchor of which no list tells.
    pub(super) gap: Option<String>,
    /// Why a list that is there is not among them, with the class of the reason: the first.
    pub(super) trouble: Option<(&'static str, String)>,
    /// What is to be told once.
    pub(super) told: Vec<String>,
    /// When to look again (Unix seconds).
    pub(super) next: Option<i64>,
}

/// From the best to the worst.
fn rank(state: CrlState) -> u8 {
    match state {
        CrlState::Good => 0,
        CrlState::Expired(_) => 1,
        CrlState::Ahead(_) => 2,
        CrlState::Flawed(_) => 3,
    }
}

impl Revocation {
    pub(super) fn new(config: &RootsConfig) -> Self {
        Self { fail_open: config.crl_fail_open, leaf_only: config.crl_leaf_only, ..Self::default() }
    }

    pub(super) fn fail_open(&self) -> bool {
        self.fail_open
    }

    /// The file holds this now.
    pub(super) fn in_file(&mut self, file: InFile) {
        self.file = file;
    }

    /// These issued our own certificate, its issuer first.
    pub(super) fn issued_by(&mut self, own: Vec<X509>) {
        (self.own, self.unread) = (Vec::new(), own);
    }

    /// Whether there are no lists, so that nobody need look for who signed them.
    pub(super) fn is_empty(&self) -> bool {
        self.file.lists.is_empty()
    }

    /// Chooses what is served at `now` (Unix seconds) beside these anchors; `complete` is whether they are all
    /// that are served.
    pub(super) fn select(&mut self, anchors: &[CrlSigner], complete: bool, now: i64) -> Selection {
        if !self.is_empty() && !self.unread.is_empty() {
            self.own = CrlSigner::of(std::mem::take(&mut self.unread));
        }
        let signers: Vec<_> = self.own.iter().chain(anchors).cloned().collect();
        let trouble = self.file.trouble.as_ref().map(|trouble| (trouble.reason, trouble.text.clone()));
        let mut selection = Selection { trouble, ..Selection::default() };
        let states: Vec<_> = self.file.lists.iter().map(|list| (list, list.state(&signers, now))).collect();
        let mut is_short = false;
        for (index, (list, state)) in states.iter().enumerate() {
            let rank = |index: usize| {
                states.get(index).map(|(list, state)| (Reverse(rank(*state)), list.this_update(), index))
            };
            let is_better =
                |(other, (like, _)): (usize, &(&List, CrlState))| like.is_like(list) && rank(other) > rank(index);
            let is_superseded = states.iter().enumerate().any(is_better);
            let served = match (state, is_superseded) {
                (CrlState::Good, false) => Some(Arc::clone(list)),
                (CrlState::Flawed(flaw), true) => {
                    selection.tell(format!("the CRL of {} {flaw}: it has no effect", list.issuer()));
                    continue;
                }
                (_, true) => continue,
                (state, false) => self.instead(list, *state, &signers, now, &mut selection),
            };
            is_short |= served.is_none() || served.as_ref().is_some_and(|list| list.next_update() <= now);
            selection.lists.extend(served.filter(|one| !selection.lists.contains(one)));
        }
        if self.fail_open && is_short {
            selection.lists.clear();
        } else if selection.lists.is_empty() && selection.trouble.is_some() && !self.fail_open {
            // What was served holds for longer than nothing.
            selection.lists.clone_from(&self.served);
        }
        self.look_at_chains(anchors, complete, &mut selection);
        let moments =
            self.file.lists.iter().chain(&selection.lists).flat_map(|list| [list.this_update(), list.next_update()]);
        selection.next = moments.filter(|moment| *moment > now).min();
        self.served.clone_from(&selection.lists);
        selection
    }

    /// What is served in the place of a list that Envoy cannot use now.
    fn instead(
        &self,
        list: &List,
        state: CrlState,
        signers: &[CrlSigner],
        now: i64,
        selection: &mut Selection,
    ) -> Option<List> {
        let former = |wanted: fn(CrlState) -> bool| {
            self.served.iter().find(|former| {
                former.is_like(list) && former.digest() != list.digest() && wanted(former.state(signers, now))
            })
        };
        let is_expired = |state: CrlState| matches!(state, CrlState::Expired(_));
        let good = former(|state| state == CrlState::Good);
        let former = good.or_else(|| former(is_expired).filter(|_| !is_expired(state)));
        let (issuer, open) = (list.issuer(), self.fail_open);
        let meanwhile = match (former, open) {
            (Some(_), _) => "still serving the previous one",
            (None, true) => "no CRL is served (SDS_SHIM_CRL_FAIL_OPEN)",
            (None, false) => "ROOTCA is held back (SDS_SHIM_CRL_FAIL_OPEN=false)",
        };
        let (reason, text) = match state {
            CrlState::Expired(_) if former.is_none() => {
                let then = match open {
                    true => "no CRL is served until there is a newer one (SDS_SHIM_CRL_FAIL_OPEN)",
                    false => {
                        "Envoy refuses certificates of this issuer until there is a newer one in SDS_SHIM_CRL; a file of \
                         0 bytes withdraws all lists"
                    }
                };
                let file = self.file.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
                selection.tell(format!("the CRL of {issuer} {state}: {then}{file}"));
                return Some(Arc::clone(list));
            }
            CrlState::Expired(_) => ("expired", state.to_string()),
            CrlState::Ahead(_) => ("not_yet_valid", state.to_string()),
            CrlState::Flawed(_) => {
                ("unusable", format!("{state}, so Envoy would refuse every certificate of this issuer"))
            }
            CrlState::Good => return Some(Arc::clone(list)),
        };
        let text = format!("the CRL of {issuer} {text}: {meanwhile}");
        selection.tell(text.clone());
        if former.is_none() || !matches!(state, CrlState::Ahead(_)) {
            selection.trouble.get_or_insert((reason, text));
        }
        former.cloned()
    }

    /// Whether there is a list of every CA from the issuer of a leaf to its anchor, and what follows.
    fn look_at_chains(&self, anchors: &[CrlSigner], complete: bool, selection: &mut Selection) {
        if selection.lists.is_empty() {
            return;
        }
        let lists = &selection.lists;
        let mut told = Vec::new();
        let upper = self.own.iter().skip(1).chain(anchors);
        // Of an anchor that is no root, a list would have to tell whether it is revoked itself.
        let gap = anchors.iter().find(|anchor| !anchor.is_root());
        let gap = gap.or_else(|| upper.clone().find(|signer| !signer.is_covered(lists, true)));
        if let Some(issuer) = self.own.first().filter(|issuer| !issuer.is_covered(lists, false)) {
            told.push(format!(
                "no CRL was issued by {}, which issued our own certificate: Envoy rejects peers with its certificates",
                issuer.name()
            ));
        }
        selection.whole_chain = !self.leaf_only && complete && gap.is_none();
        selection.gap = gap.map(|gap| gap.name().to_owned());
        let why = match gap {
            _ if self.leaf_only => "of SDS_SHIM_CRL_LEAF_ONLY".to_owned(),
            Some(gap) if gap.is_covered(lists, true) => {
                format!("the anchor {} is not a root, and no CRL covers it", gap.name())
            }
            Some(gap) => format!("no CRL was issued by {}", gap.name()),
            None => "not enough memory to check all anchors".to_owned(),
        };
        if !selection.whole_chain {
            // Whoever issues to us does so to our peers.
            let serves_leaves = |list: &List| self.own.first().is_none_or(|issuer| list.is_of(issuer));
            let idle = |list: &&List| upper.clone().any(|signer| list.is_of(signer)) && !serves_leaves(list);
            told.extend(lists.iter().filter(idle).map(|list| {
                format!(
                    "the CRL of {} has no effect on the CA certificates that it names: Envoy checks leaf certificates \
                     alone, because {why}",
                    list.issuer()
                )
            }));
        }
        selection.told.append(&mut told);
    }
}

impl Selection {
    fn tell(&mut self, what: String) {
        self.told.push(what);
    }
}

#[cfg(test)]
mod tests;
