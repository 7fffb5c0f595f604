//! The trust domains that a Workload API tells, beside those of files.

use std::{convert::Infallible, future};

use tokio::sync::watch;

use crate::{
    budget,
    identity::{PeerTrust, PemError, TrustBundle, TrustDomain},
};

/// What it tells of trust domains.
#[derive(Clone, Debug, Default)]
pub(super) struct Federation {
    /// That of the workload, once that is known.
    pub(super) own: Option<TrustDomain>,
    /// The others, with their anchors.
    pub(super) others: Vec<(TrustDomain, TrustBundle)>,
}

/// Keeps what is trusted up to date, from files and as told.
pub(super) async fn merge(
    mut files: watch::Receiver<PeerTrust>,
    mut told: watch::Receiver<Federation>,
    both: &watch::Sender<PeerTrust>,
) -> Infallible {
    loop {
        let now = merged(&files.borrow_and_update(), &told.borrow_and_update());
        both.send_if_modified(|held| {
            let changed = !held.is_same(&now);
            *held = now;
            changed
        });
        tokio::select! {
            Ok(()) = files.changed() => {}
            Ok(()) = told.changed() => {}
            else => future::pending().await,
        }
    }
}

/// Of a trust domain that the configuration names, its files count alone.
pub(super) fn merged(files: &PeerTrust, told: &Federation) -> PeerTrust {
    let mut both = files.clone();
    if let Some(own) = &told.own {
        both.own.clone_from(own);
    }
    let is_new = |(domain, _): &&(TrustDomain, TrustBundle)| files.domains.iter().all(|(known, _)| known != domain);
    both.domains.extend(told.others.iter().filter(is_new).cloned());
    both
}

/// What is told of other trust domains, and what of it cannot be used: the first few.
pub(super) fn federation(
    bundles: &[(Vec<u8>, Vec<u8>)],
    own: &TrustDomain,
    before: &[(TrustDomain, TrustBundle)],
    now: i64,
) -> (Vec<(TrustDomain, TrustBundle)>, Vec<String>) {
    const TOLD: usize = 4;
    let (mut others, mut flaws): (Vec<(TrustDomain, TrustBundle)>, Vec<String>) = Default::default();
    let mut tell = |flaw: String| flaws.extend((flaws.len() < TOLD).then_some(flaw));
    for (number, (name, der)) in bundles.iter().enumerate() {
        let text = String::from_utf8_lossy(name);
        // Both forms are found.
        let Ok(domain) = text.strip_prefix("spiffe://").unwrap_or(&text).parse::<TrustDomain>() else {
            tell(format!("number {} has a name that is not a trust domain; skipped", number + 1));
            continue;
        };
        // Envoy refuses all of them where one comes twice.
        if domain == *own || others.iter().any(|(known, _)| *known == domain) {
            continue;
        }
        match TrustBundle::from_der(der, now, budget::has_room_for_anchor) {
            Ok((bundle, bad)) => {
                if !bad.is_empty() {
                    tell(format!("of {domain}: {bad}"));
                }
                others.push((domain, bundle));
            }
            Err(error) => {
                tell(format!("of {domain}: {}; skipped", in_der(&error)));
                // The next message may be hours away.
                let held = before.iter().find(|(known, _)| *known == domain);
                others.extend(held.filter(|_| matches!(error, PemError::NoRoom { .. })).cloned());
            }
        }
    }
    others.sort_by(|(one, _), (other, _)| one.cmp(other));
    (others, flaws)
}

/// What is wrong with certificates that came as DER.
pub(super) fn in_der(error: &PemError) -> String {
    error.to_string().replace("PEM certificate", "certificate")
}
