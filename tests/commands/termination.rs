//! The end: whatever the shim is busy with, SIGTERM and SIGINT end it at once, with code 0 and no socket left behind.

use std::{error::Error, io::ErrorKind, net::Ipv4Addr, time::Duration};

use nix::sys::signal::Signal;
use testkit::{
    Failure, OrFail, PATIENCE,
    development_ca::Fault,
    fixture::{Open, Site, renew, within},
    nameserver::{Nameserver, Says, with_files},
    sds::{self, Closed},
    shim::{Shim, ShimBuilder},
};
use tokio::{
    net::{TcpListener, UnixStream},
    time::{Instant, timeout},
};

const SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// The promise is one second. A loaded machine may be late by as much again and more; what waits for something that
/// does not come is later than this.
const LIMIT: Duration = Duration::from_secs(5);

/// Longer than the kit's patience: whoever waits for such a call is found out.
const CA_TIMEOUT: &str = "10m";

/// Signals the shim and expects the end that was promised.
async fn expect_end(shim: &mut Shim, signal: Signal, busy: &str) -> testkit::Result {
    assert!(shim.socket().exists(), "{busy}: there is no socket before the end");
    let start = Instant::now();
    shim.signal(signal)?;
    let status = shim.wait_exit().await?;
    let span = start.elapsed();
    println!("{signal} {busy}: the end after {:.1} ms", span.as_secs_f64() * 1000.0);
    if status.code() == Some(0) && !shim.socket().exists() && span < LIMIT {
        return Ok(());
    }
    let left = if shim.socket().exists() { "its socket is left" } else { "its socket is gone" };
    Err(shim.failure(format!("{signal} {busy}: {status} after {span:?}, and {left}")))
}

/// The stream goes down with its connection: nothing was answered on it, no status either.
async fn expect_cut(mut stream: Open, shim: &Shim) -> testkit::Result {
    match stream.expect_closed(shim).await? {
        // A status that the client made up itself has the broken connection as its source.
        Closed::Status(status) if status.source().is_some() => Ok(()),
        // So does one whose connection was gone before the request had left; it has no source.
        Closed::Status(status) if status.message().starts_with("Service was not ready: ") => Ok(()),
        closed => Err(shim.failure(format!("the end of the process was answered on the stream: {closed}"))),
    }
}

/// A shim that holds its certificate, and two streams on connections of their own.
async fn serving(shim: ShimBuilder) -> Result<(Shim, [Open; 2]), Failure> {
    let mut shim = shim.env("SDS_SHIM_CA_TIMEOUT", CA_TIMEOUT).env("SDS_SHIM_CA_ANSWER_TIMEOUT", CA_TIMEOUT).start()?;
    let mut streams = [Open::connect(&mut shim, "default").await?, Open::connect(&mut shim, "ROOTCA").await?];
    for stream in &mut streams {
        stream.next(&shim).await?;
    }
    Ok((shim, streams))
}

#[tokio::test]
async fn while_it_is_idle_open_streams_are_cut_and_not_answered() -> testkit::Result {
    for signal in SIGNALS {
        let scene = Site::new().await?;
        let (mut shim, mut streams) = serving(scene.shim()).await?;
        for stream in &mut streams {
            stream.expect_silence(&shim).await?;
        }
        expect_end(&mut shim, signal, "while idle").await?;
        for stream in streams {
            expect_cut(stream, &shim).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn while_the_first_call_to_the_ca_hangs() -> testkit::Result {
    for signal in SIGNALS {
        let scene = Site::new().await?;
        scene.ca.set_fault(Some(Fault::Hang));
        let mut shim = scene
            .shim()
            .env("SDS_SHIM_CA_TIMEOUT", CA_TIMEOUT)
            .env("SDS_SHIM_CA_ANSWER_TIMEOUT", CA_TIMEOUT)
            .start()?;
        within(&shim, "a call", scene.ca.wait_for_calls(1)).await?;
        let waiting = Open::connect(&mut shim, "default").await?;
        expect_end(&mut shim, signal, "while the first call hangs").await?;
        expect_cut(waiting, &shim).await?;
    }
    Ok(())
}

#[tokio::test]
async fn while_a_renewal_hangs() -> testkit::Result {
    for signal in SIGNALS {
        let scene = Site::new().await?;
        let (mut shim, streams) = serving(scene.shim()).await?;
        scene.ca.set_fault(Some(Fault::Hang));
        renew(&shim)?;
        within(&shim, "a call", scene.ca.wait_for_calls(2)).await?;
        expect_end(&mut shim, signal, "while a renewal hangs").await?;
        for stream in streams {
            expect_cut(stream, &shim).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn while_the_ca_accepts_and_says_nothing() -> testkit::Result {
    for signal in SIGNALS {
        let scene = Site::new().await?;
        let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.or_fail("bind a mute CA")?;
        let address = mute.local_addr().or_fail("bind a mute CA")?;
        let shim = scene.shim().env("CA_ADDR", format!("localhost:{}", address.port()));
        let mut shim =
            shim.env("SDS_SHIM_CA_TIMEOUT", CA_TIMEOUT).env("SDS_SHIM_CA_ANSWER_TIMEOUT", CA_TIMEOUT).start()?;
        let handshake = within(&shim, "a connection to the CA", mute.accept()).await?.or_fail("accept")?;
        expect_end(&mut shim, signal, "in a TLS handshake that hangs").await?;
        drop(handshake);
    }
    Ok(())
}

/// A mount namespace gives the shim a nameserver of its own, which takes root.
#[tokio::test]
async fn while_a_name_look_up_hangs() -> testkit::Result {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("REQUIRE_ROOT").is_none(), "REQUIRE_ROOT is set, and we are not root");
    if !root {
        eprintln!("not checked: a resolver that hangs can be set up only as root");
        return Ok(());
    }
    for signal in SIGNALS {
        let scene = Site::new().await?;
        let nameserver = Nameserver::start(|_| Says::Nothing).await?;
        // Far beyond every limit here, so that only an end that does not wait for the look-up is in time.
        let configuration = format!("nameserver {}\noptions timeout:30 attempts:5\n", nameserver.address());
        let launcher = with_files(scene.workload.path(), &[("resolv.conf", &configuration)])?;
        let launcher: Vec<_> = launcher.iter().map(String::as_str).collect();
        let shim = scene.shim().through(&launcher);
        let shim = shim
            .env("CA_ADDR", "ca.example.test:15012")
            .env("SDS_SHIM_CA_TIMEOUT", CA_TIMEOUT)
            .env("SDS_SHIM_CA_ANSWER_TIMEOUT", CA_TIMEOUT);
        let mut shim = shim.start()?;
        within(&shim, "a query to the nameserver", nameserver.wait_for(1)).await?;
        assert!(nameserver.asked()[0].name.starts_with("ca.example.test"), "the query is not for the CA's name");
        let waiting = Open::connect(&mut shim, "default").await?;
        expect_end(&mut shim, signal, "while a name look-up hangs").await?;
        expect_cut(waiting, &shim).await?;
    }
    Ok(())
}

#[tokio::test]
async fn with_clients_that_do_not_read() -> testkit::Result {
    /// With the two that do read, as many as there may be.
    const DEAF: usize = 14;
    for signal in SIGNALS {
        let scene = Site::new().await?;
        let (mut shim, [mut default, root]) = serving(scene.shim()).await?;
        let mut deaf = Vec::new();
        for _ in 0..DEAF {
            let client = sds::raw(shim.socket()).await?;
            clog(&client).await.map_err(|failure| shim.explain(failure))?;
            deaf.push(client);
        }
        // Those who read are served all the same.
        renew(&shim)?;
        default.next(&shim).await?;
        expect_end(&mut shim, signal, "with clients that do not read").await?;
        expect_cut(default, &shim).await?;
        expect_cut(root, &shim).await?;
    }
    Ok(())
}

/// Sends PINGs and reads no answer, until the shim, which can write no more, reads no more either.
async fn clog(client: &UnixStream) -> testkit::Result {
    /// Many a round of the shim's: it had its chance to read.
    const STUCK: Duration = Duration::from_millis(100);
    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if timeout(STUCK, client.writable()).await.is_err() {
            return Ok(());
        }
        match client.try_write(&bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).or_fail("write PINGs"),
        }
        if bytes.len() < PING.len() {
            bytes.extend(PING.repeat(4096));
        }
    }
    Err(Failure::new("the shim reads on although nobody takes its answers"))
}
