//! Many shims of one user, alone and beside a process of that user that takes what secret memory it may have.

use serde_json::{Value, json};
use testkit::Failure;

use super::{Act, each, end, start, tell};
use crate::{
    confine::Confinement,
    eater::{Eater, pages},
    pod::{Plan, World},
};

/// How often all renew.
const RENEWALS: usize = 2;
/// The limit of sidecars, in KiB.
const LIMIT: u64 = 8192;

fn plans(scene: &str, shims: usize) -> Vec<Plan> {
    (0..shims).map(|n| Plan::named(format!("{scene}-{n}"))).collect()
}

/// So many live at the same time and renew.
pub(super) async fn many(world: &World, shims: usize) -> Result<(), Failure> {
    let settings = json!({ "shims": shims });
    let mut pods = start(world, &plans("many", shims)).await?;
    tell("many", "started", &settings, &mut pods).await;
    for _ in 0..RENEWALS {
        pods = each(pods, Act::Renew).await?;
    }
    tell("many", "renewed", &settings, &mut pods).await;
    end("many", &settings, pods).await;
    Ok(())
}

/// A process of the same user takes all before they start and goes, comes back while they run, and goes again.
pub(super) async fn eater(world: &World, shims: usize) -> Result<(), Failure> {
    let eater = Eater::take(Confinement::default(), pages(LIMIT)?).await?;
    let mut settings = json!({ "shims": shims, "eater": had(eater.as_ref()) });
    let mut pods = start(world, &plans("eater", shims)).await?;
    tell("eater", "started beside it", &settings, &mut pods).await;
    let mut pods = each(pods, Act::Renew).await?;
    tell("eater", "renewed beside it", &settings, &mut pods).await;
    go(eater).await?;
    let mut pods = each(pods, Act::Renew).await?;
    tell("eater", "renewed after it", &settings, &mut pods).await;
    let eater = Eater::take(Confinement::default(), pages(LIMIT)?).await?;
    settings["eater"] = had(eater.as_ref());
    for _ in 0..2 {
        pods = each(pods, Act::Renew).await?;
    }
    tell("eater", "renewed when it came", &settings, &mut pods).await;
    go(eater).await?;
    let mut pods = each(pods, Act::Renew).await?;
    tell("eater", "renewed when it had gone", &settings, &mut pods).await;
    end("eater", &settings, pods).await;
    Ok(())
}

fn had(eater: Option<&Eater>) -> Value {
    eater.map_or(Value::Null, |eater| json!(eater.had))
}

async fn go(eater: Option<Eater>) -> Result<(), Failure> {
    match eater {
        Some(eater) => eater.let_go().await,
        None => Ok(()),
    }
}
