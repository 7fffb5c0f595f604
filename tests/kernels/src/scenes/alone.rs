//! One shim at a time: what it holds, what it tells, and how it ends.

use serde_json::{Value, json};
use testkit::Failure;

use super::{Act, each, end, start, tell};
use crate::{
    confine::{Confinement, User, limit},
    pod::{MountedKey, Plan, World},
};

/// As in a sidecar.
pub(super) async fn one(world: &World) -> Result<(), Failure> {
    lives(world, "one", Plan::named("one")).await
}

/// Behind the strict filter of system calls.
pub(super) async fn strict(world: &World) -> Result<(), Failure> {
    lives(world, "strict", Plan::named("strict").with(&[("SDS_SHIM_SECCOMP", "strict")])).await
}

/// Before a command that it follows, and that ends when it is asked to.
pub(super) async fn exec(world: &World) -> Result<(), Failure> {
    const COMMAND: &[&str] =
        &["/bin/busybox", "sh", "-c", "trap 'kill $!; exit 0' TERM; /bin/busybox sleep 100000 & wait"];
    lives(world, "exec", Plan { command: COMMAND, ..Plan::named("exec") }).await
}

/// With a mounted certificate, which it follows.
pub(super) async fn files(world: &World) -> Result<(), Failure> {
    let plan = Plan { mounted: Some(MountedKey::P256), ..Plan::named("files") };
    let mut pods = start(world, &[plan]).await?;
    tell("files", "started", &Value::Null, &mut pods).await;
    for _ in 0..2 {
        pods = each(pods, Act::Renew).await?;
    }
    tell("files", "files changed twice", &Value::Null, &mut pods).await;
    end("files", &Value::Null, pods).await;
    Ok(())
}

/// Serves, renews by command and by signal, and ends.
async fn lives(world: &World, scene: &str, plan: Plan) -> Result<(), Failure> {
    let mut pods = start(world, &[plan]).await?;
    tell(scene, "started", &Value::Null, &mut pods).await;
    let code = pods[0].renew_by_command().await?;
    tell(scene, "renewed by command", &json!({ "code": code }), &mut pods).await;
    let mut pods = each(pods, Act::Renew).await?;
    tell(scene, "renewed by signal", &Value::Null, &mut pods).await;
    end(scene, &Value::Null, pods).await;
    Ok(())
}

/// Each source of keys: what it takes of secret memory.
pub(super) async fn kinds(world: &World) -> Result<(), Failure> {
    let plans = [
        Plan::named("rsa-2048").with(&[("WORKLOAD_RSA_KEY_SIZE", "2048")]),
        Plan::named("rsa-4096").with(&[("WORKLOAD_RSA_KEY_SIZE", "4096")]),
        Plan::named("p-384").with(&[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")]),
        Plan { provisioned: true, ..Plan::named("provisioned") },
        Plan::named("output-certs").with(&[("OUTPUT_CERTS", "./etc/output")]),
        Plan { mounted: Some(MountedKey::Rsa4096), ..Plan::named("mounted-rsa-4096") },
    ];
    for plan in plans {
        let settings = json!({ "kind": plan.name });
        let mut pods = start(world, &[plan]).await?;
        tell("kinds", "started", &settings, &mut pods).await;
        for _ in 0..2 {
            pods = each(pods, Act::Renew).await?;
        }
        tell("kinds", "renewed", &settings, &mut pods).await;
        end("kinds", &settings, pods).await;
    }
    Ok(())
}

/// Each limit of locked memory, for each user or the first of them, with each level that can be required.
pub(super) async fn ladder(world: &World, users: usize) -> Result<(), Failure> {
    for memlock_kib in [Some(64), Some(256), Some(512), Some(8192), None] {
        for user in User::ALL.into_iter().take(users) {
            for required in ["none", "locked", "secret"] {
                let confinement = Confinement { user, memlock_kib };
                let plan = Plan { confinement, ..Plan::named("ladder") }.with(&[("SDS_SHIM_REQUIRE_LOCKED", required)]);
                let settings = json!({ "memlock": limit(memlock_kib), "user": user.to_string(), "required": required });
                let mut pods = start(world, &[plan]).await?;
                tell("ladder", "started", &settings, &mut pods).await;
                let mut pods = each(pods, Act::Renew).await?;
                tell("ladder", "renewed", &settings, &mut pods).await;
                end("ladder", &settings, pods).await;
            }
        }
    }
    Ok(())
}
