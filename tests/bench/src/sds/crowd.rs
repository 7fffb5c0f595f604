use std::{io, path::Path, thread, time::Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use testkit::{Failure, OrFail, PATIENCE};

use super::connection::Connection;
use crate::agent::Running;

/// Streams of one connection where there are many: what a sidecar with several workers has, and what the shim's limits
/// have room for.
const STREAMS_OF_ONE: usize = 12;

/// Connections with open streams.
pub(crate) struct Crowd {
    epoll: Epoll,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    /// When the socket accepted the first connection.
    pub(crate) accepted: Instant,
}

/// One answer to each stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// When the first stream had it.
    pub(crate) first: Instant,
    /// When the last stream had it.
    pub(crate) last: Instant,
}

impl Crowd {
    /// Waits for the socket, opens this many streams, and waits for the first answer of each.
    pub(crate) fn open(running: &mut Running, streams: usize) -> Result<(Self, Round), Failure> {
        Self::ask(running, &vec!["default"; streams])
    }

    /// The same, for these secrets, a stream each.
    pub(crate) fn ask(running: &mut Running, names: &[&'static str]) -> Result<(Self, Round), Failure> {
        let first = connect(running)?;
        Self::with(first, &running.socket(), names).map_err(|failure| running.explain(failure))
    }

    /// The same at a socket that accepts.
    pub(super) fn on(socket: &Path, names: &[&'static str]) -> Result<(Self, Round), Failure> {
        Self::with(Connection::open(socket).or_fail("connect")?, socket, names)
    }

    fn with(first: Connection, socket: &Path, names: &[&'static str]) -> Result<(Self, Round), Failure> {
        let accepted = Instant::now();
        let mut parts = names.chunks(STREAMS_OF_ONE);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_fail("make an epoll")?;
        let mut crowd = Self { epoll, connections: Vec::new(), buffer: Vec::new(), accepted };
        crowd.add(first, parts.next().unwrap_or_default())?;
        for part in parts {
            crowd.add(Connection::open(socket).or_fail("connect once more")?, part)?;
        }
        let round = crowd.round()?;
        Ok((crowd, round))
    }

    /// Waits until each stream has got one more answer, and acknowledges them all then.
    pub(crate) fn round(&mut self) -> Result<Round, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut waiting: Vec<Vec<bool>> = self.connections.iter().map(|one| vec![true; one.streams()]).collect();
        let mut left: usize = waiting.iter().map(Vec::len).sum();
        let mut round: Option<Round> = None;
        let mut events = vec![EpollEvent::empty(); self.connections.len().max(1)];
        while left > 0 {
            let time = deadline.saturating_duration_since(Instant::now());
            let time = EpollTimeout::try_from(time).unwrap_or(EpollTimeout::ZERO);
            let ready = self.epoll.wait(&mut events, time).or_fail("wait for answers")?;
            if ready == 0 {
                return Err(Failure::new(format!("{left} streams had no answer within {PATIENCE:?}")));
            }
            for event in &events[..ready] {
                let place = event.data() as usize;
                let arrived = |stream: usize, now: Instant| {
                    if std::mem::take(&mut waiting[place][stream]) {
                        left -= 1;
                    }
                    round = Some(Round { first: round.map_or(now, |round| round.first), last: now });
                };
                self.connections[place].read(&mut self.buffer, arrived).or_fail("read answers")?;
            }
        }
        for connection in &mut self.connections {
            connection.acknowledge().or_fail("acknowledge")?;
        }
        round.ok_or_else(|| Failure::new("there is no stream"))
    }

    fn add(&mut self, mut connection: Connection, names: &[&'static str]) -> Result<(), Failure> {
        connection.ask(names).or_fail("ask for secrets")?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.connections.len() as u64);
        self.epoll.add(&connection, event).or_fail("watch a connection")?;
        self.connections.push(connection);
        Ok(())
    }
}

/// Connects as soon as the socket accepts.
pub(super) fn connect(running: &mut Running) -> Result<Connection, Failure> {
    let (socket, deadline) = (running.socket(), Instant::now() + PATIENCE);
    loop {
        match Connection::open(&socket) {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > deadline || !not_yet(&error) || running.ended() => {
                return Err(running.explain(Failure::new(format!("{} is of no use: {error}", socket.display()))));
            }
            Err(_) => thread::sleep(running.look),
        }
    }
}

fn not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
