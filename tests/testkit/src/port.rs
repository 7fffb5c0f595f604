//! Ports of our own.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
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

/// A port that is free on all addresses now, for a program that shares it with nobody and so can take none that we
/// hold. It is outside of the range from which the kernel gives ports away, so that only our like could take it.
pub fn unshared() -> io::Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16;
    for _ in 0..COUNT {
        // Each process begins somewhere else and never takes one twice.
        let port = FIRST + start.wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}
