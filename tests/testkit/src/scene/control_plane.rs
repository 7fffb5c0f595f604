//! A control plane behind a sidecar of its own, without a secret mount: the Envoys of the mesh get their listeners and
//! clusters over ADS with mutual TLS, and both sides have their certificates from their shims.

use std::{collections::BTreeSet, path::Path, time::Duration};

use development_ca::{Leaf, Pki};
use serde_json::{Value, json};

use super::{
    files,
    mesh::{Mesh, Sidecar},
    narrator::Narrator,
    probe::{Introduction, Outcome, counter, probe},
    rotation,
    world::World,
};
use crate::{
    Failure,
    envoy::{Bootstrap, XDS_CLUSTER, ads::ControlPlane},
    workload::spiffe_id,
};

const CERTIFICATE_LIFE: Duration = Duration::from_secs(3600);
/// Envoys in the mesh.
const ENVOYS: usize = 4;

/// Plays it; what it leaves is the mesh, whose control plane is gone.
pub(super) async fn show(world: &World, directory: &Path, narrator: &mut Narrator) -> Result<Mesh, Failure> {
    let control_plane = ControlPlane::start().await?;
    let mut sidecar = Sidecar::control_plane(world, directory, control_plane.address()).await?;
    narrator.say(format!(
        "{} is up: its sidecar has the certificate for {} from its shim, which had a token and the CA's root",
        sidecar.name(),
        sidecar.workload.spiffe_id()
    ));
    let upstream = sidecar.upstream();
    let finish = |bootstrap: &Bootstrap| {
        let (built, resources) = bootstrap.build_discovered(&upstream);
        control_plane.set(&bootstrap.node(), resources);
        built
    };
    let started = Mesh::start_discovered(world, directory, &finish).await;
    let mut mesh = started.map_err(|failure| sidecar.explain(failure.remark(format!("{:?}", control_plane.seen()))))?;
    control_plane.accepted(ENVOYS, 1).await?;
    narrator.say(format!("{ENVOYS} Envoys have all their listeners and clusters over ADS, with mutual TLS"));
    mesh.show_calls(narrator).await?;
    strangers(&sidecar, world, narrator).await.map_err(|failure| sidecar.explain(failure))?;
    rotate(&control_plane, &sidecar, &mut mesh, narrator).await?;
    files::show(mesh.sidecars().chain([&sidecar]), world, narrator)?;
    impostor(&mut mesh, &sidecar.workload.spiffe_id(), narrator).await?;
    callers(world, narrator)?;
    sidecar.envoy.terminate().await?;
    sidecar.shim.terminate().await?;
    narrator.say("the control plane is gone, and the mesh goes on with what it has:");
    mesh.show_calls(narrator).await?;
    start_without(&mut sidecar, &mut mesh, narrator).await?;
    sidecar.envoy.terminate().await?;
    sidecar.shim.terminate().await?;
    Ok(mesh)
}

/// An Envoy that starts while the control plane is away gets its listeners when that is back.
async fn start_without(sidecar: &mut Sidecar, mesh: &mut Mesh, narrator: &mut Narrator) -> crate::Result {
    let Some(client) = mesh.clients.first_mut() else { return Ok(()) };
    client.envoy.terminate().await?;
    client.restart_envoy()?;
    let (admin, failures) = (client.envoy.admin().clone(), format!("cluster.{XDS_CLUSTER}.upstream_cx_connect_fail"));
    let waits = || async {
        Ok(admin.stat(&failures).await? > 0 && admin.stat("listener_manager.total_listeners_active").await? == 0)
    };
    let waited = client.envoy.wait_until("the control plane that is away", waits).await;
    waited.map_err(|failure| client.explain(failure))?;
    sidecar.restart_shim()?;
    sidecar.restart_envoy()?;
    let ready = sidecar.envoy.wait_ready().await;
    ready.map_err(|failure| sidecar.explain(failure))?;
    let has = || async { Ok(admin.stat("listener_manager.total_listeners_active").await? > 0) };
    let waited = client.envoy.wait_until("its listeners", has).await;
    waited.map_err(|failure| client.explain(sidecar.explain(failure)))?;
    narrator.say(format!("{}: an Envoy that started meanwhile has its listeners once it is back:", client.name()));
    mesh.show_calls(narrator).await
}

/// The control plane's sidecar lets in nobody but the workloads.
async fn strangers(sidecar: &Sidecar, world: &World, narrator: &mut Narrator) -> crate::Result {
    let (right, wrong) = (spiffe_id("foo", "sleep"), spiffe_id("foo", "intruder"));
    let foreign = Pki::new("another CA").issue(&Leaf::workload(&right, CERTIFICATE_LIFE));
    let intruder = world.pki.issue(&Leaf::workload(&wrong, CERTIFICATE_LIFE));
    let trials = [
        ("plaintext".to_owned(), Introduction::Plaintext, "connection_error"),
        ("TLS without a client certificate".to_owned(), Introduction::Tls(None), "fail_verify_no_cert"),
        (format!("certificate for {right} of another CA"), Introduction::Tls(Some(&foreign)), "fail_verify_error"),
        (format!("certificate of this CA for {wrong}"), Introduction::Tls(Some(&intruder)), "fail_verify_san"),
    ];
    for (trial, introduction, reason) in trials {
        let before = counter(sidecar.envoy.admin(), reason).await?;
        let outcome = probe(sidecar, &world.ca.root_pem(), introduction).await?;
        let counted = counter(sidecar.envoy.admin(), reason).await? - before;
        match outcome {
            Outcome::Refused(_) if counted == 1 => narrator.say(format!("{}: {trial}: refused", sidecar.name())),
            other => {
                let what = format!("{}: {trial}: {other:?}, {reason} +{counted}", sidecar.name());
                return Err(Failure::new(what));
            }
        }
    }
    Ok(())
}

/// Certificates rotate on both sides under load, and no stream ends; what is sent afterwards comes on the same ones.
async fn rotate(
    control_plane: &ControlPlane,
    sidecar: &Sidecar,
    mesh: &mut Mesh,
    narrator: &mut Narrator,
) -> crate::Result {
    let (opened, before) = (control_plane.seen().opened, serials(sidecar).await?);
    rotation::show(mesh, narrator).await?;
    let after = serials(sidecar).await?;
    let version = control_plane.push();
    control_plane.accepted(ENVOYS, version).await?;
    let seen = control_plane.seen();
    if before == after || (opened, seen.opened, seen.ended) != (ENVOYS, ENVOYS, 0) || !seen.refused.is_empty() {
        return Err(sidecar.explain(Failure::new(format!("the ADS streams did not outlive the rotation: {seen:?}"))));
    }
    narrator.say(format!(
        "the control plane's certificate rotated as well, and all {ENVOYS} ADS streams are those of the start: another \
         version sent on them was accepted by each Envoy"
    ));
    Ok(())
}

/// An Envoy does not talk to a control plane with another SPIFFE ID than expected.
async fn impostor(mesh: &mut Mesh, right: &str, narrator: &mut Narrator) -> crate::Result {
    let Some(client) = mesh.clients.first_mut() else { return Ok(()) };
    let wrong = spiffe_id("istio-system", "other");
    client.replace_envoy(|bootstrap| expect(bootstrap, &wrong)).await?;
    let (admin, mismatches) = (client.envoy.admin().clone(), format!("cluster.{XDS_CLUSTER}.ssl.fail_verify_san"));
    let refused = || async { Ok(admin.stat(&mismatches).await? > 0 && !admin.is_ready().await) };
    let waited = client.envoy.wait_until("a refusal of its own", refused).await;
    waited.map_err(|failure| client.explain(failure))?;
    narrator.say(format!("{}: a control plane that is not {wrong} as expected: refused", client.name()));
    client.replace_envoy(|bootstrap| expect(bootstrap, right)).await?;
    let ready = client.envoy.wait_ready().await;
    ready.map_err(|failure| client.explain(failure))
}

/// Writes the control plane's expected SPIFFE ID into a configuration.
fn expect(bootstrap: &mut Value, spiffe_id: &str) {
    let clusters = bootstrap["static_resources"]["clusters"].as_array_mut().into_iter().flatten();
    for cluster in clusters.filter(|cluster| cluster["name"] == XDS_CLUSTER) {
        let context = &mut cluster["transport_socket"]["typed_config"]["common_tls_context"];
        let validation = &mut context["combined_validation_context"]["default_validation_context"];
        validation["match_typed_subject_alt_names"][0]["matcher"] = json!({ "exact": spiffe_id });
    }
}

/// The CA was asked with a token alone at first, and with the certificate as well once there was one.
fn callers(world: &World, narrator: &mut Narrator) -> crate::Result {
    let calls = world.ca.calls();
    let (with, without): (Vec<_>, Vec<_>) = calls.iter().partition(|call| call.peer.is_some());
    if without.len() < ENVOYS + 1 || with.is_empty() {
        return Err(Failure::new(format!("{} calls with a certificate, {} without", with.len(), without.len())));
    }
    narrator.say(format!(
        "the CA was asked {} times with a token alone, as for each first certificate, and {} times with mutual TLS",
        without.len(),
        with.len()
    ));
    Ok(())
}

async fn serials(sidecar: &Sidecar) -> Result<BTreeSet<String>, Failure> {
    Ok(sidecar.envoy.admin().certificates().await?.into_iter().map(|certificate| certificate.serial).collect())
}
