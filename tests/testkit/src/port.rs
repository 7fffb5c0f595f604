//! Ports that stay ours while nobody listens on them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::TcpSocket;

/// A loopback port that nobody else gets while this lives. An Envoy of our own user can listen on it, and another one
/// after its end, because Envoy's listeners share their ports (SO_REUSEPORT).
pub struct Reservation {
    port: u16,
    _socket: TcpSocket,
}

impl Reservation {
    /// Takes a free port.
    pub fn new() -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self { port: socket.local_addr()?.port(), _socket: socket })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}
