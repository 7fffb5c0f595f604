use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    account::Account,
    limits::{self, IDLE_UNDER_PRESSURE},
    pace::{Bucket, Lines},
};
use crate::{
    budget::{self, Taker},
    config::Service,
    status::Peer,
};

/// All who are connected. Places and memory are shared out by process, because the user is the same for all containers
/// of a pod as a rule.
pub(super) struct Crowd(Mutex<Present>);

struct Present {
    members: Vec<Arc<Account>>,
    groups: BTreeMap<(Service, Option<i32>, u32), Arc<Group>>,
    /// When somebody last had to make room, for Envoy and for applications: where these ask for room all the time, that
    /// must not keep Envoy from asking.
    relieved: [Option<Instant>; 2],
}

/// The connections of one process. Those whose process the kernel does not tell, because it is in another PID namespace,
/// are one group.
pub(super) struct Group {
    peer: Peer,
    /// The socket that it comes to.
    service: Service,
    /// What it sends.
    units: Mutex<Bucket>,
    /// Its connections.
    connects: Mutex<Bucket>,
    /// What is logged of it: a line for each cause.
    lines: Mutex<[Lines; 3]>,
    /// When one of its connections last began calls while there was little room.
    opened: Mutex<Option<Instant>>,
}

/// Causes of lines in the log.
#[derive(Clone, Copy)]
pub(super) enum Cause {
    Sent,
    Accepted,
    Refused,
}

/// A place among the connections, free again when this is dropped.
pub(super) struct Membership {
    crowd: Arc<Crowd>,
    pub(super) account: Arc<Account>,
}

/// Why a connection is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooMany,
    TooFast,
    /// Its user may have none, and why.
    User(String),
}

impl Crowd {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Present { members: Vec::new(), groups: BTreeMap::new(), relieved: [None; 2] })))
    }

    /// A place for a connection of this peer to one of the sockets. Each has its own, so that applications take none of
    /// Envoy's; memory is the same for all, of which they leave some to it. Where there is none, whoever takes more than
    /// others may have to leave.
    pub(super) fn admit(self: &Arc<Self>, service: Service, peer: Peer) -> Result<Membership, Refusal> {
        let mut present = self.present();
        let group = present.group(service, peer);
        if !group.connects.lock().unwrap_or_else(PoisonError::into_inner).take(1, Instant::now()) {
            return Err(Refusal::TooFast);
        }
        let own = present.size(&group);
        // The last places are kept for those who have none, such as our own commands and probes.
        let most = limits::connections() + if own == 0 { limits::KEPT_CONNECTIONS } else { 0 };
        if present.of(service).count() >= most && !present.make_place(&group, own) {
            return Err(Refusal::TooMany);
        }
        let taker = limits::taker_of(service);
        let has_room = budget::has_room_for_connection(taker) || own == 0 && budget::has_room_for_the_least(taker);
        if !has_room {
            present.relieve(taker);
            return Err(Refusal::TooMany);
        }
        let account = Arc::new(Account::new(group));
        present.members.push(Arc::clone(&account));
        drop(present);
        Ok(Membership { crowd: Arc::clone(self), account })
    }

    /// Such a client has waited for memory for a while: refuses what has only begun on a connection of those who hold
    /// most.
    pub(super) fn make_room(&self, waits: Taker) {
        if let Some(holder) = self.present().greediest(waits) {
            holder.make_room();
        }
    }

    /// Such a client has waited for memory long enough: closes a connection of those who hold most, and tells
    /// whether there is one.
    pub(super) fn relieve(&self, waits: Taker) -> bool {
        self.present().relieve(waits)
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Present {
    /// Those on one of the sockets.
    fn of(&self, service: Service) -> impl Iterator<Item = &Arc<Account>> {
        self.members.iter().filter(move |member| member.group.service == service)
    }

    fn group(&mut self, service: Service, peer: Peer) -> Arc<Group> {
        /// Groups that are remembered for their rates after they have left.
        const REMEMBERED: usize = 64;
        let now = Instant::now();
        if self.groups.len() >= REMEMBERED {
            // First those who may do all again, then whoever is not there.
            self.groups.retain(|_, group| Arc::strong_count(group) > 1 || !group.is_rested(now));
            if self.groups.len() >= REMEMBERED {
                self.groups.retain(|_, group| Arc::strong_count(group) > 1);
            }
        }
        Arc::clone(
            self.groups
                .entry((service, peer.pid, peer.uid))
                .or_insert_with(|| Arc::new(Group::new(service, peer, now))),
        )
    }

    fn size(&self, group: &Arc<Group>) -> usize {
        self.members.iter().filter(|member| Arc::ptr_eq(&member.group, group)).count()
    }

    /// Closes a connection that nothing is asked on, else one of a process that has more of them by far.
    fn make_place(&mut self, newcomer: &Arc<Group>, own: usize) -> bool {
        let idle = |member: &Arc<Account>| member.idle().filter(|idle| *idle >= IDLE_UNDER_PRESSURE);
        let silent =
            self.of(newcomer.service).filter_map(|member| Some((self.size(&member.group), idle(member)?, member)));
        let victim = silent.max_by_key(|(size, idle, _)| (*size, *idle)).map(|(_, _, member)| Arc::clone(member));
        let victim = victim.or_else(|| {
            let greedy = self.of(newcomer.service).filter(|member| !Arc::ptr_eq(&member.group, newcomer));
            // The last one of those who came later.
            let greedy = greedy.max_by_key(|member| self.size(&member.group))?;
            (self.size(&greedy.group) > own + 1).then(|| Arc::clone(greedy))
        });
        let Some(victim) = victim else { return false };
        victim.end("its place was needed for another client");
        self.members.retain(|member| !Arc::ptr_eq(member, &victim));
        true
    }

    fn relieve(&mut self, waits: Taker) -> bool {
        let Some(victim) = self.greediest(waits) else { return false };
        let clients = victim.group.service.name();
        warn!(pid = victim.group.peer.pid, bytes = victim.held(), "{clients} clients request more than fits in memory");
        victim.end("it holds the most memory while others wait");
        true
    }

    /// The connection that has to make room, if one holds so much and none had to just before. Envoy never has to for
    /// applications, and nobody has to for it before they have: however many share what they hold.
    fn greediest(&mut self, waits: Taker) -> Option<Arc<Account>> {
        /// What is freed by one is seen after this.
        const PAUSE: Duration = Duration::from_millis(250);
        /// Who holds less is not the one to close.
        const SMALL: usize = 96 * 1024;
        if self.relieved[waits as usize].is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        let of_group = |group: &Arc<Group>| {
            self.members.iter().filter(|one| Arc::ptr_eq(&one.group, group)).map(|one| one.held()).sum::<usize>()
        };
        let by_applications = self.of(Service::WorkloadApi).map(|one| one.held()).sum::<usize>();
        let (service, least) = match waits {
            Taker::Envoy if by_applications >= SMALL => (Service::WorkloadApi, 0),
            Taker::Envoy => (Service::Sds, SMALL),
            Taker::Application => (Service::WorkloadApi, SMALL),
        };
        let group = self.of(service).map(|member| &member.group).max_by_key(|group| of_group(group))?;
        if of_group(group) < least {
            return None;
        }
        let mut of_it = self.members.iter().filter(|member| Arc::ptr_eq(&member.group, group));
        // Of many that hold little, the one that came last: who cannot be told from them has been there before.
        let victim = match of_it.clone().max_by_key(|member| member.held()) {
            Some(largest) if largest.held() >= SMALL => Some(largest),
            _ => of_it.next_back(),
        };
        let victim = victim.map(Arc::clone)?;
        self.relieved[waits as usize] = Some(Instant::now());
        Some(victim)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.crowd.present().members.retain(|member| !Arc::ptr_eq(member, &self.account));
    }
}

impl Group {
    fn new(service: Service, peer: Peer, now: Instant) -> Self {
        Self {
            peer,
            service,
            units: Mutex::new(Bucket::new(limits::BURST, limits::RATE, now)),
            connects: Mutex::new(Bucket::new(limits::CONNECTION_BURST, limits::CONNECTION_RATE, now)),
            lines: Mutex::new([(); 3].map(|()| Lines::new(limits::LINES, now))),
            opened: Mutex::default(),
        }
    }

    /// Whether it may do all that it may ever do at once.
    fn is_rested(&self, now: Instant) -> bool {
        self.units().is_full(now) && self.connects.lock().unwrap_or_else(PoisonError::into_inner).is_full(now)
    }

    /// Frames or parts of them that it has sent.
    pub(super) fn units(&self) -> MutexGuard<'_, Bucket> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When one of its connections last had its turn to begin calls.
    pub(super) fn opened(&self) -> MutexGuard<'_, Option<Instant>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a line of this cause may be written; tells of those that were not.
    pub(super) fn may_log(&self, cause: Cause) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (may, left_out) = lines[cause as usize].next(Instant::now());
        drop(lines);
        if left_out > 0 {
            let what = match cause {
                Cause::Sent => "secrets sent",
                Cause::Accepted => "secrets accepted",
                Cause::Refused => "secrets refused",
            };
            warn!(
                pid = self.peer.pid,
                uid = self.peer.uid,
                "suppressed {left_out} more lines about {what} in a minute"
            );
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(pid: i32) -> Peer {
        Peer { pid: Some(pid), uid: 7 }
    }

    #[test]
    fn one_process_cannot_take_all_places() {
        let crowd = Crowd::new();
        let mut greedy: Vec<_> =
            (0..limits::connections()).map(|_| crowd.admit(Service::Sds, peer(1)).expect("a place")).collect();
        greedy.iter().for_each(|one| one.account.opens_stream());
        assert_eq!(crowd.admit(Service::Sds, peer(1)).err(), Some(Refusal::TooMany));
        // Those who have none find one, without harm to anybody, and then at the cost of who has most.
        let others: Vec<_> =
            (2..8).map(|pid| crowd.admit(Service::Sds, peer(pid)).expect("a place for somebody else")).collect();
        others.iter().for_each(|one| one.account.opens_stream());
        let ended = |one: &Membership| one.account.is_ended();
        assert_eq!(greedy.iter().filter(|one| ended(one)).count(), others.len() - limits::KEPT_CONNECTIONS);
        assert!(!others.iter().any(ended));
        greedy.retain(|one| !ended(one));
        assert_eq!(crowd.present().members.len(), limits::connections() + limits::KEPT_CONNECTIONS);
        // Another socket has places of its own.
        let application = crowd.admit(Service::WorkloadApi, peer(1)).expect("a place on the other socket");
        assert!(!greedy.iter().chain(&others).any(ended));
        drop((greedy, others, application));
        assert!(crowd.present().members.is_empty());
    }

    #[test]
    fn applications_make_room_before_envoy_does() {
        const KIB: usize = 1024;
        let crowd = Crowd::new();
        let [envoy, other] = [1, 2].map(|pid| crowd.admit(Service::Sds, peer(pid)).expect("a place"));
        envoy.account.takes(200 * KIB);
        let applications: Vec<_> =
            (3..8).map(|pid| crowd.admit(Service::WorkloadApi, peer(pid)).expect("a place")).collect();
        let ended = || applications.iter().filter(|one| one.account.is_ended()).count();
        applications.iter().for_each(|one| one.account.takes(10 * KIB));
        // Envoy never has to for an application, nor does one of those that hold little each.
        assert!(!crowd.relieve(Taker::Application));
        // For Envoy they have to where they hold much together.
        applications.iter().for_each(|one| one.account.takes(10 * KIB));
        assert!(crowd.relieve(Taker::Envoy));
        assert_eq!((ended(), envoy.account.is_ended()), (1, false));
        // Not at once again; but what applications wait for takes nothing of that.
        assert!(!crowd.relieve(Taker::Envoy));
        applications[0].account.takes(100 * KIB);
        assert!(crowd.relieve(Taker::Application));
        assert!(applications[0].account.is_ended());
        drop(applications);
        crowd.present().relieved = [None; 2];
        assert!(crowd.relieve(Taker::Envoy));
        assert_eq!((envoy.account.is_ended(), other.account.is_ended()), (true, false));
    }
}
