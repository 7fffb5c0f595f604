//! Where key bytes are to be found by root: nowhere, since all are in secret memory; and where that is not to be had, the
//! live key and no retired one. These tests start the shim as another user, so they need root.

mod residency_common;

use std::{collections::HashMap, time::Duration};

use residency_common::{
    Kind, MOUNTED, NAMED, P256, P384, PRESENTED, PROVISIONED, RSA_2048, RSA_4096, Search, TOLD, UNPROTECTED, search,
};
use testkit::{
    Failure, OrFail, confined::Confinement, fixture::Site, pilot_agent::PilotAgent, residency::Needles, sds,
};

/// Rotates so many times; nothing is found then.
async fn hidden(kind: Kind, rotations: usize) -> testkit::Result {
    let mut subject = kind.start(Confinement::default()).await?;
    subject.rotate(rotations).await?;
    let Search { found, readable, refused } = subject.search()?;
    println!("{:?}: {readable} bytes read, {refused} refused by the kernel, {found:?} found", kind.variables);
    assert_eq!(refused, kind.secret << 10, "bytes of secret memory");
    assert!(readable > 4 << 20, "the rest was not read");
    let status: serde_json::Value =
        serde_json::from_str(&subject.shim.admin("/status").await?.text()).or_fail("read it")?;
    let memory = &status["memory"];
    assert!(found.is_empty(), "windows found, by key: {found:?}");
    assert_eq!(memory["level"], "secret", "{memory}");
    assert_eq!(memory["keys_outside_of_secret_memory_bytes"], 0, "{memory}");
    println!("{:?}: {} bytes in use at the most", kind.variables, memory["secret_peak_bytes"]);
    Ok(())
}

#[tokio::test]
async fn root_finds_no_byte_of_any_p256_key() -> testkit::Result {
    hidden(P256, 30).await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_p384_key() -> testkit::Result {
    hidden(P384, 10).await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_rsa_2048_key() -> testkit::Result {
    hidden(RSA_2048, 4).await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_rsa_4096_key() -> testkit::Result {
    hidden(RSA_4096, 2).await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_mounted_key() -> testkit::Result {
    hidden(MOUNTED, 30).await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_key_that_is_named() -> testkit::Result {
    hidden(NAMED, 30).await
}

#[tokio::test]
async fn root_finds_no_byte_of_any_key_that_a_workload_api_tells() -> testkit::Result {
    hidden(TOLD, 30).await
}

#[tokio::test]
async fn root_finds_no_byte_of_a_provisioned_key_nor_of_those_that_are_written_to_files() -> testkit::Result {
    hidden(PROVISIONED, 30).await
}

/// Keys that were handed on over crashes, those of them that were renewed then, and what they were handed on in.
#[tokio::test]
async fn root_finds_no_byte_of_a_key_that_was_handed_on() -> testkit::Result {
    for kind in [P256, P384, RSA_2048, RSA_4096, TOLD] {
        let mut subject = kind.start(Confinement::CLOSED).await?;
        subject.rotate(2).await?;
        for _ in 0..2 {
            subject.crash().await?;
            let Search { found, readable, refused } = subject.search()?;
            assert_eq!((found.len(), refused), (0, kind.secret << 10), "windows found, by key: {found:?}");
            assert!(readable > 4 << 20, "the rest was not read");
            subject.rotate(1).await?;
            assert!(subject.search()?.found.is_empty());
        }
        let status = subject.shim.admin("/status").await?.text();
        let status: serde_json::Value = serde_json::from_str(&status).or_fail("read it")?;
        assert_eq!(status["memory"]["keys_outside_of_secret_memory_bytes"], 0, "{status}");
    }
    Ok(())
}

/// The same search where keys are in memory that can be read: it must find the live key, or it could find nothing at
/// all; and no key that was retired. Returns how often it finds which key, and which is the live one.
async fn live_alone(kind: Kind, rotations: usize) -> Result<(HashMap<usize, usize>, usize), Failure> {
    let mut subject = kind.start(UNPROTECTED).await?;
    subject.rotate(rotations).await?;
    let Search { found, readable, refused } = subject.search()?;
    println!("{:?}, unprotected: {readable} bytes read, {found:?} found", kind.variables);
    assert_eq!(refused, 0, "there is secret memory");
    assert!(found.contains_key(&subject.live), "the live key is not found: {found:?}");
    let retired: Vec<_> = found.keys().filter(|key| **key != subject.live && **key != PRESENTED).collect();
    assert!(retired.is_empty(), "retired keys {retired:?} of {} are still there: {found:?}", subject.live);
    Ok((found, subject.live))
}

#[tokio::test]
async fn readable_memory_holds_the_live_key_and_no_retired_one() -> testkit::Result {
    let (found, live) = live_alone(P256, 30).await?;
    // One copy as a number in OpenSSL's key, and one as text in the encoded secret that all streams share: 32 bytes
    // have 25 windows, 42 characters and a newline have 36.
    assert_eq!(found, HashMap::from([(live, 25 + 36)]), "the live key must be found, and not more often");
    // What came over HTTP/2 is in none of its buffers, and is kept as text alone.
    let (found, live) = live_alone(TOLD, 30).await?;
    assert_eq!(found, HashMap::from([(live, 36)]), "the live key must be found, and not more often");
    Ok(())
}

/// A handshake of our own server reads the key and leaves none of it: not one copy more than without.
#[tokio::test]
async fn scrapes_over_mutual_tls_leave_no_copy_of_a_key() -> testkit::Result {
    hidden(Kind { scraped: true, ..P256 }, 10).await?;
    hidden(Kind { scraped: true, ..RSA_2048 }, 3).await?;
    let (found, live) = live_alone(Kind { scraped: true, ..P256 }, 10).await?;
    assert_eq!(found, HashMap::from([(live, 25 + 36)]), "as without scrapes");
    Ok(())
}

/// An application that has each key over the Workload API costs one copy of it: its number in DER, which all streams share
/// and which goes with the certificate.
#[tokio::test]
async fn the_workload_api_takes_one_copy_of_the_live_key() -> testkit::Result {
    hidden(Kind { shared: true, ..P256 }, 30).await?;
    hidden(Kind { shared: true, ..RSA_2048 }, 4).await?;
    hidden(Kind { shared: true, ..RSA_4096 }, 2).await?;
    hidden(Kind { shared: true, ..MOUNTED }, 10).await?;
    let (found, live) = live_alone(Kind { shared: true, ..P256 }, 30).await?;
    assert_eq!(found, HashMap::from([(live, 25 + 36 + 25)]), "once more than without");
    let (found, live) = live_alone(Kind { shared: true, ..MOUNTED }, 10).await?;
    assert_eq!(found, HashMap::from([(live, 36 + 25)]), "once more than without");
    Ok(())
}

/// Of a key that is read from a file nothing is left but what is served.
#[tokio::test]
async fn readable_memory_holds_only_the_served_mounted_key() -> testkit::Result {
    let (found, live) = live_alone(MOUNTED, 30).await?;
    assert_eq!(found, HashMap::from([(live, 36)]), "the live key as text in the encoded secret, and no other");
    Ok(())
}

#[tokio::test]
async fn readable_memory_holds_only_the_served_key_that_is_named() -> testkit::Result {
    let (found, live) = live_alone(NAMED, 30).await?;
    assert_eq!(found, HashMap::from([(live, 36)]), "the live key as text in the encoded secret, and no other");
    Ok(())
}

/// The key that is presented to the CA is read for a call and gone after it.
#[tokio::test]
async fn readable_memory_holds_no_provisioned_key_between_calls() -> testkit::Result {
    let (found, live) = live_alone(PROVISIONED, 10).await?;
    assert_eq!(found.keys().collect::<Vec<_>>(), [&live], "{found:?}");
    Ok(())
}

/// RSA keys have many numbers: all of them of the live key alone.
#[tokio::test]
async fn readable_memory_holds_the_live_key_of_every_other_kind_and_no_retired_one() -> testkit::Result {
    for (kind, rotations) in [(P384, 10), (RSA_2048, 3), (RSA_4096, 1)] {
        live_alone(kind, rotations).await?;
    }
    Ok(())
}

/// The positive control with an ordinary allocator: Istio's agent, which holds its keys as everybody does. The same
/// search must find them there, the live one and, as nothing wipes it, usually also one that was retired.
#[tokio::test]
async fn the_search_finds_the_keys_of_a_process_with_an_ordinary_allocator() -> testkit::Result {
    let site = Site::new().await?;
    site.ca.set_ttl(Some(Duration::from_secs(20)));
    let agent = PilotAgent::for_workload(&site.workload, site.ca.address())?
        // Every two seconds; and a key whose number is searched for as ours are.
        .env("SECRET_GRACE_PERIOD_RATIO", "0.9")
        .env("ECC_SIGNATURE_ALGORITHM", "ECDSA")
        .env("PKCS8_KEY", "true");
    let mut agent = agent.start()?;
    let mut stream = agent.connect().await?.stream();
    stream.send(sds::request(&["default"]));
    let mut needles = Needles::default();
    const KEYS: usize = 3;
    for key in 0..KEYS {
        let answer = stream.recv().await?;
        needles.add(key, &sds::secrets(&answer)?.remove(0).key_pem)?;
        stream.send(sds::ack(&answer, &["default"]));
    }
    let search = search(agent.pid(), &needles)?;
    println!("{} bytes read, windows found by key: {:?}", search.readable, search.found);
    assert!(search.found.contains_key(&(KEYS - 1)), "the live key is not found: {:?}", search.found);
    Ok(())
}
