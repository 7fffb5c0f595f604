use std::{fs, io, net::IpAddr, path::Path, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tracing::{error, info, warn};

use super::tls::Secured;
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
    Tls(Box<Secured>),
}

impl Accepted {
    /// Waits for the first byte, for which no buffer is needed.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
            // It had room for a handshake, so it has some for a portion.
            Self::Tls(_) => Ok(()),
        }
    }

    /// Reads into the room that `buffer` has.
    pub(super) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_buf(buffer).await,
            Self::Unix(stream) => stream.read_buf(buffer).await,
            Self::Tls(secured) => secured.read_buf(buffer).await,
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
            Self::Tls(secured) => Box::new(secured),
        }
    }

    /// The address of whoever came by the network.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip().to_canonical()),
            Self::Unix(_) | Self::Tls(_) => None,
        }
    }
}

impl Listener {
    /// Listens, as soon as the address is not somebody else's.
    pub(super) async fn listen(address: &AdminAddress, over_tls: bool, status: &Status) -> Self {
        let variable = if over_tls { "SDS_SHIM_ADMIN_TLS" } else { "SDS_SHIM_ADMIN" };
        let how = if over_tls { " over mutual TLS" } else { "" };
        let mut pauses = TAKEN.into_iter();
        let mut told = false;
        loop {
            let error = match Self::bind(address).await {
                Ok(listener) => {
                    status.admin_is(over_tls, None);
                    info!(%address, "serving health, metrics and status{how}");
                    if let AdminAddress::Tcp(address) = address
                        && !address.ip().is_loopback()
                        && !over_tls
                    {
                        warn!(%address, "exposing health, metrics and status to everyone who can reach this address");
                    }
                    return listener;
                }
                Err(error) => error,
            };
            let retry = format!("retrying every {} s", STILL_TAKEN.as_secs());
            let trouble = format!("{address}: probes and scrapes are NOT answered: {error}; {retry}");
            status.admin_is(over_tls, Some(trouble));
            let pause = pauses.next();
            if pause.is_none() && !told {
                told = true;
                error!(
                    %address,
                    "CANNOT serve health, metrics and status{how}: {error}; {retry}; SDS is not affected, but another \
                     process may answer probes on this address; set {variable} to use another one"
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
