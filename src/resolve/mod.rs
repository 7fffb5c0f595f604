//! Names of hosts to addresses, as libc does it, but without its thread and its heap (`src/manual/design/architecture.md` says
//! why): `/etc/hosts`, then the nameservers of `/etc/resolv.conf`. Both are read anew for each look-up.

mod exchange;
mod files;
#[cfg(fuzzing)]
#[path = "../../tests/fuzz/inside/names.rs"]
pub mod fuzz;
mod message;

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    task::Poll,
    time::Duration,
};

use exchange::{Question, random};
use files::ResolverConfig;
use message::{Answer, Kind, MOST_ADDRESSES, Name};
use tokio::time::timeout;

use crate::bounded;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The files that say where a name leads.
pub const FILES: [&str; 2] = [HOSTS, RESOLV_CONF];
/// Bytes that each of them may hold.
const MOST_CONTENT: usize = 64 * 1024;
/// How long to wait for addresses of the other kind once there are some of one.
const OTHER_KIND: Duration = Duration::from_millis(250);
const NO_SUCH_NAME: u8 = 3;
/// What a nameserver says of a name that is there, and has no address.
const NO_ADDRESS: &str = "that it has no address";

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A file is too large or cannot be read.
    #[error("{0}")]
    File(String),
    /// The nameservers know of no address: check the spelling, and the search list of `/etc/resolv.conf`.
    #[error("{server} says {what}{}", also_searched(*.searched))]
    Absent {
        /// The nameserver that said so last.
        server: IpAddr,
        /// What it said.
        what: &'static str,
        /// How many other names of the search list were asked for as well.
        searched: usize,
    },
    /// No nameserver answered as it should: each with what came of it.
    #[error("no nameserver in {RESOLV_CONF} answered: {0}")]
    NoServer(String),
    /// The host cannot be a name.
    #[error("it is not a valid DNS name")]
    NotAName,
}

fn also_searched(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", also with {count} domains of the search list in {RESOLV_CONF}"),
    }
}

/// The addresses of `host`, no more than a few, in the order in which they should be tried. It takes no longer than
/// about `limit`, in which all nameservers have their turn.
///
/// # Errors
/// Why there is none.
pub async fn lookup(host: &str, limit: Duration) -> Result<Vec<IpAddr>, ResolveError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let name = host.trim_end_matches('.');
    let known = files::hosts(&read(HOSTS)?, name);
    if !known.is_empty() {
        return Ok(alternating(known));
    }
    if name.eq_ignore_ascii_case("localhost") {
        // No nameserver should be asked for it (RFC 6761, section 6.3).
        return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
    }
    let config = ResolverConfig::parse(&read(RESOLV_CONF)?);
    let mut lookup = Lookup::new(&config, limit);
    timeout(limit, lookup.search(host)).await.unwrap_or_else(|_| Err(lookup.failure()))
}

fn read(file: &str) -> Result<String, ResolveError> {
    match bounded::read_ascii(Path::new(file), MOST_CONTENT) {
        Ok(content) => Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(ResolveError::File(bounded::describe(Path::new(file), &error))),
    }
}

struct Lookup<'a> {
    config: &'a ResolverConfig,
    /// The nameserver that is asked first: the one that answered last.
    first: usize,
    wait: Duration,
    /// How long may still be waited for answers that stay out where those of the other kind have come.
    spare: Duration,
    /// What came of each nameserver, if not an answer.
    failures: Vec<Option<String>>,
}

impl<'a> Lookup<'a> {
    fn new(config: &'a ResolverConfig, limit: Duration) -> Self {
        let servers = config.servers.len();
        let first = if config.rotate { usize::from(random().unwrap_or(0)) % servers } else { 0 };
        let wait = config.timeout.min(limit / (servers as u32 * config.attempts));
        Self { config, first, wait, spare: limit / 2, failures: vec![None; servers] }
    }

    fn failure(&self) -> ResolveError {
        let told = self.config.servers.iter().zip(&self.failures);
        let told =
            told.map(|(server, why)| format!("{}: {}", server.ip(), why.clone().unwrap_or_else(|| self.silence())));
        ResolveError::NoServer(told.collect::<Vec<_>>().join(", "))
    }

    async fn search(&mut self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let mut last = ResolveError::NotAName;
        for (searched, candidate) in self.config.candidates(host).iter().enumerate() {
            let Some(name) = Name::new(candidate) else { continue };
            match self.ask(name).await {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(what)) => {
                    last = ResolveError::Absent { server: self.config.servers[self.first].ip(), what, searched }
                }
                // All of them refuse this name, but perhaps not the next one.
                Err(true) => last = self.failure(),
                Err(false) => return Err(self.failure()),
            }
        }
        Err(last)
    }

    /// Asks the nameservers in turn for the addresses of a name; answers them, or how the name has none. When none
    /// answers as it should: whether one did at all.
    async fn ask(&mut self, name: Name) -> Result<Result<Vec<IpAddr>, &'static str>, bool> {
        let (servers, start) = (self.config.servers.len(), self.first);
        let (mut answered, mut half) = (false, None);
        for turn in 0..servers * self.config.attempts as usize {
            let index = (start + turn) % servers;
            let failure = match self.ask_server(name, self.config.servers[index]).await {
                Ok(Told { answer, .. }) if !answer.addresses.is_empty() => return Ok(Ok(answer.addresses)),
                // The other answer may be lost, and not kept back: asked again, it may come.
                Ok(Told { answer, whole: false }) if [0, NO_SUCH_NAME].contains(&answer.code) => {
                    half = half.or(Some(index));
                    self.silence()
                }
                Ok(Told { answer, .. }) if answer.code == 0 || answer.code == NO_SUCH_NAME => {
                    self.first = index;
                    let absent = if answer.code == 0 { NO_ADDRESS } else { "NXDOMAIN" };
                    return Ok(Err(absent));
                }
                Ok(Told { answer, .. }) => {
                    answered = true;
                    code_name(answer.code)
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => self.silence(),
                Err(error) => error.to_string(),
            };
            self.failures[index] = Some(failure);
        }
        if let Some(index) = half {
            self.first = index;
            return Ok(Err(NO_ADDRESS));
        }
        Err(answered)
    }

    fn silence(&self) -> String {
        format!("no answer within {:.1} s", self.wait.as_secs_f64())
    }

    /// Asks one nameserver for addresses of both kinds at the same time.
    async fn ask_server(&mut self, name: Name, server: SocketAddr) -> io::Result<Told> {
        let question = |kind| Question { name, kind, server, tcp_only: self.config.tcp_only, wait: self.wait };
        let questions = [question(Kind::Aaaa), question(Kind::A)];
        let mut asked = questions.each_ref().map(|question| Box::pin(question.ask()));
        let (index, first) = poll_fn(|cx| {
            for (index, asked) in asked.iter_mut().enumerate() {
                if let Poll::Ready(answer) = asked.as_mut().poll(cx) {
                    return Poll::Ready((index, answer));
                }
            }
            Poll::Pending
        })
        .await;
        let other = &mut asked[1 - index];
        let (mut answer, other) = match first {
            // It holds for addresses of every kind (RFC 8020). Of the other kind it does not convince: some nameservers
            // say so of each name for which they have no IPv6 address (RFC 4074, section 4.2).
            Ok(answer) if answer.code == NO_SUCH_NAME && questions[index].kind == Kind::A => {
                return Ok(Told { answer, whole: true });
            }
            // Whoever drops questions for IPv6 must not cost us the whole wait.
            Ok(answer) => {
                let patience = match answer.addresses.is_empty() {
                    true => self.wait.min((self.spare / 2).max(OTHER_KIND)),
                    false => OTHER_KIND,
                };
                let waited = timeout(patience, other).await.unwrap_or_else(|error| {
                    self.spare = self.spare.saturating_sub(patience);
                    Err(error.into())
                });
                (answer, waited)
            }
            Err(error) => {
                let answer = other.await?;
                (if answer.addresses.is_empty() { return Err(error) } else { answer }, Err(error))
            }
        };
        let whole = other.is_ok();
        match other {
            Ok(other) if answer.code == 0 || !other.addresses.is_empty() => {
                answer.code = if other.addresses.is_empty() { answer.code.max(other.code) } else { 0 };
                answer.addresses.extend(other.addresses);
            }
            Err(error) if answer.addresses.is_empty() && error.kind() != io::ErrorKind::TimedOut => return Err(error),
            // What came decides: that there is no such address, or what ails the nameserver.
            Ok(_) | Err(_) => {}
        }
        answer.addresses = alternating(answer.addresses);
        Ok(Told { answer, whole })
    }
}

/// What a nameserver says to both questions.
struct Told {
    answer: Answer,
    /// Whether it has answered to both.
    whole: bool,
}

fn code_name(code: u8) -> String {
    match code {
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        code => format!("error {code}"),
    }
}

/// IPv6 first, then one of each kind in turn (RFC 8305, section 4).
fn alternating(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let longest = six.len().max(four.len());
    let turns = (0..longest).flat_map(|turn| [six.get(turn), four.get(turn)]).flatten();
    turns.take(MOST_ADDRESSES).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_have_their_turn() {
        let list = |text: &str| text.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<IpAddr>>();
        let rows = [
            ("10.0.0.1 10.0.0.2 ::1 ::2", "::1 10.0.0.1 ::2 10.0.0.2"),
            ("10.0.0.1 10.0.0.2 ::1", "::1 10.0.0.1 10.0.0.2"),
            ("10.0.0.1", "10.0.0.1"),
            ("::1", "::1"),
        ];
        for (addresses, expected) in rows {
            assert_eq!(alternating(list(addresses)), list(expected));
        }
        let many: Vec<_> = (0..20).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(alternating(many).len(), MOST_ADDRESSES);
    }

    #[tokio::test]
    async fn an_address_resolves_to_itself() {
        for text in ["10.0.0.1", "fd00::1"] {
            assert_eq!(lookup(text, Duration::ZERO).await.unwrap(), [text.parse::<IpAddr>().unwrap()]);
        }
    }
}
