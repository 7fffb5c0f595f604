//! A CA, or a proxy before it, that says when it wants to be asked again is not asked before; the operator may.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use testkit::{
    Failure, OrFail,
    development_ca::{Fault, Outcome, PlainAnswer},
    fixture::{
        Open, Site,
        attempts::{failed, waits},
        renew, within,
    },
    shim::Shim,
};
use tokio::task::JoinSet;
use tonic::{
    Code, Status,
    metadata::{MetadataKey, MetadataMap},
};

/// The bound of the back-off at the first failure.
const FIRST_BOUND: u64 = 250;

/// A length-delimited field of a protobuf message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("a short field");
    assert!(length < 128 && number < 16);
    [&[number << 3 | 2, length], content].concat()
}

/// An error with `google.rpc.RetryInfo` among the details of its `google.rpc.Status`.
fn retry_info(code: Code, seconds: u8) -> Fault {
    let delay = field(1, &[1 << 3, seconds]);
    let any = |name: &str, value: &[u8]| {
        field(3, &[field(1, format!("type.googleapis.com/google.rpc.{name}").as_bytes()), field(2, value)].concat())
    };
    let status = [vec![1 << 3, code as u8], any("Help", b""), any("RetryInfo", &delay)].concat();
    Fault::Refuse(Box::new(Status::with_details(code, "later", status.into())))
}

fn metadata(name: &'static str, value: &str) -> Fault {
    let mut metadata = MetadataMap::new();
    metadata.insert(MetadataKey::from_static(name), value.parse().expect("a header value"));
    Fault::Refuse(Box::new(Status::with_metadata(Code::Unavailable, "later", metadata)))
}

fn http(status: u16, retry_after: &str, body: &str) -> Fault {
    let headers = [("retry-after", retry_after), ("content-type", "text/html")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Fault::Http(PlainAnswer { status, headers, body: body.to_owned() })
}

/// The wait that the shim has decided on after its first failure.
async fn decided(shim: &Shim, mark: usize) -> Result<u64, Failure> {
    failed(shim, mark, 1).await?;
    waits(shim, mark).first().copied().ok_or_else(|| shim.failure("no wait in the log"))
}

/// The first call meets `fault`, which asks for 2 s, and the second one comes no earlier, and within as long again.
async fn two_seconds_are_left(fault: Fault) -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.push_fault(fault);
    let mut shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let wait = decided(&shim, 0).await?;
    assert!((2000..=4000).contains(&wait), "{wait} ms: {:#?}", shim.log().lines());
    stream.next(&shim).await?;
    let calls = scene.ca.calls();
    assert_eq!(calls.len(), 2);
    assert!(matches!(calls[0].outcome, Outcome::Refused { .. }), "{:?}", calls[0].outcome);
    let apart = calls[1].at.duration_since(calls[0].at).or_fail("compare two calls")?;
    // The wall clock and the runtime's may be read up to a tick apart.
    assert!(apart >= Duration::from_millis(1990), "asked again after {apart:?}");
    Ok(())
}

#[tokio::test]
async fn a_retry_after_of_two_seconds_is_honoured() -> testkit::Result {
    let rows = [
        ("RetryInfo", retry_info(Code::Unavailable, 2)),
        ("RetryInfo of an overloaded CA", retry_info(Code::ResourceExhausted, 2)),
        ("RetryInfo of a CA that does not like the token", retry_info(Code::Unauthenticated, 2)),
        ("metadata", metadata("retry-after", "2")),
        ("pushback", metadata("grpc-retry-pushback-ms", "2000")),
        ("HTTP 503", http(503, "2", "")),
        ("HTTP 503 with a page", http(503, "2", "<html>no healthy upstream</html>")),
        ("HTTP 429", http(429, " 2", "")),
    ];
    let mut running = JoinSet::new();
    for (name, fault) in rows {
        running.spawn(async move { two_seconds_are_left(fault).await.map_err(|failure| failure.context(name)) });
    }
    while let Some(row) = running.join_next().await {
        row.or_fail("see a row of the table through")??;
    }
    Ok(())
}

/// A shim that has met a fault, and the stream that waits for the certificate which comes after it.
struct Waiting {
    scene: Site,
    shim: Shim,
    stream: Open,
}

/// What the shim decides on when the first call meets `fault`, without (`held` is `None`) or with a certificate of
/// this life.
async fn decision(fault: Fault, held: Option<&str>, expected: RangeInclusive<u64>) -> Result<Waiting, Failure> {
    let scene = Site::new().await?;
    let shim = scene.shim().env("SDS_SHIM_LOG", "debug").env("SECRET_TTL", held.unwrap_or("24h"));
    if held.is_none() {
        scene.ca.push_fault(fault.clone());
    }
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let mut mark = 0;
    if held.is_some() {
        stream.next(&shim).await?;
        mark = shim.log().mark();
        scene.ca.push_fault(fault);
        renew(&shim)?;
    }
    let wait = decided(&shim, mark).await?;
    assert!(expected.contains(&wait), "{wait} ms");
    Ok(Waiting { scene, shim, stream })
}

#[tokio::test]
async fn long_waits_are_borne_as_the_certificate_allows_and_a_signal_ends_them() -> testkit::Result {
    let (minute, hour) = (60_000, 3_600_000);
    let date = http_date(SystemTime::now() + Duration::from_secs(100));
    let rows = [
        // All who were told the same spread over as long again, rounded up to a bound of the back-off.
        (retry_info(Code::Unavailable, 60), None, minute..=minute + 64_000),
        (metadata("retry-after", "999999999999"), None, hour..=hour + 300_000),
        (retry_info(Code::ResourceExhausted, 60), Some("24h"), minute..=minute + 64_000),
        // Half of what is left, so that a CA's patience does not make the certificate lapse; but half a minute always.
        (metadata("retry-after", "600"), Some("200s"), 115_000..=150_000),
        (metadata("retry-after", "600"), Some("40s"), 32_000..=36_000),
        (http(503, &date, ""), None, 65_000..=228_000),
    ];
    for (fault, held, expected) in rows {
        let Waiting { scene, shim, mut stream } = decision(fault, held, expected).await?;
        let made = scene.ca.calls().len();
        renew(&shim)?;
        stream.next(&shim).await?;
        assert_eq!(scene.ca.calls().len(), made + 1);
    }
    Ok(())
}

#[tokio::test]
async fn an_unreadable_retry_after_is_ignored() -> testkit::Result {
    for fault in [http(503, "soon", ""), metadata("grpc-retry-pushback-ms", "-1")] {
        let Waiting { scene, shim, mut stream } = decision(fault, None, 0..=FIRST_BOUND).await?;
        stream.next(&shim).await?;
        assert_eq!(scene.ca.calls().len(), 2);
    }
    Ok(())
}

/// A moment as HTTP writes it, by the means of the system.
fn http_date(moment: SystemTime) -> String {
    let seconds = moment.duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs();
    let date = std::process::Command::new("date")
        .args(["-u", "-d", &format!("@{seconds}"), "+%a, %d %b %Y %H:%M:%S GMT"])
        .env("LC_ALL", "C")
        .output()
        .expect("run date");
    String::from_utf8(date.stdout).expect("ASCII").trim().to_owned()
}

#[tokio::test]
async fn an_overloaded_ca_without_a_wish_is_left_alone_for_long() -> testkit::Result {
    let mut longest = 0;
    // With full jitter one wait may be short; that none of these is above half a second happens once in 10^10.
    for _ in 0..6 {
        let scene = Site::new().await?;
        scene.ca.set_fault(Some(Fault::Status(Code::ResourceExhausted, "too much".to_owned())));
        let shim = scene.shim().env("SDS_SHIM_LOG", "debug").start()?;
        let wait = decided(&shim, 0).await?;
        assert!(wait <= 32_000, "{wait} ms");
        longest = longest.max(wait);
    }
    assert!(longest > 500, "{longest} ms at the most");
    Ok(())
}

/// When the call then fails, the next one follows at once.
#[tokio::test]
async fn a_signal_during_a_call_is_not_lost() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.push_fault(Fault::Hang);
    let mut shim = scene.shim().start()?;
    within(&shim, "a call", scene.ca.wait_for_calls(1)).await?;
    renew(&shim)?;
    // Whatever comes after a signal finds that it was taken.
    let mut stream = Open::connect(&mut shim, "default").await?;
    assert!(!shim.log().contains("renewal requested by signal"), "the call goes on");
    scene.ca.disconnect();
    stream.next(&shim).await?;
    shim.wait_for_log("renewal requested by signal").await?;
    assert_eq!(scene.ca.calls().len(), 2);
    Ok(())
}
