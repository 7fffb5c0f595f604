//! One question to one nameserver, over UDP, and over TCP where the answer does not fit.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::message::{self, Answer, Kind, Name};

/// Bytes that are read of an answer. The addresses that are kept, and the aliases before them, stand at its begin.
const READ: usize = 4096;
const FORMAT_ERROR: u8 = 1;
const NOT_IMPLEMENTED: u8 = 4;

/// One question.
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: Kind,
    pub(super) server: SocketAddr,
    pub(super) tcp_only: bool,
    /// For an answer, over UDP and over TCP each.
    pub(super) wait: Duration,
}

impl Question {
    /// Asks.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when nothing came in time, else what the kernel says.
    pub(super) async fn ask(&self) -> io::Result<Answer> {
        let mut buffer = vec![0; READ];
        let mut short = None;
        if !self.tcp_only {
            let mut answer = self.over_udp(&mut buffer, true).await?;
            if [FORMAT_ERROR, NOT_IMPLEMENTED].contains(&answer.code) {
                // An old server, which does not know of extensions.
                answer = self.over_udp(&mut buffer, false).await?;
            }
            if !answer.truncated {
                return Ok(answer);
            }
            short = Some(answer);
        }
        match (timeout(self.wait, self.over_tcp(&mut buffer)).await?, short) {
            // Policies for the network forget at times that DNS is TCP as well.
            (Err(_), Some(short)) if !short.addresses.is_empty() => Ok(short),
            (answer, _) => answer,
        }
    }

    async fn over_udp(&self, buffer: &mut [u8], extended: bool) -> io::Result<Answer> {
        let any =
            if self.server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        // A socket for each question, so that its port is as random as its id. Once it is connected, the kernel lets
        // nothing through that comes from elsewhere, and tells when nobody listens.
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(self.server).await?;
        let id = random()?;
        socket.send(&message::query(id, &self.name, self.kind, extended)).await?;
        let answered = async {
            loop {
                let length = socket.recv(buffer).await?;
                if let Some(answer) = message::answer(&buffer[..length], id, &self.name, self.kind) {
                    return Ok(answer);
                }
            }
        };
        timeout(self.wait, answered).await?
    }

    #[expect(clippy::disallowed_methods, reason = "the nameserver's address")]
    async fn over_tcp(&self, buffer: &mut [u8]) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(self.server).await?;
        let id = random()?;
        let query = message::query(id, &self.name, self.kind, false);
        let length = (query.len() as u16).to_be_bytes();
        stream.write_all(&[&length[..], &query].concat()).await?;
        let length = usize::from(stream.read_u16().await?).min(READ);
        stream.read_exact(&mut buffer[..length]).await?;
        let answer = message::answer(&buffer[..length], id, &self.name, self.kind);
        answer.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Not to be guessed.
pub(super) fn random() -> io::Result<u16> {
    let mut bytes = [0; 2];
    openssl::rand::rand_bytes(&mut bytes)?;
    Ok(u16::from_ne_bytes(bytes))
}
