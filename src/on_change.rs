//! What reaches connections that are open: they were verified with what was served when they were made, so Envoy, or the
//! command that was started, hears of each change of that.

use std::{convert::Infallible, future::pending, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    clock,
    config::{AdminAddress, AdminUrl, OnChange},
    status::Status,
    store::{CERTIFICATE, ROOTS, SecretStore, View},
    wire::Stream,
};

/// How long Envoys may take to answer to what they were sent: until then they verify with what they had.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// How long Envoy may take for an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait before the first further attempt; each further wait is twice as long, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Follows a workload, and does what is to be done at each change.
pub struct Follower {
    action: OnChange,
    store: Arc<SecretStore>,
    view: watch::Receiver<View>,
    status: Arc<Status>,
    signal: Arc<Notify>,
}

/// What is to be done still.
struct Due {
    /// What changed.
    what: &'static str,
    failed: u32,
    /// How long to wait after the next failure.
    wait: Duration,
}

/// What connections are verified with at one moment.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    identity: Option<String>,
    /// The name of each validation context and its version.
    contexts: Vec<(String, String)>,
    /// The digests of all revocation lists in them.
    lists: Vec<[u8; 32]>,
}

impl Follower {
    /// A signal is sent by whoever waits for `signal`.
    pub fn new(action: OnChange, store: Arc<SecretStore>, status: Arc<Status>, signal: Arc<Notify>) -> Self {
        let view = store.view();
        Self { action, store, view, status, signal }
    }

    /// Goes on for ever.
    pub async fn run(mut self) -> Infallible {
        let mut known: Option<Seen> = None;
        let mut due: Option<Due> = None;
        loop {
            let seen = self.look();
            if let Some(what) = known.as_ref().zip(seen.as_ref()).and_then(|(known, seen)| known.changed(seen)) {
                let _ = timeout(TAKEN_WITHIN, self.store.roots_taken()).await;
                due = Some(Due { what, failed: due.map_or(0, |due| due.failed), wait: FIRST_WAIT });
            }
            known = seen.or(known);
            if let Some(change) = due.take() {
                due = self.act(change).await;
            }
            let wait = due.as_ref().map(|due| due.wait);
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() {
                    // The store is gone only when the process ends.
                    return pending().await;
                },
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Nothing before there is something to connect with.
    fn look(&mut self) -> Option<Seen> {
        let view = self.view.borrow_and_update();
        let View::Open(secrets) = &*view else { return None };
        if !secrets.contains_key(CERTIFICATE) || !secrets.contains_key(ROOTS) {
            return None;
        }
        let contexts = || secrets.iter().filter(|(_, secret)| secret.is_anchors());
        let facts = contexts().flat_map(|(_, secret)| secret.facts());
        Some(Seen {
            identity: self.status.workloads().first().map(|workload| workload.renewal().identity),
            contexts: contexts().map(|(name, secret)| (name.clone(), secret.version().to_owned())).collect(),
            lists: facts.filter(|facts| facts.is_crl).map(|facts| facts.fingerprint).collect(),
        })
    }

    /// Does what is to be done; what is left of it when that fails.
    async fn act(&self, Due { what, failed, wait }: Due) -> Option<Due> {
        let outcome = match &self.action {
            OnChange::Signal(_) => {
                self.signal.notify_one();
                Ok(())
            }
            OnChange::Post(url) => post(url).await,
        };
        self.status.acted(clock::now(), outcome.clone());
        let Err(error) = outcome else {
            match failed {
                0 => info!("{what} changed: {}", self.action),
                _ => info!("{what} changed: {}, after {failed} failed attempts", self.action),
            }
            return None;
        };
        if failed > 0 {
            debug!("{} failed again: {error}", self.action);
            return Some(Due { what, failed: failed + 1, wait: (wait * 2).min(LONGEST_WAIT) });
        }
        warn!("{what} changed, but {} failed: {error}; open connections are left as they are; retrying", self.action);
        Some(Due { what, failed: 1, wait })
    }
}

impl Seen {
    /// What is another one now, if anything is. A context that somebody asks for first is none.
    fn changed(&self, now: &Self) -> Option<&'static str> {
        let other =
            |(name, version): &(String, String)| self.contexts.iter().any(|was| was.0 == *name && was.1 != *version);
        match () {
            () if self.identity != now.identity => Some("identity"),
            () if self.lists != now.lists && now.contexts.iter().any(other) => Some("revocation lists"),
            () if now.contexts.iter().any(other) => Some("trust anchors"),
            () => None,
        }
    }
}

/// Asks Envoy for something.
///
/// # Errors
/// What kept it from it, or its answer.
async fn post(url: &AdminUrl) -> Result<(), String> {
    let ask = async {
        match &url.address {
            AdminAddress::Tcp(address) => {
                #[expect(clippy::disallowed_methods, reason = "an address, not a name to look up")]
                let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
                post_on(Box::new(stream), &address.to_string(), &url.path).await
            }
            AdminAddress::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
                post_on(Box::new(stream), "localhost", &url.path).await
            }
        }
    };
    let late = |_| Err(format!("no answer within {} s", ANSWERED_WITHIN.as_secs()));
    timeout(ANSWERED_WITHIN, ask).await.unwrap_or_else(late)
}

/// The protocol is spoken here: hyper's client of HTTP/1 would take 50 KiB of the binary for this one request.
async fn post_on(mut stream: Box<dyn Stream>, host: &str, path: &str) -> Result<(), String> {
    /// More bytes than a status line has.
    const STATUS_LINE: usize = 256;
    let ask = async {
        let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let (mut answer, mut read) = ([0; STATUS_LINE], 0);
        while read < STATUS_LINE && !answer[..read].contains(&b'\n') {
            match stream.read(&mut answer[read..]).await? {
                0 => break,
                more => read += more,
            }
        }
        let line = answer[..read].split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok::<_, io::Error>(String::from_utf8_lossy(line).trim_end().to_owned())
    };
    let line = ask.await.map_err(|error| error.to_string())?;
    // RFC 9112, section 4.
    let mut words = line.splitn(3, ' ');
    match (words.next(), words.next()) {
        (Some("HTTP/1.0" | "HTTP/1.1"), Some(status)) if status.len() == 3 && status.starts_with('2') => Ok(()),
        _ if line.is_empty() => Err("closed without an answer".to_owned()),
        _ => Err(format!("the answer is {line:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(identity: &str, contexts: &[(&str, &str)], lists: &[u8]) -> Seen {
        let text = |text: &&str| (*text).to_owned();
        Seen {
            identity: Some(identity.to_owned()),
            contexts: contexts.iter().map(|(name, version)| (text(name), text(version))).collect(),
            lists: lists.iter().map(|byte| [*byte; 32]).collect(),
        }
    }

    #[test]
    fn a_change_is_recognised_by_its_parts() {
        let before = seen("a", &[("ROOTCA", "1")], &[1]);
        assert_eq!(before.changed(&before), None);
        assert_eq!(before.changed(&seen("b", &[("ROOTCA", "2")], &[1])), Some("identity"));
        assert_eq!(before.changed(&seen("a", &[("ROOTCA", "2")], &[1])), Some("trust anchors"));
        assert_eq!(before.changed(&seen("a", &[("ROOTCA", "2")], &[2])), Some("revocation lists"));
        assert_eq!(before.changed(&seen("a", &[("ROOTCA", "1"), ("file-root:x", "1")], &[1])), None);
    }
}
