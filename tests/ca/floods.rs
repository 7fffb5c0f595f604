//! A CA, or whoever stands in its way, that sends more than an answer can be: the call has failed like any other, the
//! process lives within its memory, and the next right answer is used. These tests start the shim as another user, so
//! they need root.

use std::{fs, net::SocketAddr};

use testkit::{
    Failure, OrFail,
    confined::{Confinement, MEMLOCK},
    der::{self, names, tiny},
    development_ca::{CaOptions, Fault, Flood, Leaf, Pki, SignOverrides},
    door::own_address,
    fixture::{Open, Site, attempts::failed, renew},
    shim::Shim,
};

/// Calls that go wrong one after the other, at the start and at a renewal.
const TIMES: usize = 3;

/// The port on which a CA speaks without TLS.
const IN_CLEAR: u16 = 15010;

/// A shim as it runs in a sidecar, which outlives every `fault` before it has a certificate and after; each time it
/// tells one of `reasons`.
async fn outlives(scene: &Site, fault: &Fault, reasons: &[&str]) -> testkit::Result {
    scene.ca.set_fault(Some(fault.clone()));
    let builder = scene.shim().confined(Confinement::default()).env("SDS_SHIM_LOG", "debug");
    let builder = match scene.ca.address() {
        address if address.port() == IN_CLEAR => builder.env("CA_ADDR", address.to_string()),
        _ => builder,
    };
    let mut shim = builder.env("SDS_SHIM_CA_TIMEOUT", "2s").env("SDS_SHIM_CA_ANSWER_TIMEOUT", "2s").start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    fails(&shim, fault, reasons).await?;
    scene.ca.set_fault(None);
    renew(&shim)?;
    let held = stream.next(&shim).await?.serial()?;
    scene.ca.set_fault(Some(fault.clone()));
    fails(&shim, fault, reasons).await?;
    stream.expect_silence(&shim).await?;
    let fresh = Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(fresh.serial()?, held, "what was served before is served still");
    scene.ca.set_fault(None);
    renew(&shim)?;
    assert_ne!(stream.next(&shim).await?.serial()?, held);
    within_memory(&shim)
}

/// The same with a CA and a workload of its own.
async fn survives(fault: Fault, reasons: &[&str]) -> testkit::Result {
    outlives(&Site::new().await?, &fault, reasons).await
}

/// So many failures in a row, of which the reason is told.
async fn fails(shim: &Shim, fault: &Fault, reasons: &[&str]) -> testkit::Result {
    let named = |failure: Failure| Failure::new(format!("{fault:?}: {failure}"));
    let mark = shim.log().mark();
    for count in 1..=TIMES {
        renew(shim)?;
        failed(shim, mark, count).await.map_err(named)?;
    }
    let told = |line: &String| reasons.iter().any(|reason| line.contains(reason));
    if shim.log().lines().iter().filter(|line| line.contains(" certificate")).any(told) {
        return Ok(());
    }
    Err(named(shim.failure(format!("none of {reasons:?} is told"))))
}

fn within_memory(shim: &Shim) -> testkit::Result {
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("the shim lives")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|peak| peak.trim().parse().ok()).expect("the kernel tells it");
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    Ok(())
}

/// What may be told of a flood, whichever limit it meets first.
fn reasons(flood: Flood) -> &'static [&'static str] {
    const FRAMES: &str = "connection aborted: received more than 256 HTTP/2 frames in one call";
    match flood {
        Flood::Headers => {
            &[FRAMES, "received more than 1,536 KiB in one call", "not enough arena memory for the answer"]
        }
        // h2 has a limit of its own.
        Flood::EmptyData | Flood::Bytes => &[FRAMES, "detected excessive load"],
        Flood::Endless => &["the answer is too large"],
        Flood::Continuation | Flood::Message | Flood::Settings => &[""],
        _ => &[FRAMES],
    }
}

#[tokio::test]
async fn frames_without_end_over_tls() -> testkit::Result {
    for flood in Flood::ALL {
        let scene = Site::new().await?;
        outlives(&scene, &Fault::Flood(flood), reasons(flood)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn frames_without_end_in_clear() -> testkit::Result {
    for flood in Flood::ALL {
        let listen = SocketAddr::new(own_address().ip(), IN_CLEAR);
        let scene = Site::with(CaOptions { plaintext: true, listen, ..CaOptions::default() }).await?;
        outlives(&scene, &Fault::Flood(flood), reasons(flood)).await?;
    }
    Ok(())
}

/// A leaf that is right, and has these names besides.
fn named(edit: impl Fn(&mut Leaf) + Send + Sync + 'static) -> Fault {
    Fault::sign(move |sign: &mut SignOverrides| edit(&mut sign.leaf))
}

#[tokio::test]
async fn a_leaf_with_thousands_of_names() -> testkit::Result {
    let too_large = ["element 1 of the CA's answer: certificate 1 in it is too large"];
    survives(named(|leaf| leaf.uri.extend((0..8000).map(|_| "a:b".to_owned()))), &too_large).await?;
    survives(named(|leaf| leaf.dns = vec!["a.b".to_owned(); 5000]), &too_large).await?;
    let few = ["the leaf has 34 SANs; expected one URI and a few DNS names, at most 32"];
    survives(named(|leaf| leaf.dns = (0..33).map(|number| format!("a{number}.b")).collect()), &few).await
}

#[tokio::test]
async fn a_leaf_with_as_many_names_as_it_may_have_is_used() -> testkit::Result {
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(named(|leaf| leaf.dns = (0..31).map(|number| format!("a{number}.b")).collect())));
    let mut shim = scene.shim().confined(Confinement::default()).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    Ok(())
}

/// Of each element of the answer.
#[tokio::test]
async fn elements_with_masses_of_certificates() -> testkit::Result {
    let with = |at: usize, text: String| {
        Fault::mutate(move |mut chain| {
            chain[at].push_str(&text);
            chain
        })
    };
    let tiny = pem(&tiny());
    let chain = ["it holds more than 16 certificates"];
    survives(with(1, tiny.repeat(300)), &chain).await?;
    let single = tiny.clone();
    let elements = Fault::mutate(move |mut chain| {
        let masses = std::iter::repeat_n(single.clone(), 300);
        chain.splice(1..1, masses);
        chain
    });
    survives(elements, &chain).await?;
    let large_ones: Vec<_> = (0..15).map(|_| pem(&names(480))).collect();
    let large = ["and 2560 in a whole chain"];
    survives(with(1, large_ones.concat()), &large).await
}

/// A marker that ends with the dashes that the next one begins with: in a chain, and among the roots, where it is skipped.
#[tokio::test]
async fn markers_that_share_their_dashes() -> testkit::Result {
    const SHARED: &str = "-----BEGIN CERTIFICATE-------END CERTIFICATE-----\n";
    let first = Fault::mutate(|mut chain| {
        chain[0].insert_str(0, SHARED);
        chain
    });
    survives(first, &["certificate 1 in it cannot be parsed"]).await?;
    let scene = Site::new().await?;
    scene.ca.set_fault(Some(Fault::mutate(|mut chain| {
        let last = chain.len() - 1;
        chain[last].push_str(SHARED);
        chain
    })));
    let mut shim = scene.shim().confined(Confinement::default()).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    shim.wait_for_log("among the CA's roots, certificate 2 skipped: it cannot be parsed").await?;
    within_memory(&shim)
}

/// Nothing of it makes the answer bad, and it must not be told at length.
#[tokio::test]
async fn masses_of_invalid_roots() -> testkit::Result {
    let scene = Site::new().await?;
    let empty = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".repeat(1000);
    scene.ca.set_fault(Some(Fault::mutate(move |mut chain| {
        let last = chain.len() - 1;
        chain[last].push_str(&empty);
        chain
    })));
    let mut shim = scene.shim().confined(Confinement::default()).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    shim.wait_for_log("among the CA's roots, 996 more skipped").await?;
    assert_eq!(shim.log().count("among the CA's roots, certificate"), 4);
    within_memory(&shim)
}

#[tokio::test]
async fn a_server_with_a_thousand_tiny_certificates() -> testkit::Result {
    let scene = Site::with(CaOptions { server_chain: vec![pem(&tiny()).repeat(940)], ..CaOptions::default() }).await?;
    let builder = scene.shim().confined(Confinement::default()).env("SDS_SHIM_LOG", "debug");
    let mut shim = builder.start()?;
    shim.connect().await?;
    let told = "the server's certificate chain is larger than 16 KiB";
    fails(&shim, &Fault::Hang, &[told]).await?;
    assert_eq!(shim.admin("/livez").await?.status, 200);
    within_memory(&shim)
}

/// As many as the limit lets through, and a large answer.
#[tokio::test]
async fn a_server_with_as_many_tiny_certificates_as_it_may_have() -> testkit::Result {
    let options = CaOptions {
        server_chain: vec![pem(&tiny()).repeat(180)],
        extra_roots: (0..40).map(|number| Pki::new(&number.to_string()).root_pem()).collect(),
        ..CaOptions::default()
    };
    let scene = Site::with(options).await?;
    let mut shim = scene.shim().confined(Confinement::default()).start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    within_memory(&shim)
}

fn pem(certificate: &[u8]) -> String {
    der::pem("CERTIFICATE", certificate)
}
