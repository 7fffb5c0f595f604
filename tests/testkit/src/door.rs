//! An address in front of a server, from which the way there can be closed, lost or turned.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU8, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use crate::{Failure, OrFail, PATIENCE, POLL};

/// A loopback address that nobody else uses, so that nobody takes a port on it while its owner is away.
pub fn own_address() -> SocketAddr {
    static TAKEN: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = process::id().to_be_bytes();
    let network = 64 + TAKEN.fetch_add(1, Ordering::Relaxed) % 128;
    SocketAddr::from((Ipv4Addr::new(127, network, high, low.clamp(1, 254)), 0))
}

/// The address. Each change of the way cuts the connections that are open.
pub struct Door {
    address: SocketAddr,
    /// Keeps the port from those who listen on all addresses while the door is closed.
    _kept: TcpSocket,
    task: Option<JoinHandle<()>>,
}

/// What becomes of a connection.
#[derive(Clone, Copy)]
enum Way {
    To(SocketAddr),
    Nowhere,
}

impl Door {
    /// A door that leads to `server`.
    pub async fn to(server: SocketAddr) -> Result<Self, Failure> {
        Self::at(own_address(), server).await
    }

    /// The same at an address of the caller's choice.
    pub async fn at(address: SocketAddr, server: SocketAddr) -> Result<Self, Failure> {
        let kept = TcpSocket::new_v4().or_fail("make a socket")?;
        kept.set_reuseaddr(true).or_fail("share an address")?;
        kept.bind(address).or_fail(format!("take {address}"))?;
        let address = kept.local_addr().or_fail("read an address")?;
        let mut door = Self { address, _kept: kept, task: None };
        door.open(Way::To(server)).await?;
        Ok(door)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections lead to `server`.
    pub async fn lead_to(&mut self, server: SocketAddr) -> crate::Result {
        self.open(Way::To(server)).await
    }

    /// Connections are accepted, and nothing that is sent on them is read or answered.
    pub async fn lead_nowhere(&mut self) -> crate::Result {
        self.open(Way::Nowhere).await
    }

    /// Connections are refused.
    pub async fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // The error says that the task was aborted, which is what is awaited.
            let _aborted = task.await;
        }
    }

    async fn open(&mut self, way: Way) -> crate::Result {
        self.close().await;
        let listener = self.listen().await.or_fail(format!("listen on {}", self.address))?;
        self.task = Some(tokio::spawn(accept(listener, way)));
        Ok(())
    }

    /// A program that another test starts at this moment has a copy of the listener before, until it is executed.
    async fn listen(&self) -> io::Result<TcpListener> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match TcpListener::bind(self.address).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    sleep(POLL).await
                }
                listened => return listened,
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, way: Way) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(carry(stream, way));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut stream: TcpStream, way: Way) {
    let Way::To(server) = way else { return std::future::pending().await };
    let Ok(mut onward) = TcpStream::connect(server).await else { return };
    // Small frames both ways: waiting for more to send would only add delay.
    let _best_effort = stream.set_nodelay(true).and_then(|()| onward.set_nodelay(true));
    // How it ends is the two ends' matter.
    let _ended = copy_bidirectional(&mut stream, &mut onward).await;
}
