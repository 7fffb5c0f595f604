use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
    time::Duration,
};

use testkit::{
    Failure, OrFail, POLL,
    fixture::{names, serial},
    sds,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::subject::{Implementation, LIFE, QUIET, Setup, Subject};

/// The socket's directory in the pod.
const DIRECTORY: &str = "var/run/secrets/workload-spiffe-uds";

pub(super) async fn answers_before_a_certificate(of: Implementation) -> testkit::Result {
    let subject = Setup::without_token(of).await?.start().await?;
    let mut raw = sds::raw(&subject.site.workload.socket()).await?;
    // The client's preface and an empty SETTINGS frame (RFC 9113, section 3.4).
    raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.or_fail("write a preface")?;
    let mut head = [0; 9];
    timeout(Duration::from_secs(1), raw.read_exact(&mut head)).await.or_fail("wait a second")?.or_fail("read")?;
    assert_eq!(head[3], 4, "the first frame is not SETTINGS");
    Ok(())
}

pub(super) async fn is_named_by_the_variable(of: Implementation) -> testkit::Result {
    let path = "./var/run/secrets/workload-spiffe-uds/other";
    let setup = Setup::new(of).await?.env("WORKLOAD_IDENTITY_SOCKET_FILE", "other").socket(path);
    // Istio's agent takes another name only for a socket that somebody else serves.
    let subject = setup.start().await?;
    subject.ask(&["default"]).await.map(drop)
}

pub(super) async fn is_for_its_user_alone(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mode = fs::metadata(subject.site.workload.socket()).or_fail("look at the socket")?.permissions().mode();
    assert_eq!(format!("{:04o}", mode & 0o7777), "0600");
    Ok(())
}

/// Puts a socket at `path` that nobody serves, in place of what is there.
fn dead_socket(path: &Path) -> testkit::Result {
    let directory = path.parent().unwrap_or(path);
    let opened = fs::File::open(directory).or_fail("open the socket's directory")?;
    // Named through the descriptor: a socket's address has room for little more than a hundred bytes.
    let name = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join("dead");
    drop(UnixListener::bind(name).or_fail("bind a socket")?);
    fs::rename(directory.join("dead"), path).or_fail("put the socket in place")
}

pub(super) async fn stale_one_is_replaced(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?;
    dead_socket(&setup.site.workload.socket())?;
    setup.start().await?.ask(&["default"]).await.map(drop)
}

pub(super) async fn spares_a_file(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?;
    let path = setup.site.workload.socket();
    fs::write(&path, "somebody's").or_fail("write a file")?;
    let mut server = setup.launch()?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while server.process().exited().is_none() && path.is_file() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
    }
    assert_eq!(fs::read(&path).ok().as_deref(), Some(&b"somebody's"[..]), "the file is gone");
    Ok(())
}

pub(super) async fn bears_sixteen_connections(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut held = Vec::new();
    for _ in 0..15 {
        let client = subject.reconnect().await?;
        let mut stream = client.stream();
        stream.send(sds::request(&["default"]));
        assert_eq!(names(&stream.recv().await?)?, ["default"]);
        held.push((client, stream));
    }
    Ok(())
}

/// What a disturbance leaves open.
type Left = Result<Option<UnixStream>, Failure>;

/// Whether a stream that was open before the disturbance gets its next rotation.
async fn undisturbed(of: Implementation, disturb: impl AsyncFnOnce(&Subject) -> Left) -> testkit::Result {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (mut stream, first) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&first, &["default"]));
    let _left = disturb(&subject).await?;
    assert_ne!(serial(&stream.recv_within(LIFE).await?)?, serial(&first)?);
    Ok(())
}

pub(super) async fn survives_garbage(of: Implementation) -> testkit::Result {
    undisturbed(of, async |subject| {
        for garbage in [&[0xff_u8; 4096][..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff", &[0; 100]] {
            let mut raw = sds::raw(&subject.site.workload.socket()).await?;
            // It may be closed before all is written.
            drop(raw.write_all(garbage).await);
            let mut answer = Vec::new();
            drop(timeout(QUIET, raw.read_to_end(&mut answer)).await);
        }
        Ok(None)
    })
    .await
}

pub(super) async fn survives_http1(of: Implementation) -> testkit::Result {
    undisturbed(of, async |subject| {
        let mut raw = sds::raw(&subject.site.workload.socket()).await?;
        raw.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.or_fail("write a request")?;
        let mut answer = Vec::new();
        drop(timeout(QUIET, raw.read_to_end(&mut answer)).await);
        Ok(None)
    })
    .await
}

pub(super) async fn survives_a_client_that_never_reads(of: Implementation) -> testkit::Result {
    undisturbed(of, async |subject| {
        let mut raw = sds::raw(&subject.site.workload.socket()).await?;
        raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.or_fail("write a preface")?;
        // PINGs whose answers nobody takes.
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat().repeat(64);
        for _ in 0..256 {
            if !matches!(timeout(QUIET / 10, raw.write_all(&ping)).await, Ok(Ok(()))) {
                break;
            }
        }
        Ok(Some(raw))
    })
    .await
}

pub(super) async fn survives_a_long_name(of: Implementation) -> testkit::Result {
    undisturbed(of, async |subject| {
        let mut stream = subject.client.stream();
        stream.send(sds::request(&[&*"x".repeat(60_000)]));
        drop(stream.recv_within(QUIET).await);
        Ok(None)
    })
    .await
}

pub(super) async fn bears_a_hundred_streams(of: Implementation) -> testkit::Result {
    let subject = Subject::new(of).await?;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(subject.ask(&["default"]).await?.0);
    }
    Ok(())
}

pub(super) async fn goes_away_at_the_end(of: Implementation) -> testkit::Result {
    let mut subject = Subject::new(of).await?;
    let path = subject.site.workload.socket();
    subject.server.process().terminate().await?;
    assert!(!path.exists(), "it is still there");
    Ok(())
}

pub(super) async fn leaves_a_successors_socket(of: Implementation) -> testkit::Result {
    let mut subject = Subject::new(of).await?;
    let path = subject.site.workload.socket();
    // As a successor does it that takes the path over at once.
    dead_socket(&path)?;
    subject.server.process().terminate().await?;
    assert!(path.exists(), "it was removed");
    Ok(())
}

pub(super) async fn ends_when_it_cannot_listen(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?;
    let directory = setup.site.workload.path().join(DIRECTORY);
    fs::remove_dir_all(&directory).or_fail("remove the socket's directory")?;
    fs::write(&directory, "in the way").or_fail("put a file there")?;
    let mut server = setup.launch()?;
    let status = timeout(Duration::from_secs(10), server.process().wait_exit()).await.or_fail("wait for its end")??;
    assert!(!status.success(), "{status}");
    Ok(())
}
