use std::{sync::Arc, time::Duration};

use openssl::x509::X509Req;
use testkit::{
    Failure, OrFail, PATIENCE,
    development_ca::{Fault, Pki},
    fixture::{names, serial},
    sds,
};
use tokio::time::timeout;
use tonic::Code;

use crate::subject::{Implementation, QUIET, Setup, Subject};

/// The CA does this from the first call on: nothing must be served, whatever happens to the stream.
async fn never_served(of: Implementation, fault: Fault) -> testkit::Result {
    let setup = Setup::new(of).await?;
    setup.site.ca.set_fault(Some(fault));
    let subject = setup.start().await?;
    let mut stream = subject.client.stream();
    stream.send(sds::request(&["default"]));
    timeout(PATIENCE, subject.site.ca.wait_for_outcomes(1)).await.or_fail("wait for the answer")?;
    assert!(stream.recv_within(QUIET * 3).await.is_err(), "it was served");
    Ok(())
}

pub(super) async fn other_key(of: Implementation) -> testkit::Result {
    never_served(of, Fault::sign(|sign| sign.other_key = true)).await
}

pub(super) async fn other_identity(of: Implementation) -> testkit::Result {
    never_served(of, Fault::sign(|sign| sign.leaf.uri = vec!["spiffe://cluster.local/ns/foo/sa/other".to_owned()]))
        .await
}

pub(super) async fn ca_certificate(of: Implementation) -> testkit::Result {
    never_served(of, Fault::sign(|sign| sign.leaf.ca = true)).await
}

pub(super) async fn unrelated_root(of: Implementation) -> testkit::Result {
    let other = Arc::new(Pki::new("unrelated"));
    never_served(of, Fault::sign(move |sign| sign.signed_by = Some(Arc::clone(&other)))).await
}

pub(super) async fn expired(of: Implementation) -> testkit::Result {
    never_served(of, Fault::sign(|sign| (sign.leaf.not_before, sign.leaf.not_after) = (-7200, -3600))).await
}

pub(super) async fn one_element(of: Implementation) -> testkit::Result {
    never_served(of, Fault::mutate(|chain| chain.into_iter().take(1).collect())).await
}

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down".to_owned())
}

/// A subject that holds a certificate for 20 s, and whose renewal after two seconds has failed.
async fn in_an_outage(of: Implementation) -> Result<(Subject, sds::SdsStream, String), Failure> {
    let subject = Setup::new(of).await?.rotating().start().await?;
    let (stream, first) = subject.ask(&["default"]).await?;
    stream.send(sds::ack(&first, &["default"]));
    subject.ask(&["ROOTCA"]).await?;
    subject.site.ca.set_fault(Some(down()));
    timeout(PATIENCE, subject.site.ca.wait_for_outcomes(2)).await.or_fail("wait for the renewal")?;
    Ok((subject, stream, serial(&first)?))
}

/// Whether a stream of a new connection is answered before the certificate's end.
async fn answered_anew(subject: &Subject, name: &str) -> testkit::Result {
    let client = subject.reconnect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&[name]));
    assert_eq!(names(&stream.recv_within(Duration::from_secs(8)).await?)?, [name]);
    Ok(())
}

pub(super) async fn default_stays(of: Implementation) -> testkit::Result {
    answered_anew(&in_an_outage(of).await?.0, "default").await
}

pub(super) async fn roots_stay(of: Implementation) -> testkit::Result {
    answered_anew(&in_an_outage(of).await?.0, "ROOTCA").await
}

pub(super) async fn streams_stay(of: Implementation) -> testkit::Result {
    let (_subject, mut stream, _) = in_an_outage(of).await?;
    stream.expect_silence(Duration::from_secs(8)).await
}

pub(super) async fn reconnects(of: Implementation) -> testkit::Result {
    let count = async |reconnecting: bool| {
        let (subject, _stream, _) = in_an_outage(of).await?;
        let before = subject.site.ca.calls().len();
        for _ in 0..20 {
            if reconnecting {
                let mut stream = subject.reconnect().await?.stream();
                stream.send(sds::request(&["default"]));
                drop(stream.recv_within(QUIET / 5).await);
            } else {
                tokio::time::sleep(QUIET / 5).await;
            }
        }
        Ok::<_, Failure>(subject.site.ca.calls().len() - before)
    };
    let (quiet, storm) = (count(false).await?, count(true).await?);
    // Back-offs are random: what is looked for is a call for each reconnect.
    assert!(storm <= quiet + 6, "{storm} calls with twenty reconnects, {quiet} without");
    Ok(())
}

pub(super) async fn same_key(of: Implementation) -> testkit::Result {
    let (subject, _stream, _) = in_an_outage(of).await?;
    timeout(PATIENCE, subject.site.ca.wait_for_calls(5)).await.or_fail("wait for more attempts")?;
    let calls = subject.site.ca.calls();
    let key = |at: usize| {
        let csr = X509Req::from_pem(calls[at].csr.as_bytes()).or_fail("read a CSR")?;
        csr.public_key().and_then(|key| key.public_key_to_der()).or_fail("read the key of a CSR")
    };
    assert_ne!(key(0)?, key(1)?, "a renewal has a key of its own");
    for at in 2..5 {
        assert!(key(1)? == key(at)?, "another key in attempt {at}");
    }
    Ok(())
}

pub(super) async fn recovery(of: Implementation) -> testkit::Result {
    let (subject, mut stream, first) = in_an_outage(of).await?;
    subject.site.ca.set_fault(None);
    assert_ne!(serial(&stream.recv().await?)?, first);
    Ok(())
}

pub(super) async fn first_certificate(of: Implementation) -> testkit::Result {
    let setup = Setup::new(of).await?;
    setup.site.ca.set_fault(Some(down()));
    let subject = setup.start().await?;
    // Istio's agent tries five times, and then only while somebody asks.
    timeout(PATIENCE * 2, subject.site.ca.wait_for_calls(8)).await.or_fail("wait for attempts")?;
    subject.site.ca.set_fault(None);
    assert_eq!(names(&subject.ask(&["default"]).await?.1)?, ["default"]);
    Ok(())
}
