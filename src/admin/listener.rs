use std::{fs, io, path::Path, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tracing::{error, info, warn};

use crate::{
    config::AdminAddress,
    socket_file::{SocketFile, is_dead},
    status::Status,
    wire::Stream,
};

/// Pauses after an address that somebody else has: a predecessor that is about to end.
const TAKEN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Pause after the last of these. Whoever came first keeps the address no longer than it wants to.
const STILL_TAKEN: Duration = Duration::from_secs(15);

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

pub(super) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepted {
    /// Waits for the first byte, for which no buffer is needed.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    /// Reads into the room that `buffer` has.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_buf(buffer).await,
            Self::Unix(stream) => stream.read_buf(buffer).await,
        }
    }

    /// Whether a browser could have been led here.
    pub(super) fn is_network(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    pub(super) fn into_stream(self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

impl Listener {
    /// Listens, as soon as the address is not somebody else's.
    pub(super) async fn listen(address: &AdminAddress, status: &Status) -> Self {
        let mut pauses = TAKEN.into_iter();
        let mut told = false;
        loop {
            let error = match Self::bind(address).await {
                Ok(listener) => {
                    status.admin_is(None);
                    info!(%address, "serving health, metrics and status");
                    if let AdminAddress::Tcp(address) = address
                        && !address.ip().is_loopback()
                    {
                        warn!(%address, "exposing health, metrics and status to everyone who can reach this address");
                    }
                    return listener;
                }
                Err(error) => error,
            };
            let retry = format!("retrying every {} s", STILL_TAKEN.as_secs());
            status.admin_is(Some(format!("{address}: probes and scrapes are NOT answered: {error}; {retry}")));
            let pause = pauses.next();
            if pause.is_none() && !told {
                told = true;
                error!(
                    %address,
                    "CANNOT serve health, metrics and status: {error}; {retry}; SDS is not affected, but another \
                     process may answer probes on this address; set SDS_SHIM_ADMIN to use another one"
                );
            }
            tokio::time::sleep(pause.unwrap_or(STILL_TAKEN)).await;
        }
    }

    async fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            AdminAddress::Unix(path) => {
                remove_stale(path).await?;
                Ok(Self::Unix(UnixListener::bind(path)?, SocketFile::at(path)?))
            }
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Self::Tcp(listener) => Accepted::Tcp(listener.accept().await?.0),
            Self::Unix(listener, ..) => Accepted::Unix(listener.accept().await?.0),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, file) = self {
            file.remove();
        }
    }
}

/// A socket that nobody serves any more is in the way; anything else is left alone.
async fn remove_stale(path: &Path) -> io::Result<()> {
    if is_dead(path, &UnixStream::connect(path).await) { fs::remove_file(path) } else { Ok(()) }
}
