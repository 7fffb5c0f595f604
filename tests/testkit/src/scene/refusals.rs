//! What the sidecars must refuse, each beside the same thing done right.

use std::time::Duration;

use development_ca::{Leaf, Pki};

use super::{
    mesh::{IMPOSTOR, Mesh, Sidecar},
    narrator::Narrator,
    probe::{Introduction, Outcome, counter, probe},
    world::World,
};
use crate::{Failure, workload::spiffe_id};

/// Longer than any clock of this scene.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(3600);

pub(super) async fn show(mesh: &Mesh, world: &World, narrator: &mut Narrator) -> crate::Result {
    for server in &mesh.servers {
        strangers(server, world, narrator).await.map_err(|failure| server.explain(failure))?;
    }
    for client in &mesh.clients {
        impostor(client, narrator).await.map_err(|failure| client.explain(failure))?;
    }
    Ok(())
}

/// A server's sidecar must let nobody in but the clients that it is told of.
async fn strangers(server: &Sidecar, world: &World, narrator: &mut Narrator) -> crate::Result {
    let right = spiffe_id("foo", "sleep");
    let wrong = spiffe_id("foo", "intruder");
    let known = world.pki.issue(&Leaf::workload(&right, CERTIFICATE_LIFE));
    let foreign = Pki::new("another CA").issue(&Leaf::workload(&right, CERTIFICATE_LIFE));
    let intruder = world.pki.issue(&Leaf::workload(&wrong, CERTIFICATE_LIFE));
    let root_pem = world.ca.root_pem();
    let name = server.name();

    // Without it the refusals could have any other reason.
    match probe(server, &root_pem, Introduction::Tls(Some(&known))).await? {
        Outcome::Answered(200) => narrator.say(format!("{name}: our probe with a certificate for {right}: 200")),
        other => return Err(Failure::new(format!("{name}: the right certificate got {other:?}"))),
    }
    let trials = [
        ("plaintext to its mTLS port".to_owned(), Introduction::Plaintext, "connection_error"),
        ("TLS without a client certificate".to_owned(), Introduction::Tls(None), "fail_verify_no_cert"),
        (format!("certificate for {right} of another CA"), Introduction::Tls(Some(&foreign)), "fail_verify_error"),
        (format!("certificate of this CA for {wrong}"), Introduction::Tls(Some(&intruder)), "fail_verify_san"),
    ];
    for (trial, introduction, reason) in trials {
        let before = counter(server.envoy.admin(), reason).await?;
        let outcome = probe(server, &root_pem, introduction).await?;
        let counted = counter(server.envoy.admin(), reason).await? - before;
        match outcome {
            Outcome::Refused(told) if counted == 1 => {
                narrator.say(format!("{name}: {trial}: refused ({told}; sidecar counts {reason} +1)"));
            }
            other => return Err(Failure::new(format!("{name}: {trial}: {other:?}, {reason} +{counted}"))),
        }
    }
    Ok(())
}

/// The other direction: a client's sidecar must not talk to a server with another SPIFFE ID than expected.
async fn impostor(client: &Sidecar, narrator: &mut Narrator) -> crate::Result {
    let mismatches = format!("cluster.{IMPOSTOR}.ssl.fail_verify_san");
    let name = client.name();
    let before = client.envoy.admin().stat(&mismatches).await?;
    let status = client.connect().await?.get(IMPOSTOR, "/ip").await?.status;
    let counted = client.envoy.admin().stat(&mismatches).await? - before;
    if status != 503 || counted == 0 {
        let what = format!("{name}: a server with the SPIFFE ID of httpbin.bar passed for httpbin.foo: {status}");
        return Err(Failure::new(what));
    }
    narrator.say(format!(
        "{name}: call to httpbin.foo where the server has the SPIFFE ID of httpbin.bar: refused ({status}; sidecar counts \
         fail_verify_san +{counted})"
    ));
    Ok(())
}
