//! A mesh moves to another trust domain and back under load: no request fails.

use std::{fs, sync::Arc, time::Duration};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, PATIENCE, POLL,
    development_ca::{CaOptions, Call, DevelopmentCa, Outcome, Pki},
    envoy::Bootstrap,
    scene::{Mesh, Traffic, World},
    scratch::Scratch,
    shim::ShimBuilder,
};
use tokio::time::{Instant, sleep};

const OLD: &str = "cluster.local";
const NEW: &str = "new.example";
const FILE: &str = "trust-domain";

/// Adds, to each name that a peer may have in the old trust domain, the same in the new one.
fn accept_both(config: &mut Value) {
    match config {
        Value::Object(fields) => {
            if let Some(Value::Array(names)) = fields.get_mut("match_typed_subject_alt_names") {
                let moved = names.iter().map(|name| {
                    let exact = name["matcher"]["exact"].as_str().unwrap_or_default().replace(OLD, NEW);
                    json!({ "san_type": "URI", "matcher": { "exact": exact } })
                });
                let moved: Vec<_> = moved.collect();
                names.extend(moved);
            }
            fields.values_mut().for_each(accept_both);
        }
        Value::Array(values) => values.iter_mut().for_each(accept_both),
        _ => {}
    }
}

/// All workloads of a mesh move, one after the other, and back, under traffic in which each request is a full
/// handshake.
async fn a_mesh_moves(world: &World, edit: impl Fn(ShimBuilder) -> ShimBuilder) -> testkit::Result {
    let scratch = Scratch::new("tests")?;
    let finish = |bootstrap: &Bootstrap| {
        let mut config = bootstrap.build();
        accept_both(&mut config);
        config
    };
    let mut mesh = Mesh::start_finished(
        world,
        scratch.path(),
        |shim| edit(shim.env("SDS_SHIM_TRUST_DOMAIN_FILE", format!("./{FILE}"))),
        finish,
    )
    .await?;
    let traffic = Traffic::start(&mesh).await?;
    for domain in [NEW, OLD] {
        for sidecar in mesh.sidecars_mut() {
            fs::write(sidecar.workload.path().join(FILE), domain).or_fail("write the file")?;
            let expected = sidecar.workload.spiffe_id().replace(OLD, domain);
            let admin = sidecar.envoy.admin().clone();
            let used = || async {
                let used = admin.certificates().await?;
                Ok(!used.is_empty() && used.iter().all(|one| one.uris == [expected.as_str()]))
            };
            let waited = sidecar.envoy.wait_until(&format!("a certificate of {expected}"), used).await;
            waited.map_err(|failure| sidecar.explain(failure))?;
            requests_flow(&traffic).await?;
        }
    }
    let tally = traffic.stop().await;
    println!("{} requests, {} failures", tally.answered, tally.failures.len());
    assert!(tally.failures.is_empty() && tally.answered >= 8 * 4 * 5, "{tally:#?}");
    mesh.stop().await
}

/// Until each client has sent each server some more, or one has failed.
async fn requests_flow(traffic: &Traffic) -> testkit::Result {
    let (before, deadline): (Vec<_>, _) = (traffic.so_far().collect(), Instant::now() + PATIENCE);
    while !traffic
        .so_far()
        .zip(&before)
        .all(|(now, before)| !now.failures.is_empty() || now.answered >= before.answered + 5)
    {
        if Instant::now() > deadline {
            return Err(Failure::new("requests do not flow"));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// One CA that issues in both trust domains.
async fn world() -> Result<World, Failure> {
    let world = World::start(Duration::from_secs(3600)).await?;
    world.ca.set_trust_domains(&[OLD, NEW]);
    Ok(world)
}

#[tokio::test]
async fn a_mesh_moves_to_another_trust_domain_and_back_without_a_failed_request() -> testkit::Result {
    a_mesh_moves(&world().await?, |shim| shim).await
}

#[tokio::test]
async fn a_mesh_that_tells_trust_domains_apart_moves_without_a_failed_request() -> testkit::Result {
    let bundles = [OLD, NEW].map(|domain| format!("{domain}=./var/run/secrets/istio/root-cert.pem"));
    a_mesh_moves(&world().await?, move |shim| shim.env("SDS_SHIM_BUNDLES", bundles.join(","))).await
}

/// The new trust domain has a CA of its own, with another root, which everybody trusts before anybody moves.
#[tokio::test]
async fn a_mesh_moves_to_the_trust_domain_of_another_ca_without_a_failed_request() -> testkit::Result {
    let (world, pki) = (World::start(Duration::from_secs(3600)).await?, Arc::new(Pki::new("new")));
    let server_pki = Some(Arc::clone(&world.pki));
    let options = CaOptions { trust_domain: NEW.to_owned(), server_pki, ..CaOptions::default() };
    let other = DevelopmentCa::start(Arc::clone(&pki), Arc::clone(&world.tokens), options).await;
    let other = other.or_fail("start the new CA")?;
    let addresses = [&world.ca, &other].map(|ca| format!("localhost:{}", ca.address().port())).join(",");
    let scratch = Scratch::new("tests")?;
    let root = scratch.path().join("root.pem");
    fs::write(&root, pki.root_pem()).or_fail("write the new root")?;
    let root = root.display().to_string();
    a_mesh_moves(&world, |shim| shim.env("CA_ADDR", &addresses).env("SDS_SHIM_EXTRA_ROOTS", &root)).await?;
    let issued = |call: &Call| matches!(&call.outcome, Outcome::Issued { spiffe_id, .. } if spiffe_id.contains(NEW));
    assert_eq!(other.calls().iter().filter(|call| issued(call)).count(), 4, "one for each workload");
    Ok(())
}
