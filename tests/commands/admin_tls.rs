//! The admin endpoints over mutual TLS: who is let in, who is not and how that is told, what is presented and trusted when
//! it changes, and that those who only knock take little.

use std::time::Duration;

use nix::sys::signal::Signal;
use openssl::{
    ssl::{SslContext, SslMethod, SslVersion},
    x509::X509,
};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{CaOptions, Issued, Leaf, Pki},
    fixture::{Logged, Open, Site, write},
    http::{self, Answer},
    port,
    shim::ShimBuilder,
    tls,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

const PROMETHEUS: &str = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
const STRANGER: &str = "spiffe://cluster.local/ns/foo/sa/httpbin";

/// A shim that serves Prometheus over mutual TLS.
struct Scene {
    shim: Logged,
    site: Site,
    port: u16,
    root: String,
}

impl Scene {
    async fn start(site: Site, edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        let port = port::unshared().or_fail("find a port")?;
        let shim = site.shim().env("SDS_SHIM_ADMIN_TLS", format!("127.0.0.1:{port}"));
        let shim = Logged(edit(shim.env("SDS_SHIM_ADMIN_TLS_CLIENTS", PROMETHEUS)).start()?);
        shim.wait_for_log("serving health, metrics and status over mutual TLS").await?;
        let root = site.pki.root_pem();
        Ok(Self { shim, site, port, root })
    }

    /// The same, with a certificate.
    async fn ready(edit: impl FnOnce(ShimBuilder) -> ShimBuilder) -> Result<Self, Failure> {
        let scene = Self::start(Site::new().await?, edit).await?;
        scene.shim.wait_for_log("certificate issued").await?;
        Ok(scene)
    }

    fn issue(&self, id: &str) -> Issued {
        self.site.pki.issue(&Leaf::workload(id, Duration::from_secs(3600)))
    }

    async fn connect(&self) -> Result<TcpStream, Failure> {
        TcpStream::connect(("127.0.0.1", self.port)).await.or_fail("connect")
    }

    /// What `path` says to whoever presents this, and the certificate that was presented to it.
    async fn get(&self, certificate: Option<&Issued>, path: &str) -> Result<(Answer, String), Failure> {
        let asked = async {
            let stream = tls::connect(self.connect().await?, &self.root, certificate).await?;
            let leaf = stream.ssl().peer_certificate().ok_or_else(|| Failure::new("no certificate"))?;
            let serial = tls::serial(&leaf)?;
            // A name that is no address: nobody is led here who can present a certificate.
            Ok((http::get(stream, "sleep.foo.svc", path).await?, serial))
        };
        timeout(PATIENCE, asked).await.or_fail("wait for the answer")?
    }

    /// It is not let in, and the log says so.
    async fn refuses(&self, certificate: Option<&Issued>, said: &str) -> testkit::Result {
        if let Ok((answer, _)) = self.get(certificate, "/metrics").await {
            return Err(self.shim.failure(format!("answered {} {}", answer.status, answer.text())));
        }
        self.told(said).await
    }

    async fn told(&self, said: &str) -> testkit::Result {
        let line = self.shim.wait_for_log(said).await?;
        assert!(line.contains("refused a client of SDS_SHIM_ADMIN_TLS: ") && line.contains("127.0.0.1"), "{line}");
        Ok(())
    }

    async fn lets_in(&self, certificate: &Issued) -> Result<String, Failure> {
        let (answer, serial) =
            self.get(Some(certificate), "/metrics").await.map_err(|error| self.shim.explain(error))?;
        assert!(answer.status == 200 && answer.text().contains("sds_shim_ready 1"), "{}", answer.text());
        Ok(serial)
    }
}

fn refusals(scene: &Scene) -> Vec<String> {
    scene.shim.log().lines().into_iter().filter(|line| line.contains("refused a client")).collect()
}

#[tokio::test]
async fn only_named_clients_read_the_pages() -> testkit::Result {
    let scene = Scene::ready(|shim| shim).await?;
    let prometheus = scene.issue(PROMETHEUS);
    for (path, expected) in
        [("/livez", "ok"), ("/readyz", "ok"), ("/status", "\"ready\":true"), ("/metrics", "sds_shim_ready 1")]
    {
        let (answer, _) = scene.get(Some(&prometheus), path).await?;
        assert!(answer.status == 200 && answer.text().contains(expected), "{path}: {}", answer.text());
    }
    // Whom the mesh knows is told what is missing; whom it does not know is not told anything.
    for _ in 0..3 {
        let (answer, _) = scene.get(Some(&scene.issue(STRANGER)), "/metrics").await?;
        let expected = format!("{STRANGER} is not in SDS_SHIM_ADMIN_TLS_CLIENTS; add it there to let it in\n");
        assert_eq!((answer.status, answer.text()), (403, expected));
    }
    scene.told(STRANGER).await?;
    assert_eq!(refusals(&scene).len(), 1, "told once: {:?}", refusals(&scene));
    scene.refuses(None, "it presented no client certificate").await?;
    let foreign = Pki::new("foreign").issue(&Leaf::workload(PROMETHEUS, Duration::from_secs(3600)));
    scene.refuses(Some(&foreign), &format!("it claims to be {PROMETHEUS}, but its certificate was rejected")).await?;
    let nobody = scene.site.pki.issue(&Leaf { client_auth: true, ..Leaf::server(&["prometheus.monitoring.svc"]) });
    scene.refuses(Some(&nobody), "carries no SPIFFE ID").await?;
    let two = Leaf { uri: vec![PROMETHEUS.to_owned(), STRANGER.to_owned()], ..Leaf::workload(PROMETHEUS, PATIENCE) };
    scene.refuses(Some(&scene.site.pki.issue(&two)), "more than one URI").await?;
    let server = Leaf { client_auth: false, ..Leaf::workload(PROMETHEUS, Duration::from_secs(3600)) };
    scene.refuses(Some(&scene.site.pki.issue(&server)), "unsuitable certificate purpose").await?;
    let ended = Leaf { not_after: -10, ..Leaf::workload(PROMETHEUS, PATIENCE) };
    scene.refuses(Some(&scene.site.pki.issue(&ended)), "certificate has expired").await?;
    scene.lets_in(&prometheus).await?;
    assert_eq!(refusals(&scene).len(), 7, "{:?}", refusals(&scene));
    Ok(())
}

/// With TLS 1.3 a client is through its handshake before its certificate is judged: it may send its request, and finds the
/// alert in place of an answer. A connection that is reset would fail it before it reads.
#[tokio::test]
async fn a_client_that_is_refused_while_it_writes_reads_the_alert() -> testkit::Result {
    /// `SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED`.
    const CERTIFICATE_REQUIRED: i32 = 1116;
    let scene = Scene::ready(|shim| shim).await?;
    for _ in 0..5 {
        let mut stream = tls::connect(scene.connect().await?, &scene.root, None).await?;
        assert_eq!(stream.ssl().version_str(), "TLSv1.3");
        // The session tickets that would come before it are not issued, so that this is the alert.
        let tcp = stream.get_ref();
        timeout(PATIENCE, tcp.peek(&mut [0])).await.or_fail("wait for the alert")?.or_fail("look at it")?;
        for _ in 0..3 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.or_fail("write a request")?;
            stream.flush().await.or_fail("write a request")?;
        }
        let error = timeout(PATIENCE, stream.read(&mut [0])).await.or_fail("wait for the alert")?.unwrap_err();
        let error = error.into_inner().and_then(|inner| inner.downcast::<openssl::ssl::Error>().ok());
        let stack = error.as_ref().and_then(|error| error.ssl_error()).ok_or_else(|| Failure::new("no alert"))?;
        let reasons: Vec<_> = stack.errors().iter().map(|one| one.reason_code()).collect();
        assert_eq!(reasons, [CERTIFICATE_REQUIRED], "{stack}");
    }
    scene.told("it presented no client certificate").await
}

#[tokio::test]
async fn tls_1_2_works_and_non_tls_and_oversized_input_is_rejected() -> testkit::Result {
    let scene = Scene::ready(|shim| shim).await?;
    let plain = http::get(scene.connect().await?, "127.0.0.1", "/metrics").await;
    assert!(plain.is_err(), "answered in clear");
    scene.told("it does not speak TLS: connect by https").await?;
    let prometheus = scene.issue(PROMETHEUS);
    let stream = tls_1_2(&prometheus).or_fail("prepare TLS 1.2")?;
    let mut stream = tokio_openssl::SslStream::new(stream, scene.connect().await?).or_fail("prepare TLS 1.2")?;
    std::pin::Pin::new(&mut stream).connect().await.or_fail("speak TLS 1.2")?;
    assert_eq!(stream.ssl().version_str(), "TLSv1.2");
    assert_eq!(http::get(stream, "localhost", "/metrics").await?.status, 200);
    // A first message of 128 KiB, which OpenSSL would take.
    let (mut reading, mut writing) = scene.connect().await?.into_split();
    let greedy = tokio::spawn(async move {
        let _ = writing.write_all(&[22, 3, 1, 0, 8, 1, 1, 0xff, 0xf0, 3, 3, 3, 3]).await;
        let record = [&[22, 3, 1, 0x40, 0][..], &[3; 0x4000]].concat();
        while writing.write_all(&record).await.is_ok() {}
    });
    // It is closed with bytes of ours unread, so possibly by a reset.
    let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.or_fail("wait for the end")?;
    greedy.abort();
    scene.told("the handshake failed").await
}

fn tls_1_2(certificate: &Issued) -> Result<openssl::ssl::Ssl, openssl::error::ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_max_proto_version(Some(SslVersion::TLS1_2))?;
    let mut chain = X509::stack_from_pem(certificate.chain_pem.as_bytes())?;
    context.set_certificate(&chain.remove(0))?;
    chain.into_iter().try_for_each(|other| context.add_extra_chain_cert(other))?;
    context.set_private_key(&*openssl::pkey::PKey::private_key_from_pem(certificate.key_pem.as_bytes())?)?;
    openssl::ssl::Ssl::new(&context.build())
}

#[tokio::test]
async fn before_the_first_certificate_everybody_is_refused_with_the_reason() -> testkit::Result {
    let site = Site::without_token(CaOptions::default()).await?;
    let mut scene = Scene::start(site, |shim| shim).await?;
    let prometheus = scene.issue(PROMETHEUS);
    scene.refuses(Some(&prometheus), "no certificate is held yet").await?;
    assert_eq!(scene.shim.admin("/livez").await?.status, 200, "the other address answers meanwhile");
    scene.site.refresh_token()?;
    scene.shim.wait_for_log("certificate issued").await?;
    scene.lets_in(&prometheus).await.map(drop)
}

#[tokio::test]
async fn the_next_connection_has_the_next_certificate() -> testkit::Result {
    for variables in [&[][..], &[("ECC_CURVE", "P384")], &[("WORKLOAD_RSA_KEY_SIZE", "2048")]] {
        let edit = |shim: ShimBuilder| variables.iter().fold(shim, |shim, (name, value)| shim.env(*name, *value));
        let mut scene = Scene::ready(edit).await?;
        let mut stream = Open::connect(&mut scene.shim, "default").await?;
        let prometheus = scene.issue(PROMETHEUS);
        for _ in 0..3 {
            let served = tls::serial(&stream.next(&scene.shim).await?.leaf()?)?;
            assert_eq!(scene.lets_in(&prometheus).await?, served, "{variables:?}");
            scene.shim.signal(Signal::SIGUSR1)?;
        }
        let memory = scene.shim.admin("/status").await?.text();
        assert!(memory.contains("\"keys_outside_of_secret_memory_bytes\":0"), "{memory}");
    }
    Ok(())
}

#[tokio::test]
async fn anchors_and_revocation_lists_hold_for_the_next_connection() -> testkit::Result {
    let scene =
        Scene::ready(|shim| shim.env("SDS_SHIM_ROOT_GRACE", "0s").env("FILE_DEBOUNCE_DURATION", "10ms")).await?;
    let other = Pki::new("other");
    let of_other = other.issue(&Leaf::workload(PROMETHEUS, Duration::from_secs(3600)));
    scene.refuses(Some(&of_other), "its certificate was rejected").await?;
    let both = format!("{}{}", scene.root, other.root_pem());
    scene.site.workload.write_root(&both).or_fail("write both roots")?;
    until(&scene, &of_other, true).await?;
    scene.site.workload.write_root(&scene.root).or_fail("write the old root")?;
    until(&scene, &of_other, false).await?;
    let (revoked, good) = (scene.issue(PROMETHEUS), scene.issue(PROMETHEUS));
    scene.lets_in(&revoked).await?;
    write(&scene.site.lists()?, &scene.site.pki.crl(&[&revoked], 600))?;
    until(&scene, &revoked, false).await?;
    scene.told("has been revoked").await?;
    scene.lets_in(&good).await.map(drop)
}

async fn until(scene: &Scene, certificate: &Issued, is_let_in: bool) -> testkit::Result {
    let deadline = Instant::now() + PATIENCE;
    while scene.get(Some(certificate), "/livez").await.is_ok() != is_let_in {
        if Instant::now() > deadline {
            return Err(scene.shim.failure(format!("it is not so that a client is let in: {is_let_in}")));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// With trust domains told apart, anchors vouch for their own alone, here as in Envoy.
#[tokio::test]
async fn anchors_of_one_trust_domain_vouch_for_no_other() -> testkit::Result {
    let (site, partner) = (Site::new().await?, Pki::new("partner"));
    write(&site.workload.path().join("partner.pem"), &partner.root_pem())?;
    let clients = format!("{PROMETHEUS},spiffe://partner.example/*");
    let edit = |shim: ShimBuilder| {
        let shim = shim.env("SDS_SHIM_BUNDLES", "partner.example=partner.pem");
        shim.env("SDS_SHIM_ADMIN_TLS_CLIENTS", clients)
    };
    let scene = Scene::start(site, edit).await?;
    scene.shim.wait_for_log("certificate issued").await?;
    let by_partner = |id: &str| partner.issue(&Leaf::workload(id, Duration::from_secs(3600)));
    scene.lets_in(&by_partner("spiffe://partner.example/prometheus")).await?;
    scene.lets_in(&scene.issue(PROMETHEUS)).await?;
    scene.refuses(Some(&by_partner(PROMETHEUS)), &format!("it claims to be {PROMETHEUS}, but")).await?;
    let ours = scene.issue("spiffe://partner.example/prometheus");
    scene.refuses(Some(&ours), "it claims to be spiffe://partner.example/prometheus, but").await
}

/// Mounted certificates as well.
#[tokio::test]
async fn a_mounted_certificate_is_served_with() -> testkit::Result {
    let site = Site::new().await?;
    let mounted = site.pki.issue(&Leaf::workload(&site.workload.spiffe_id(), Duration::from_secs(3600)));
    std::fs::create_dir_all(site.workload.path().join("etc/certs")).or_fail("make the directory")?;
    for (name, text) in
        [("cert-chain", &mounted.chain_pem), ("key", &mounted.key_pem), ("root-cert", &site.pki.root_pem())]
    {
        write(&site.workload.path().join(format!("etc/certs/{name}.pem")), text)?;
    }
    let scene = Scene::start(site, |shim| shim.env("FILE_MOUNTED_CERTS", "true")).await?;
    scene.shim.wait_for_log("serving the mounted certificate").await?;
    let leaf = X509::from_pem(mounted.chain_pem.as_bytes()).or_fail("read the leaf")?;
    assert_eq!(scene.lets_in(&scene.issue(PROMETHEUS)).await?, tls::serial(&leaf)?);
    Ok(())
}

/// Scanners: silence, halves of a first record, and handshakes that stop before the end, all at once and again. A scrape
/// from another address is answered, and nothing is left of them.
#[tokio::test]
async fn idle_connections_neither_block_scrapes_nor_take_memory() -> testkit::Result {
    const SCRAPE_WITHIN: Duration = Duration::from_secs(5);
    let mut scene = Scene::ready(|shim| shim).await?;
    let prometheus = scene.issue(PROMETHEUS);
    scene.lets_in(&prometheus).await?;
    let before = arena(&mut scene).await?;
    let hello = hello()?;
    let mut knocking = Vec::new();
    for number in 0..128 {
        let (port, said) = (
            scene.port,
            match number % 4 {
                0 => Vec::new(),
                1 => hello[..hello.len() / 2].to_vec(),
                _ => hello.clone(),
            },
        );
        knocking.push(tokio::spawn(async move {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().and_then(|socket| {
                    socket.bind(([127, 0, 0, 9], 0).into())?;
                    Ok(socket)
                });
                let Ok(socket) = socket else { return };
                if let Ok(mut stream) = socket.connect(([127, 0, 0, 1], port).into()).await
                    && stream.write_all(&said).await.is_ok()
                {
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                sleep(POLL).await;
            }
        }));
    }
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        let began = Instant::now();
        let scraped = timeout(SCRAPE_WITHIN, scene.lets_in(&prometheus)).await;
        scraped.map_err(|_| scene.shim.failure(format!("a scrape took more than {SCRAPE_WITHIN:?}")))??;
        longest = longest.max(began.elapsed());
        sleep(Duration::from_millis(300)).await;
    }
    knocking.iter().for_each(tokio::task::JoinHandle::abort);
    let (peak, mut after) = (arena(&mut scene).await?.1, arena(&mut scene).await?);
    let deadline = Instant::now() + PATIENCE;
    while after.0 > before.0 + 16 * 1024 && Instant::now() < deadline {
        sleep(Duration::from_millis(200)).await;
        // Whoever comes next clears up behind those who have left.
        scene.lets_in(&prometheus).await?;
        after = arena(&mut scene).await?;
    }
    println!("the longest scrape took {longest:?}; arena: {before:?} before, peak {peak}, {} after", after.0);
    assert!(after.0 <= before.0 + 16 * 1024, "{} bytes stay, before {}", after.0, before.0);
    assert!(refusals(&scene).len() <= 16, "{:?}", refusals(&scene));
    Ok(())
}

/// Bytes of the arena in use, and at the most.
async fn arena(scene: &mut Scene) -> Result<(u64, u64), Failure> {
    let status: serde_json::Value =
        serde_json::from_str(&scene.shim.admin("/status").await?.text()).or_fail("read it")?;
    let bytes = |name: &str| status["memory"][name].as_u64().unwrap_or_default();
    Ok((bytes("arena_used_bytes"), bytes("arena_peak_bytes")))
}

/// The first record of a handshake.
fn hello() -> Result<Vec<u8>, Failure> {
    use std::{io::Read, os::unix::net::UnixStream};
    let (ours, mut theirs) = UnixStream::pair().or_fail("make a pair")?;
    ours.set_nonblocking(true).or_fail("not block")?;
    let context = SslContext::builder(SslMethod::tls_client()).or_fail("prepare TLS")?.build();
    let _handshake = openssl::ssl::Ssl::new(&context).or_fail("prepare TLS")?.connect(ours);
    let mut head = [0; 5];
    theirs.read_exact(&mut head).or_fail("read a hello")?;
    let mut record = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    theirs.read_exact(&mut record).or_fail("read a hello")?;
    Ok([&head[..], &record].concat())
}
