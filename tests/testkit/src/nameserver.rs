//! A nameserver that says what a test wants, over UDP and TCP, on port 53 of a loopback address of its own; and the
//! files that lead a shim to it. Needs root.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::{Failure, OrFail, door::own_address};

/// The longest answer over UDP.
const UDP_SIZE: usize = 1232;

/// What it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name, without a dot at its end.
    pub name: String,
    /// Whether IPv6 addresses are wanted.
    pub six: bool,
    /// Whether it came over TCP.
    pub tcp: bool,
}

/// What it says.
#[derive(Clone, Debug)]
pub enum Says {
    /// Nothing.
    Nothing,
    /// An error code: 2 is SERVFAIL, 3 is NXDOMAIN.
    Code(u8),
    /// These addresses, as far as they are of the kind that was asked for.
    Addresses(Vec<IpAddr>),
}

type Script = dyn Fn(&Asked) -> Says + Send + Sync;

/// What it does, and what it was asked so far.
struct Desk {
    script: Box<Script>,
    asked: Mutex<Vec<Asked>>,
    progress: Notify,
}

/// The nameserver; it ends when it is dropped.
pub struct Nameserver {
    address: Ipv4Addr,
    desk: Arc<Desk>,
    task: JoinHandle<()>,
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Nameserver {
    /// A nameserver on a loopback address of its own that answers as `script` says.
    pub async fn start(script: impl Fn(&Asked) -> Says + Send + Sync + 'static) -> Result<Self, Failure> {
        let address = match own_address().ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => return Err(Failure::new(format!("{address} is not an IPv4 address"))),
        };
        let udp = UdpSocket::bind((address, 53)).await.or_fail(format!("bind UDP port 53 of {address}"))?;
        let tcp = TcpListener::bind((address, 53)).await.or_fail(format!("bind TCP port 53 of {address}"))?;
        let desk = Arc::new(Desk { script: Box::new(script), asked: Mutex::default(), progress: Notify::new() });
        let task = tokio::spawn(serve(udp, tcp, Arc::clone(&desk)));
        Ok(Self { address, desk, task })
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.desk.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns once it was asked so many questions.
    pub async fn wait_for(&self, count: usize) {
        loop {
            let progress = self.desk.progress.notified();
            if self.asked().len() >= count {
                return;
            }
            progress.await;
        }
    }
}

async fn serve(udp: UdpSocket, tcp: TcpListener, desk: Arc<Desk>) {
    let (mut query, mut streams) = ([0; 512], JoinSet::new());
    loop {
        tokio::select! {
            Ok((length, from)) = udp.recv_from(&mut query) => {
                if let Some(answer) = desk.answer(&query[..length], false) {
                    // Whoever has gone away does not get it.
                    drop(udp.send_to(&answer, from).await);
                }
            }
            Ok((stream, _)) = tcp.accept() => {
                streams.spawn(over_tcp(stream, Arc::clone(&desk)));
            }
        }
    }
}

async fn over_tcp(mut stream: TcpStream, desk: Arc<Desk>) -> Option<()> {
    loop {
        let mut query = vec![0; stream.read_u16().await.ok()?.into()];
        stream.read_exact(&mut query).await.ok()?;
        let Some(answer) = desk.answer(&query, true) else { continue };
        stream.write_u16(answer.len() as u16).await.ok()?;
        stream.write_all(&answer).await.ok()?;
    }
}

impl Desk {
    fn answer(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let (mut labels, mut at) = (Vec::new(), 12);
        while let length @ 1.. = usize::from(*query.get(at)?) {
            labels.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + length)?));
            at += 1 + length;
        }
        let six = query.get(at + 2)? == &28;
        let question = query.get(12..at + 5)?;
        let asked = Asked { name: labels.join("."), six, tcp };
        let says = (self.script)(&asked);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        self.progress.notify_waiters();
        let (code, addresses) = match says {
            Says::Nothing => return None,
            Says::Code(code) => (code, Vec::new()),
            Says::Addresses(addresses) => (0, addresses),
        };
        let records: Vec<_> = addresses.iter().filter(|address| address.is_ipv6() == six).map(record).collect();
        let (length, count) = (records.iter().map(Vec::len).sum::<usize>(), (records.len() as u16).to_be_bytes());
        let header = |truncated: u8, [high, low]: [u8; 2]| {
            [&query[..2], &[0x81 | truncated, 0x80 | code, 0, 1, high, low, 0, 0, 0, 0], question].concat()
        };
        if !tcp && length > UDP_SIZE {
            return Some(header(2, [0, 0]));
        }
        Some([header(0, count), records.concat()].concat())
    }
}

fn record(address: &IpAddr) -> Vec<u8> {
    let (kind, data) = match address {
        IpAddr::V4(address) => (1, address.octets().to_vec()),
        IpAddr::V6(address) => (28, address.octets().to_vec()),
    };
    [&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0, data.len() as u8], &data[..]].concat()
}

/// What starts a program with these files of `directory` in place of those in `/etc`, seen by nobody else.
pub fn with_files(directory: &Path, files: &[(&str, &str)]) -> Result<[String; 5], Failure> {
    let mut script = String::new();
    for (name, content) in files {
        let file = directory.join(name);
        std::fs::write(&file, content).or_fail(format!("write {}", file.display()))?;
        script += &format!("mount --bind {name} /etc/{name} && ");
    }
    let words = ["unshare", "--mount", "sh", "-c"].map(str::to_owned);
    let [unshare, mount, sh, c] = words;
    Ok([unshare, mount, sh, c, script + "exec \"$0\" \"$@\""])
}

/// A listener that takes no connection: what is sent to it is dropped, as behind a firewall.
pub struct Silent {
    _listener: TcpListener,
    _waiting: JoinSet<()>,
}

impl Silent {
    /// Listens there.
    pub async fn on(address: SocketAddr) -> Result<Self, Failure> {
        let socket = tokio::net::TcpSocket::new_v4().or_fail("open a socket")?;
        socket.bind(address).or_fail(format!("bind {address}"))?;
        let listener = socket.listen(0).or_fail(format!("listen on {address}"))?;
        // The one that is accepted by the kernel fills the queue; the others are dropped and tried again for ever.
        TcpStream::connect(address).await.map(std::mem::forget).or_fail("fill the queue")?;
        let mut waiting = JoinSet::new();
        waiting.spawn(async move { drop(TcpStream::connect(address).await) });
        Ok(Self { _listener: listener, _waiting: waiting })
    }
}
