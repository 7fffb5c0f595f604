//! The same mesh, with the token that Envoy sends in each SDS request (Istio 1.1's flow).

use std::path::Path;

use tonic::Code;

use super::{
    files,
    mesh::{Mesh, Sidecar, TokenSource},
    narrator::Narrator,
    world::World,
};
use crate::{Failure, OrFail, sds};

pub(super) async fn show(world: &World, directory: &Path, narrator: &mut Narrator) -> crate::Result {
    let mesh = Mesh::start(world, directory, TokenSource::Request, |shim| shim).await?;
    narrator.say(
        "the same scene, the shims without token file and name, each Envoy sending its token with its SDS streams:",
    );
    mesh.show_calls(narrator).await?;
    for sidecar in mesh.sidecars() {
        if sidecar.workload.token_file().exists() {
            return Err(Failure::new(format!("the shim of {} has a token file", sidecar.name())));
        }
    }
    files::show(mesh.sidecars(), world, narrator)?;
    for server in &mesh.servers {
        refuse_anonymous(server, narrator).await?;
    }
    mesh.stop().await
}

async fn refuse_anonymous(sidecar: &Sidecar, narrator: &mut Narrator) -> crate::Result {
    let explain = |failure| sidecar.explain(failure);
    let client = sds::SdsClient::connect(sidecar.shim.socket()).await;
    let client = client.or_fail("connect to the SDS socket").map_err(explain)?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let closed = stream.expect_closed().await.map_err(explain)?;
    if closed.code() != Code::Unauthenticated {
        return Err(explain(Failure::new(format!("an SDS stream without a token was not refused: {closed}"))));
    }
    narrator.say(format!("an SDS stream without a token to the shim of {}: refused ({closed})", sidecar.name()));
    Ok(())
}
