//! Some way between a program and the CA: each byte arrives so much later. The kernel's own means, netem, is a module that
//! many kernels are built without.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use testkit::{Failure, OrFail};

/// It ends with this, its connections with their peers.
pub(super) struct Away {
    address: SocketAddr,
    end: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Away {
    /// A way to `server` that delays what goes along it, in each direction.
    pub(super) fn new(server: SocketAddr, delay: Duration) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").or_fail("listen")?;
        let address = listener.local_addr().or_fail("find the port")?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let accepting = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                // Who cannot be led on is let go.
                let _ = lead(client, server, delay);
            }
        });
        Ok(Self { address, end, accepting: Some(accepting) })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // It looks when somebody comes.
        if TcpStream::connect(self.address).is_ok()
            && let Some(accepting) = self.accepting.take()
        {
            let _ = accepting.join();
        }
    }
}

fn lead(client: TcpStream, server: SocketAddr, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    pass(client.try_clone()?, server.try_clone()?, delay);
    pass(server, client, delay);
    Ok(())
}

/// Passes on what comes, each part when its time has come.
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, parts) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut part = vec![0; 16 << 10];
        // The end of what is read ends the channel.
        while let Ok(read @ 1..) = from.read(&mut part) {
            if sender.send((Instant::now() + delay, part[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, part) in parts {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&part).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
