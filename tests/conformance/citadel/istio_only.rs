//! What only Istio's CA can show: the CA that it makes itself when nobody plugs one in, and that its program ends.

use std::sync::Arc;

use openssl::pkey::Id;
use testkit::{
    Failure,
    development_ca::Pki,
    fixture::{Open, renew, tokens},
    istio_ca::{IstioCa, IstioCaOptions},
};

use crate::upstream::{Scene, Server};

async fn self_signed() -> Result<Scene, Failure> {
    let ca = IstioCa::start_self_signed(&tokens(), &IstioCaOptions::default()).await?;
    Scene::around(Arc::new(Pki::new("unused")), Server::Istio(Box::new(ca)))
}

/// Istio's default: an RSA root that signs workloads itself, so that the answer is leaf and root.
#[tokio::test]
async fn a_ca_that_signs_itself_is_gotten_along_with() -> testkit::Result {
    let scene = self_signed().await?;
    for env in [&[] as &[(&str, &str)], &[("SDS_SHIM_COMPAT", "istio")]] {
        let before = scene.ca.calls().len();
        let mut shim = env.iter().fold(scene.shim(), |shim, (name, value)| shim.env(*name, *value)).start()?;
        let mut stream = Open::connect(&mut shim, "default").await?;
        let first = stream.next(&shim).await?;
        assert_eq!(first.spiffe_ids()?, [scene.workload.spiffe_id()]);
        assert_eq!(first.chain()?.len(), 1, "the leaf alone");
        let roots = Open::connect(&mut shim, "ROOTCA").await?.next(&shim).await?;
        assert_eq!(roots.trusted_ca_pem.trim(), scene.ca.root_pem().trim());
        let root = roots.trust_anchors()?.swap_remove(0);
        assert_eq!(root.public_key().map(|key| key.id()).ok(), Some(Id::RSA));
        renew(&shim)?;
        let second = stream.next(&shim).await?.serial()?;
        let call = scene.call(before + 2, &shim).await?;
        assert_eq!((call.credentials(), call.end), ((true, Some(first.serial()?)), Ok(second)));
        shim.terminate().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_program_ends_by_sigterm() -> testkit::Result {
    let mut ca = IstioCa::start_self_signed(&tokens(), &IstioCaOptions::default()).await?;
    assert_eq!(ca.process().terminate().await?.code(), Some(0));
    Ok(())
}

/// So it does when the test that started it was killed.
#[tokio::test]
async fn the_program_ends_with_its_standard_input() -> testkit::Result {
    let mut ca = IstioCa::start_self_signed(&tokens(), &IstioCaOptions::default()).await?;
    // To wait for a process closes its standard input.
    assert_eq!(ca.process().wait_exit().await?.code(), Some(0));
    Ok(())
}
