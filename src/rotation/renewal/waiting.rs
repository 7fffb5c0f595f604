use std::{
    future,
    pin::pin,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, futures::Notified, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use super::{Renewal, RenewalEnded, TokenSource, resuming::WANTED};
use crate::{
    clock::{self, WallTimer},
    identity::{PeerTrust, SvidError, TrustBundle, TrustDomain, X509Svid},
    rotation::{
        cure::Cure,
        failure::{Class, Failure},
        patience::{Setback, Strain, is_probed, wait_after},
        schedule::{MIN_INTERVAL, can_meet, renewal_after},
    },
    store::{CERTIFICATE, SecretStore},
};

/// How far in the future (seconds) a certificate may begin to be held until then. More means that a clock is wrong.
const HELD_UNTIL_VALID: i64 = 60;
/// How long after a change its like may follow: key and certificate are two files.
const SETTLES: Duration = Duration::from_millis(100);
/// How often the pause between cures that follow each other doubles.
const MOST_DOUBLINGS: u32 = 5;
/// Whoever verifies it may read a clock that ticks in steps of some milliseconds.
const COARSE_CLOCK: Duration = Duration::from_millis(100);

/// What is waited for.
impl<T: TokenSource> Renewal<T> {
    /// Tells a failure, and waits until another attempt may come to more.
    ///
    /// # Errors
    /// When none can.
    pub(super) async fn recover(&mut self, failure: &Failure, forced: Notified<'_>) -> Result<(), RenewalEnded> {
        let class = failure.class();
        if T::FIXED && class.token_is_final(self.held.is_some()) {
            self.failed(failure, Duration::ZERO, "not retrying with this token");
            return Err(RenewalEnded::Token(failure.to_string()));
        }
        let wait = self.wait_after(&class);
        match class.needs_token {
            true => self.failed(failure, wait, "watching the token file, re-reading it within 30 s"),
            false => self.failed(failure, wait, &format!("retrying in {:.1} s", wait.as_secs_f64())),
        }
        debug!(wait_ms = wait.as_millis() as u64, "waiting before the next attempt");
        let wants =
            matches!(class.setback(), Setback::Failed { strain, asked } if asked.is_some() || strain >= Strain::Late);
        self.hand_on_patience(wait, wants);
        self.hand_on();
        let (since, clock_was_set) = (Instant::now(), Notify::new());
        let cure = self.cure(&class);
        let mut cured = None;
        tokio::select! {
            biased;
            // First: what somebody wants counts also when the wait is over at the same moment.
            () = forced => {
                self.asked_for();
                self.failover.forget_patience();
            }
            () = moved(self.file_roots.clone(), &self.asked, self.tried) => self.backoff.reset(),
            true = self.tokens.changed(), if class.concerns_token() => self.backoff.reset(),
            // Nor does an outage keep the streams from what is valid again once the clock is set right.
            () = self.timer.pause(wait, || { self.store.look_again(); clock_was_set.notify_one(); }) => {}
            () = clock_was_set.notified(), if cure.hangs.clock => cured = Some("the clock".to_owned()),
            what = cure.comes(&self.before) => cured = Some(what),
        }
        match cured {
            Some(what) => self.cured(&what, since + wait).await,
            None => self.cures = 0,
        }
        self.backoff.cut_short(wait.saturating_sub(since.elapsed()));
        Ok(())
    }

    /// A CA that has asked a crashed process for patience, or could not answer it, is not called sooner by its successor;
    /// nor is one whose answer may be what crashed it. Else who has nothing to serve asks again, as after any start.
    pub(super) async fn be_patient(&self) {
        let (wait, word) = locked::inherited_patience();
        if !T::FIXED && !wait.is_zero() && word & WANTED != 0 {
            info!("not calling the CA for {:.1} s: it had failed before the crash", wait.as_secs_f64());
            tokio::select! {
                biased;
                () = self.force.notified() => info!("renewal requested by signal"),
                () = self.timer.pause(wait, || self.store.look_again()) => {}
            }
        }
    }

    /// What would end the wait after a failure.
    fn cure(&self, class: &Class) -> Cure {
        let left = self.left();
        Cure {
            hangs: class.hangs,
            ways: self.failover.ways(),
            calm: left.is_some_and(|left| !left.is_zero()),
            probed: is_probed(class.setback(), left),
        }
    }

    /// What the failure hung on has changed. What changes all the time makes no busy loop: each time in a row it counts
    /// later, and no later than the wait is over.
    async fn cured(&mut self, what: &str, over: Instant) {
        info!("{what} changed since the last attempt: calling the CA again");
        let pause = MIN_INTERVAL * 2_u32.pow(self.cures.min(MOST_DOUBLINGS));
        self.cures += 1;
        tokio::select! {
            biased;
            () = self.force.notified() => self.asked_for(),
            () = sleep_until((self.tried + pause).max(Instant::now() + SETTLES).min(over)) => {}
        }
        self.backoff.reset();
    }

    /// Somebody wants a new certificate now.
    fn asked_for(&mut self) {
        info!("renewal requested by signal");
        self.due = i64::MIN;
    }

    /// How long to leave the CA alone after a failure.
    fn wait_after(&mut self, class: &Class) -> Duration {
        let mut setback = class.setback();
        // A name that the CA does not know yet can wait, and a whole fleet may be ahead of its CA.
        if let (Setback::Failed { strain: strain @ (Strain::Away | Strain::None), .. }, true) =
            (&mut setback, self.awaits(class))
        {
            *strain = Strain::Late;
        }
        let drawn = wait_after(setback, self.left(), &mut self.backoff, random());
        let due = self.due.saturating_sub(clock::now());
        // What is held is renewed in time, whether or not it is to give way to another identity.
        let wait = if due > 0 { drawn.min(Duration::from_secs(due as u64)) } else { drawn };
        self.backoff.cut_short(drawn - wait);
        wait
    }

    /// Whether what is held serves while the CA refuses its successor.
    fn awaits(&self, class: &Class) -> bool {
        self.held.is_some() && self.identity != self.wanted() && class.is_refusal
    }

    /// The life that is left of what is held, if anything is.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = |held: &X509Svid| Duration::from_secs(held.validity().1.saturating_sub(clock::now()).max(0) as u64);
        self.held.as_ref().map(left)
    }

    /// Tells when the availability target cannot be met.
    pub(super) fn warn_of_short_life(&mut self, left: Duration) {
        match self.rotation.schedule.availability_target {
            Some(target) if !can_meet(target, left) => warn!(
                left_s = left.as_secs(),
                target_s = target.as_secs(),
                "the CA's certificates are too short-lived for SDS_SHIM_AVAILABILITY_TARGET"
            ),
            _ => {}
        }
    }

    /// Waits until what is held is to be renewed, or `forced` says that it is wanted now.
    pub(super) async fn sleep_until_renewal(&mut self, wait: Duration, forced: Notified<'_>) {
        let arena = locked::usage();
        let least_room = arena.capacity.saturating_sub(arena.peak);
        let (blocks, used) = (arena.blocks, arena.used);
        debug!(arena_least_room = least_room, arena_blocks = blocks, arena_used = used, "waiting for the renewal");
        let mut deadline = clock::wall_clock() + wait;
        let (mut files, mut forced) = (self.file_roots.clone(), pin!(forced));
        loop {
            tokio::select! {
                biased;
                () = &mut forced => return self.asked_for(),
                () = moved(self.file_roots.clone(), &self.asked, self.tried) => return,
                Ok(()) = files.changed() => {
                    if let Some(wait) = self.look_at_paths() {
                        deadline = clock::wall_clock() + wait;
                    }
                    self.hand_on();
                }
                () = self.until(deadline) => return,
            }
        }
    }

    /// The trust anchors that peers may verify what is held with.
    pub(super) fn anchors(&self) -> TrustBundle {
        let files = self.file_roots.borrow().roots.clone();
        TrustBundle::new(self.answered.anchors().iter().chain(files.anchors()).cloned().collect())
    }

    /// An anchor that came or went may be the one with which what is held ends: how long it serves now, if that has
    /// changed.
    fn look_at_paths(&mut self) -> Option<Duration> {
        let (anchors, now) = (self.anchors(), clock::now());
        let held = self.held.as_mut().filter(|held| held.validity().0 <= now)?;
        if !held.look_at_paths(&anchors, now) {
            return None;
        }
        let not_after = held.validity().1;
        let wait = renewal_after(&self.rotation.schedule, not_after, now, random());
        self.due = now.saturating_add(wait.as_secs() as i64);
        info!(
            not_after = clock::rfc3339(not_after),
            renewal_in_s = wait.as_secs(),
            "the trust anchors changed, and with them the time at which the certificate expires"
        );
        self.store.lasts_until(CERTIFICATE, not_after);
        self.shown.renews(self.due);
        Some(wait)
    }

    /// Waits until the wall clock shows this time, over suspends.
    async fn until(&self, deadline: SystemTime) {
        // What the clock said of our certificate may no longer be so once it was set.
        self.timer.until(deadline, || self.store.look_again()).await;
    }
}

/// Refuses a certificate that begins too far in the future, unless it is all that we could have: `holds` is whether
/// there is another one.
///
/// # Errors
/// That it does.
pub(in crate::rotation) fn check_start(svid: &X509Svid, holds: bool) -> Result<(), SvidError> {
    let ((not_before, not_after), now) = (svid.validity(), clock::now());
    if not_before.saturating_sub(now) <= HELD_UNTIL_VALID {
        return Ok(());
    }
    if holds {
        return Err(SvidError::Time { not_before, not_after, now });
    }
    warn!(
        not_before = clock::rfc3339(not_before),
        now = clock::rfc3339(now),
        "the certificate is not yet valid: this clock or the CA's is wrong; serving it anyway"
    );
    Ok(())
}

/// Holds a certificate back whose time comes within a minute; the current one is served meanwhile.
pub(in crate::rotation) async fn wait_for_start(
    svid: &X509Svid,
    timer: Option<&WallTimer>,
    store: &SecretStore,
    force: &Notify,
) {
    let ((not_before, _), now) = (svid.validity(), clock::now());
    if (1..=HELD_UNTIL_VALID).contains(&not_before.saturating_sub(now)) {
        let (from, now) = (clock::rfc3339(not_before), clock::rfc3339(now));
        info!(not_before = from, now, "holding back the certificate until it becomes valid");
        let begins = clock::deadline(not_before) + COARSE_CLOCK;
        let begun = async {
            match timer {
                // What the clock said of the current one may no longer be so once it was set.
                Some(timer) => timer.until(begins, || store.look_again()).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = begun => {}
            // A clock that was set back meanwhile would make it wait for hours.
            () = tokio::time::sleep(Duration::from_secs(HELD_UNTIL_VALID as u64)) => {}
            () = force.notified() => info!("renewal requested by signal: no longer holding back the certificate"),
        }
    }
}

/// Waits until another trust domain is wanted than the one that was asked for at `tried`.
async fn moved(mut files: watch::Receiver<PeerTrust>, asked: &TrustDomain, tried: Instant) {
    loop {
        if files.wait_for(|trust| trust.own != *asked).await.is_err() {
            // Nobody watches files.
            future::pending::<()>().await;
        }
        // Nor does a file that changes all the time make a busy loop; and it may have changed back.
        sleep_until(tried + MIN_INTERVAL).await;
        if files.borrow().own != *asked {
            return;
        }
    }
}

/// Uniform in 0..1.
pub(in crate::rotation) fn random() -> f64 {
    let mut bytes = [0; 8];
    // Without randomness renewals are not spread, which is better than none.
    let _ = openssl::rand::rand_bytes(&mut bytes);
    (u64::from_ne_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}
