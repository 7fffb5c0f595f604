//! The CA fails in every way, at the first certificate and at renewal; at renewal under steady mutual-TLS traffic
//! through real Envoys, of which no request fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{CaOptions, Call, DevelopmentCa, Fault, Pki},
    door::Door,
    fixture::{
        Open, Site,
        attempts::{self, failed, waits},
        issued_serial, renew, tokens,
    },
    scene::{Mesh, Sidecar, TokenSource, Traffic, World},
    scratch::Scratch,
    shim::{Shim, ShimBuilder},
};
use tokio::{task::JoinSet, time::sleep};
use tonic::Code;

/// The CA's deadline in these tests, which nothing else misses on a busy machine, and an answer that comes after it.
const TIMEOUT: &str = "3s";
const TOO_LATE: Duration = Duration::from_millis(3500);
/// What is told when it passes.
const LATE: &str = "no answer within 3 s (SDS_SHIM_CA_ANSWER_TIMEOUT)";
const UNREACHED: &str = "not reached within 3 s (SDS_SHIM_CA_TIMEOUT)";
/// A way in which the CA fails.
#[derive(Clone)]
enum Trouble {
    /// It answers wrongly or not.
    Fault(Fault),
    /// Nobody listens at its address.
    Refused,
    /// Packets go nowhere: connections are made, and nothing is ever answered.
    Lost,
    /// Somebody else listens there, with a certificate that is not trusted.
    ForeignServer,
    /// It comes back with another root, which is in its root file a moment later.
    AnotherRoot,
}

struct Case {
    name: String,
    trouble: Trouble,
    /// The words that name it in the log.
    reason: String,
}

fn cases() -> Vec<Case> {
    let case =
        |name: &str, trouble: Trouble, reason: &str| Case { name: name.to_owned(), trouble, reason: reason.to_owned() };
    let mut cases = vec![
        case("connection refused", Trouble::Refused, "cannot connect to 127."),
        case("black-holed", Trouble::Lost, UNREACHED),
        case("slow, answers after the deadline", Trouble::Fault(Fault::Delay(TOO_LATE)), LATE),
        case("a stream that hangs", Trouble::Fault(Fault::Hang), LATE),
        case("closed after accept", Trouble::Fault(Fault::DropConnection), "TLS handshake with "),
        case("closed in mid-call", Trouble::Fault(Fault::Break), "the connection broke"),
        case("TLS failure", Trouble::ForeignServer, "the server certificate was rejected"),
    ];
    for code in (1..=16).map(Code::from_i32) {
        let words = format!("code {}", code as i32);
        cases.push(case(&words, Trouble::Fault(Fault::Status(code, words.clone())), &words));
    }
    cases.push(case("back with another root", Trouble::AnotherRoot, "the server certificate was rejected"));
    cases
}

/// A CA at the end of a way that the test controls, and what else may stand there.
struct Upstream {
    door: Door,
    foreign: DevelopmentCa,
    next_pki: Arc<Pki>,
    next: DevelopmentCa,
}

impl Upstream {
    async fn before(ca: &DevelopmentCa, tokens: &Arc<testkit::development_ca::TokenIssuer>) -> Result<Self, Failure> {
        let start = |pki: Arc<Pki>| async move {
            let ca = DevelopmentCa::start(pki, Arc::clone(tokens), CaOptions::default()).await;
            ca.or_fail("start another CA")
        };
        let next_pki = Arc::new(Pki::new("next"));
        Ok(Self {
            door: Door::to(ca.address()).await?,
            foreign: start(Arc::new(Pki::new("foreign"))).await?,
            next: start(Arc::clone(&next_pki)).await?,
            next_pki,
        })
    }

    /// A shim that reaches the CA through the door.
    fn shim(&self, shim: ShimBuilder) -> ShimBuilder {
        shim.env("CA_ADDR", self.door.address().to_string())
            .env("ISTIOD_SAN", "istiod.istio-system.svc")
            .env("SDS_SHIM_CA_TIMEOUT", TIMEOUT)
            .env("SDS_SHIM_CA_ANSWER_TIMEOUT", TIMEOUT)
            .env("SDS_SHIM_LOG", "debug")
    }

    async fn begin(&mut self, trouble: &Trouble, ca: &DevelopmentCa) -> testkit::Result {
        match trouble {
            Trouble::Fault(fault) => ca.set_fault(Some(fault.clone())),
            Trouble::Refused => self.door.close().await,
            Trouble::Lost => self.door.lead_nowhere().await?,
            Trouble::ForeignServer => self.door.lead_to(self.foreign.address()).await?,
            Trouble::AnotherRoot => self.door.lead_to(self.next.address()).await?,
        }
        Ok(())
    }

    async fn end(&mut self, trouble: &Trouble, ca: &DevelopmentCa) -> testkit::Result {
        match trouble {
            Trouble::Fault(_) => ca.set_fault(None),
            Trouble::Refused | Trouble::Lost | Trouble::ForeignServer => self.door.lead_to(ca.address()).await?,
            Trouble::AnotherRoot => {}
        }
        Ok(())
    }
}

/// Each wait is within the back-off's bound; that of RESOURCE_EXHAUSTED is half a minute from the start.
fn within_bounds(waits: &[u64], overload: bool) -> bool {
    let bound = if overload { attempts::bound_of_overloaded } else { attempts::bound };
    waits.iter().enumerate().all(|(attempt, wait)| *wait <= bound(attempt))
}

fn is_overload(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Fault(Fault::Status(Code::ResourceExhausted, _)))
}

/// Whether the CA sees the calls that fail so.
fn reaches_the_ca(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Fault(fault) if !matches!(fault, Fault::DropConnection))
}

/// The calls of one renewal, of which `waits` tells the failed attempts: one call for each, all with the same CSR.
fn check_calls(case: &Case, shim: &Shim, mark: usize, calls: &[Call]) -> testkit::Result {
    let waits = waits(shim, mark);
    let failed = if reaches_the_ca(&case.trouble) { waits.len() } else { 0 };
    // On a loaded machine the deadline may pass before the call is out.
    let slow = shim.log().lines().iter().skip(mark).any(|line| line.contains(LATE) || line.contains(UNREACHED));
    let expected = if slow { 1..=failed + 1 } else { failed + 1..=failed + 1 };
    let told = shim.log().lines().into_iter().skip(mark).filter(|line| line.contains(&case.reason));
    let told: Vec<_> = told.collect();
    let different: BTreeSet<_> = calls.iter().map(|call| &call.csr).collect();
    if !expected.contains(&calls.len()) || different.len() != 1 {
        let what = format!("{} calls with {} CSRs after the waits {waits:?}", calls.len(), different.len());
        return Err(shim.failure(what));
    }
    if !within_bounds(&waits, is_overload(&case.trouble)) {
        return Err(shim.failure(format!("the waits {waits:?} are not within their bounds")));
    }
    if told.is_empty() || told.len() > 1 && !slow {
        return Err(shim.failure(format!("told {} times: {}", told.len(), case.reason)));
    }
    Ok(())
}

async fn first_certificate(case: Case) -> testkit::Result {
    let scene = Site::new().await?;
    let mut upstream = Upstream::before(&scene.ca, &tokens()).await?;
    upstream.begin(&case.trouble, &scene.ca).await?;
    let mut shim = upstream.shim(scene.shim()).start()?;
    let client = shim.connect().await?;
    let (mut default, mut roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
    let overload = is_overload(&case.trouble);
    failed(&shim, 0, if overload { 1 } else { 3 }).await?;
    default.expect_silence(&shim).await?;
    roots.expect_silence(&shim).await?;
    upstream.end(&case.trouble, &scene.ca).await?;
    if matches!(case.trouble, Trouble::AnotherRoot) {
        scene.write_root(&upstream.next_pki.root_pem())?;
    }
    if overload {
        // It would be asked again within half a minute.
        renew(&shim)?;
    }
    let secret = default.next(&shim).await?;
    let ca = if matches!(case.trouble, Trouble::AnotherRoot) { &upstream.next } else { &scene.ca };
    assert_eq!(ca.calls().last().and_then(issued_serial), Some(secret.serial()?));
    let told = shim.wait_for_log("cannot obtain a certificate: ").await?;
    let unreached = format!("{} {UNREACHED}", upstream.door.address());
    assert!(told.contains(&case.reason) || told.contains(LATE) || told.contains(&unreached), "{told}");
    assert_eq!(told.contains(UNREACHED), told.contains(&unreached), "who was not reached: {told}");
    check_calls(&case, &shim, 0, &ca.calls())
}

#[tokio::test]
async fn the_first_certificate_comes_after_every_outage() -> testkit::Result {
    let mut rows = JoinSet::new();
    for case in cases() {
        let name = case.name.clone();
        rows.spawn(async move { first_certificate(case).await.map_err(|failure| failure.context(name)) });
        // Not all of them at once: their deadlines are short.
        if rows.len() >= 6 {
            finish_one(&mut rows).await?;
        }
    }
    while !rows.is_empty() {
        finish_one(&mut rows).await?;
    }
    Ok(())
}

async fn finish_one(rows: &mut JoinSet<testkit::Result>) -> testkit::Result {
    match rows.join_next().await {
        Some(row) => row.or_fail("see a row of the matrix through")?,
        None => Ok(()),
    }
}

/// One workload of the mesh with what watches it.
struct Watched {
    /// Where its log was when the present case began.
    mark: usize,
    default: Open,
    roots: Open,
    served: String,
}

impl Watched {
    async fn new(sidecar: &mut Sidecar) -> Result<Self, Failure> {
        let client = sidecar.shim.connect().await?;
        let (mut default, mut roots) = (Open::new(&client, "default"), Open::new(&client, "ROOTCA"));
        let served = default.next(&sidecar.shim).await?.serial()?;
        roots.next(&sidecar.shim).await?;
        Ok(Self { mark: 0, default, roots, served })
    }
}

/// The calls of each service account, by its token, since the first `from`.
fn by_subject(ca: &DevelopmentCa, from: usize) -> BTreeMap<String, Vec<Call>> {
    let mut calls = BTreeMap::<_, Vec<Call>>::new();
    for call in ca.calls().split_off(from) {
        let subject = call.authorization.as_ref().and_then(|authorization| authorization.subject.clone());
        calls.entry(subject.unwrap_or_default()).or_default().push(call);
    }
    calls
}

/// All four workloads renew while the CA fails so: the old certificates are served, and the new ones come afterwards.
async fn renewal(
    case: &Case,
    mesh: &mut Mesh,
    watched: &mut [Watched],
    world: &World,
    upstream: &mut Upstream,
) -> Result<usize, Failure> {
    let overload = is_overload(&case.trouble);
    let from = world.ca.calls().len();
    upstream.begin(&case.trouble, &world.ca).await?;
    for (sidecar, watched) in mesh.sidecars_mut().zip(&mut *watched) {
        watched.mark = sidecar.shim.log().mark();
        renew(&sidecar.shim)?;
    }
    for (sidecar, watched) in mesh.sidecars_mut().zip(&mut *watched) {
        failed(&sidecar.shim, watched.mark, if overload { 1 } else { 2 }).await?;
        let fresh = Open::connect(&mut sidecar.shim, "default").await?.next(&sidecar.shim).await?;
        assert_eq!(fresh.serial()?, watched.served, "a new stream gets the old one");
    }
    if matches!(case.trouble, Trouble::AnotherRoot) {
        distribute_root(mesh, watched, upstream).await?;
    }
    upstream.end(&case.trouble, &world.ca).await?;
    if overload {
        // They would ask again within half a minute.
        mesh.sidecars().try_for_each(|sidecar| renew(&sidecar.shim))?;
    }
    let mut made = 0;
    for (sidecar, watched) in mesh.sidecars_mut().zip(&mut *watched) {
        // Without a restart and without a signal: by the back-off.
        watched.served = watched.default.next(&sidecar.shim).await?.serial()?;
        made += waits(&sidecar.shim, watched.mark).len() + 1;
        let log = sidecar.shim.log().lines().split_off(watched.mark);
        let told = log.iter().find(|line| line.contains(&case.reason));
        assert!(told.is_some_and(|line| line.contains("still serving the current certificate")), "{told:?}");
        let ca = if matches!(case.trouble, Trouble::AnotherRoot) { &upstream.next } else { &world.ca };
        let from = if matches!(case.trouble, Trouble::AnotherRoot) { 0 } else { from };
        let (namespace, account) = (sidecar.workload.namespace(), sidecar.workload.service_account());
        let calls = by_subject(ca, from);
        let calls = &calls[&format!("system:serviceaccount:{namespace}:{account}")];
        check_calls(case, &sidecar.shim, watched.mark, calls)?;
        assert_eq!(calls.last().and_then(issued_serial).as_ref(), Some(&watched.served));
    }
    Ok(made)
}

/// Gives every workload the next CA's root before that CA can be reached, as whoever replaces a CA must: certificates
/// of the new root are of use once all peers have it.
async fn distribute_root(mesh: &mut Mesh, watched: &mut [Watched], upstream: &mut Upstream) -> testkit::Result {
    upstream.door.close().await;
    for (sidecar, watched) in mesh.sidecars_mut().zip(watched) {
        sidecar.workload.write_root(&upstream.next_pki.root_pem()).or_fail("write the root")?;
        assert_eq!(watched.roots.next(&sidecar.shim).await?.trust_anchors()?.len(), 2, "the old one is kept");
    }
    for sidecar in mesh.sidecars() {
        let admin = sidecar.envoy.admin();
        eventually(sidecar, "both roots", || async {
            let page = admin.json("/certs").await?;
            let contexts = page["certificates"].as_array().into_iter().flatten();
            let anchors: Vec<_> = contexts.filter_map(|context| context["ca_cert"].as_array().map(Vec::len)).collect();
            Ok(!anchors.is_empty() && anchors.iter().all(|count| *count == 2))
        })
        .await?;
    }
    upstream.door.lead_to(upstream.next.address()).await
}

async fn eventually<F>(sidecar: &Sidecar, what: &str, condition: impl Fn() -> F) -> testkit::Result
where
    F: Future<Output = Result<bool, Failure>>,
{
    let deadline = Instant::now() + PATIENCE;
    while !condition().await? {
        if Instant::now() > deadline {
            return Err(sidecar.explain(Failure::new(format!("{} never had {what}", sidecar.name()))));
        }
        sleep(POLL).await;
    }
    Ok(())
}

#[tokio::test]
async fn no_request_fails_while_the_ca_does() -> testkit::Result {
    let start = Instant::now();
    let scratch = Scratch::new("tests")?;
    let world = World::start(Duration::from_secs(3600)).await?;
    let mut upstream = Upstream::before(&world.ca, &world.tokens).await?;
    let mut mesh = Mesh::start(&world, scratch.path(), TokenSource::File, |shim| upstream.shim(shim)).await?;
    let mut watched = Vec::new();
    for sidecar in mesh.sidecars_mut() {
        watched.push(Watched::new(sidecar).await?);
    }
    let traffic = Traffic::start(&mesh).await?;
    let began = Instant::now();
    let mut outcome = Ok(());
    let (mut rows, mut made) = (0, 0);
    for case in cases() {
        match renewal(&case, &mut mesh, &mut watched, &world, &mut upstream).await {
            Ok(more) => (rows, made) = (rows + 1, made + more),
            Err(failure) => {
                outcome = Err(failure.context(&case.name));
                break;
            }
        }
    }
    let lasted = began.elapsed();
    let tally = traffic.stop().await;
    outcome?;
    assert_eq!(tally.failures, Vec::<String>::new());
    assert!(tally.answered > 0);
    for (sidecar, watched) in mesh.sidecars().zip(&watched) {
        let admin = sidecar.envoy.admin();
        eventually(sidecar, "the last certificate", || async {
            Ok(admin.certificates().await?.iter().any(|certificate| certificate.serial == watched.served))
        })
        .await?;
    }
    println!(
        "{rows} outages of 4 workloads in {:.1} s: {made} attempts, {} requests with a handshake each, 0 failed; {:.1} s in all",
        lasted.as_secs_f64(),
        tally.answered,
        start.elapsed().as_secs_f64()
    );
    mesh.stop().await
}
