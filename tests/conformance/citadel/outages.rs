//! CAs that go away, come back, are replaced, or are not who they should be.

use std::sync::Arc;

use testkit::{
    OrFail,
    development_ca::Pki,
    door::Door,
    fixture::{Open, renew},
};

use crate::upstream::{Kind, Scene, Server, Settings};

const SERVER_NAME: &str = "istiod.istio-system.svc";
const REFUSED: &str = "the CA rejected our client certificate";

/// A door has an address of its own, so its server is told apart by name.
fn through(scene: &Scene, door: &Door) -> testkit::shim::ShimBuilder {
    scene.shim().env("CA_ADDR", door.address().to_string()).env("ISTIOD_SAN", SERVER_NAME)
}

pub(crate) async fn the_ca_goes_away_and_comes_back(kind: Kind) -> testkit::Result {
    let mut scene = Scene::new(kind).await?;
    let mut door = Door::to(scene.ca.address()).await?;
    let mut shim = through(&scene, &door).start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    let first = stream.next(&shim).await?.serial()?;

    door.close().await;
    let settings = Settings::default();
    let back = Server::start(kind, &scene.pki, &settings).await?;
    std::mem::replace(&mut scene.ca, back).stop().await?;
    renew(&shim)?;
    shim.wait_for_log("still serving the current certificate").await?;
    assert_eq!(Open::connect(&mut shim, "default").await?.next(&shim).await?.serial()?, first);

    // Its successor has the same CA and its own issuer, as after a restart elsewhere.
    scene.write_token(|_| {})?;
    door.lead_to(scene.ca.address()).await?;
    renew(&shim)?;
    let second = stream.next(&shim).await?.serial()?;
    let call = scene.call(1, &shim).await?;
    assert_eq!((call.credentials(), call.end), ((true, Some(first)), Ok(second)));
    Ok(())
}

pub(crate) async fn a_ca_with_another_root_gets_the_token_alone(kind: Kind) -> testkit::Result {
    let mut scene = Scene::new(kind).await?;
    let mut door = Door::to(scene.ca.address()).await?;
    let mut shim = through(&scene, &door).start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;

    let pki = Arc::new(Pki::new("successor"));
    let successor = Server::start(kind, &pki, &Settings::default()).await?;
    scene.workload.write_root(&(scene.pki.root_pem() + &pki.root_pem())).or_fail("write the roots")?;
    std::mem::replace(&mut scene.ca, successor).stop().await?;
    scene.write_token(|_| {})?;
    door.lead_to(scene.ca.address()).await?;
    renew(&shim)?;
    let second = stream.next(&shim).await?.serial()?;
    let call = scene.call(1, &shim).await?;
    assert_eq!((call.credentials(), call.end), ((true, None), Ok(second.clone())), "the old certificate is refused");
    // Not always in the same attempt: a server that closes with something unread resets the connection, and the door
    // may lose the alert by that.
    assert_eq!(shim.log().count(REFUSED), 1, "said once");

    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(scene.call(2, &shim).await?.credentials(), (true, Some(second)), "the new one is presented again");
    Ok(())
}

pub(crate) async fn a_server_with_another_root_or_name_is_not_trusted(kind: Kind) -> testkit::Result {
    let scene = Scene::new(kind).await?;
    let mut shim = scene.shim().env("ISTIOD_SAN", "istiod.example").start()?;
    let line = shim.wait_for_log("hostname mismatch").await?;
    assert!(line.contains("TLS handshake with "), "{line}");
    shim.terminate().await?;
    scene.workload.write_root(&Pki::new("other").root_pem()).or_fail("write the root")?;
    let shim = scene.shim().start()?;
    let line = shim.wait_for_log("TLS handshake with ").await?;
    assert!(line.contains("self-signed certificate in certificate chain") || line.contains("unable to get"), "{line}");
    assert_eq!(scene.ca.calls(), [], "nothing is sent to a server that is not trusted");
    Ok(())
}
