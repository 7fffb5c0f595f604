//! The scenes, by the names that the kernel's command line has.

mod alone;
mod crowd;
mod units;

use std::{collections::BTreeMap, fs, sync::Arc, time::Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use testkit::{Failure, OrFail};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    eater, facts,
    pod::{Plan, Pod, World},
};

/// How many shims are started, or renew, at the same moment. All of them live at the same time; this many at once keep
/// the processor busy, and more would only run into the deadline of their calls.
const AT_ONCE: usize = 8;

/// Plays the scenes named, each `NAME` or `NAME=SHIMS`.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(wanted: &[String]) -> Result<(), Failure> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).or_fail("read the limit of files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).or_fail("raise the limit of files")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let counting = eater::counting().await?;
    facts::tell(&json!({ "kernel": release.trim(), "page": page, "counting": counting }));
    let world = Arc::new(World::new().await?);
    for word in wanted {
        let (scene, shims) = word.split_once('=').map_or((word.as_str(), None), |(name, n)| (name, n.parse().ok()));
        let started = Instant::now();
        let outcome = match scene {
            "one" => alone::one(&world).await,
            "many" => crowd::many(&world, shims.unwrap_or(128)).await,
            "eater" => crowd::eater(&world, shims.unwrap_or(12)).await,
            "ladder" => alone::ladder(&world, shims.unwrap_or(usize::MAX)).await,
            "exec" => alone::exec(&world).await,
            "files" => alone::files(&world).await,
            "locked" => units::locked().await,
            "strict" => alone::strict(&world).await,
            "kinds" => alone::kinds(&world).await,
            _ => Err(Failure::new("there is no such scene")),
        };
        if let Err(failure) = outcome {
            facts::trouble(scene, &failure.to_string());
        }
        facts::tell(&json!({ "scene": scene, "seconds": started.elapsed().as_secs() }));
    }
    Ok(())
}

/// What is done with a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    First,
    Renew,
}

/// Does the same with all pods, some at a time.
async fn each(pods: Vec<Pod>, act: Act) -> Result<Vec<Pod>, Failure> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (index, mut pod) in pods.into_iter().enumerate() {
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits.acquire().await;
            match act {
                Act::First => pod.first().await,
                Act::Renew => pod.renew().await,
            }
            (index, pod)
        });
    }
    let mut done = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        let (index, pod) = ended.or_fail("wait for a pod")?;
        done.insert(index, pod);
    }
    Ok(done.into_values().collect())
}

/// Starts so many, each once those before it have come so far that no more than [`AT_ONCE`] are starting.
async fn start(world: &World, plans: &[Plan]) -> Result<Vec<Pod>, Failure> {
    let mut pods = Vec::new();
    for plans in plans.chunks(AT_ONCE) {
        let new = plans.iter().map(|plan| world.start(plan)).collect::<Result<Vec<_>, _>>()?;
        pods.extend(each(new, Act::First).await?);
    }
    Ok(pods)
}

/// One fact of all pods: those that are alike are counted together, whatever numbers are in their texts.
async fn tell(scene: &str, phase: &str, settings: &Value, pods: &mut [Pod]) {
    let mut groups: BTreeMap<String, (usize, String, Value)> = BTreeMap::new();
    for pod in pods {
        let Some(fact) = pod.fact().await else { continue };
        let alike = [&fact["outcome"], &fact["level"], &fact["missing"], &fact["pages"], &fact["told"]];
        let alike: String = format!("{alike:?}").chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        let key = format!("{} {alike}", fact["pages"]);
        groups.entry(key).or_insert_with(|| (0, pod.name.clone(), fact)).0 += 1;
    }
    for (count, first, mut fact) in groups.into_values() {
        fact["scene"] = json!(scene);
        fact["phase"] = json!(phase);
        fact["settings"] = settings.clone();
        fact["count"] = json!(count);
        fact["first"] = json!(first);
        facts::tell(&fact);
    }
}

/// Ends all, and tells how that went.
async fn end(scene: &str, settings: &Value, pods: Vec<Pod>) {
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods {
        if let Some(end) = pod.end().await {
            *outcomes.entry(end).or_default() += 1;
        }
    }
    facts::tell(&json!({ "scene": scene, "phase": "end", "settings": settings, "ends": outcomes }));
}
