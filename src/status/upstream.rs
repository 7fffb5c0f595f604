use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Why an attempt brought no certificate, in the classes that alerts tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The service-account token cannot be used; the CA was not asked.
    Token,
    /// The CA's name has no address.
    Resolve,
    /// There is no connection to the CA.
    Connect,
    /// The TLS handshake failed, or there are no anchors to verify the CA with.
    Tls,
    /// The CA refuses our client certificate, or it cannot be read.
    ClientCertificate,
    /// The CA did not answer in time.
    Deadline,
    /// The connection broke.
    Transport,
    /// The CA does not accept who we say we are.
    Unauthenticated,
    /// The CA is asked too much.
    Overload,
    /// The CA answered with another error.
    Refused,
    /// The CA's answer cannot be used.
    Answer,
    /// Something failed here.
    Internal,
    /// The mounted files cannot be used.
    Files,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Token,
        Self::Resolve,
        Self::Connect,
        Self::Tls,
        Self::ClientCertificate,
        Self::Deadline,
        Self::Transport,
        Self::Unauthenticated,
        Self::Overload,
        Self::Refused,
        Self::Answer,
        Self::Internal,
        Self::Files,
    ];

    /// Its name in metrics and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::ClientCertificate => "client_certificate",
            Self::Deadline => "deadline",
            Self::Transport => "transport",
            Self::Unauthenticated => "unauthenticated",
            Self::Overload => "overload",
            Self::Refused => "refused",
            Self::Answer => "answer",
            Self::Internal => "internal",
            Self::Files => "files",
        }
    }
}

/// Upper bounds of the classes in which the CA's latencies are counted, in seconds.
pub const BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// How long calls took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latencies {
    /// Calls in each class of [`BUCKETS`], and last those beyond.
    pub counts: [u64; BUCKETS.len() + 1],
    /// Seconds of all calls together.
    pub sum: f64,
}

impl Latencies {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let class = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[class] += 1;
        self.sum += seconds;
    }

    /// All calls.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// An address of the CA, and how the calls to it went.
pub struct Endpoint {
    /// `host:port`.
    pub address: String,
    facts: Mutex<EndpointFacts>,
}

/// Version and group of a TLS connection.
pub type Tls = (&'static str, &'static str);

/// How the calls to one address went.
#[derive(Clone, Debug, Default)]
pub struct EndpointFacts {
    /// How long all calls took, whatever came of them.
    pub latencies: Latencies,
    /// Calls that brought no answer that a certificate could be in.
    pub failed: u64,
    /// Those of them that found nobody, which cost the CA nothing.
    pub unreached: u64,
    /// When the last one brought one, Unix seconds.
    pub last_success: Option<i64>,
    /// When the last one did not, and why.
    pub last_failure: Option<(i64, String)>,
    /// Version and group of the last TLS connection.
    pub tls: Option<Tls>,
}

impl EndpointFacts {
    /// Whether the last call brought an answer; `None` before the first one.
    pub fn is_up(&self) -> Option<bool> {
        let failed = self.last_failure.as_ref().map(|(at, _)| *at);
        (failed.is_some() || self.last_success.is_some()).then_some(self.last_success >= failed)
    }
}

impl Endpoint {
    pub(super) fn new(address: String) -> Self {
        Self { address, facts: Mutex::default() }
    }

    /// A call has ended at `now` (Unix seconds), with this error if it brought nothing, and whether anybody was reached.
    /// `tls` is what its connection, if there was one with TLS, has come to.
    pub fn called(&self, now: i64, took: Duration, error: Option<(String, bool)>, tls: Option<Tls>) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.tls = tls.or(facts.tls);
        facts.latencies.add(took);
        match error {
            Some((error, reached)) => {
                facts.failed += 1;
                facts.unreached += u64::from(!reached);
                // Within one second the later one counts.
                facts.last_success = facts.last_success.filter(|success| *success < now);
                facts.last_failure = Some((now, error));
            }
            None => facts.last_success = Some(now),
        }
    }

    /// How the calls went so far.
    pub fn facts(&self) -> EndpointFacts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_and_a_name_of_its_own() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::ALL.iter().filter(|other| other.label() == reason.label()).count(), 1);
        }
    }

    #[test]
    fn calls_are_counted_by_their_latency() {
        let endpoint = Endpoint::new("ca:1".to_owned());
        assert_eq!(endpoint.facts().is_up(), None);
        endpoint.called(10, Duration::from_millis(5), None, None);
        assert_eq!(endpoint.facts().is_up(), Some(true));
        endpoint.called(10, Duration::from_secs(11), Some(("late".to_owned(), true)), None);
        let facts = endpoint.facts();
        assert_eq!((facts.is_up(), facts.failed, facts.latencies.count()), (Some(false), 1, 2));
        assert_eq!((facts.latencies.counts[0], facts.latencies.counts[BUCKETS.len()]), (1, 1));
        endpoint.called(10, Duration::ZERO, Some(("away".to_owned(), false)), None);
        assert_eq!((endpoint.facts().failed, endpoint.facts().unreached), (2, 1));
        endpoint.called(10, Duration::ZERO, None, None);
        assert_eq!(endpoint.facts().is_up(), Some(true));
    }
}
