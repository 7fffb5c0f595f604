//! The acceptance scene: two `sleep` and two `httpbin` workloads, each with its own shim and its own Envoy, one CA.
//! Its [`Mesh`] and the [`Traffic`] through it also serve other tests.

mod control_plane;
mod files;
mod mesh;
mod migration;
mod narrator;
mod probe;
mod refusals;
mod request_token;
mod rotation;
mod traffic;
mod world;

use std::time::Duration;

use crate::{Failure, OrFail, scratch::Scratch};
use narrator::Narrator;

pub use mesh::{Mesh, Sidecar, TokenSource};
pub use traffic::{Tally, Traffic};
pub use world::World;

/// Lifetime of certificates while their rotation is shown.
const SHORT_LIFE: Duration = Duration::from_secs(8);

/// What is played.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// The acceptance scene.
    Acceptance,
    /// The same mesh on its way from mounted secrets to SDS, and back.
    Migration,
    /// The same mesh, its Envoys configured by a control plane that has its identity from a shim as well.
    ControlPlane,
}

/// How the scene is played.
pub struct Options {
    /// What is played.
    pub act: Act,
    /// Called with each line as soon as it is true.
    pub print: fn(&str),
    /// Leave the work directory in place when the scene fails.
    pub keep_traces: bool,
}

/// What was shown.
#[derive(Debug)]
pub struct Report {
    /// Every line that was printed.
    pub lines: Vec<String>,
}

/// The scene after all its proofs, with its mesh still up.
pub struct Scene {
    // Fields drop in this order: processes end before their directory goes.
    mesh: Mesh,
    world: World,
    narrator: Narrator,
    scratch: Scratch,
}

/// Plays the scene and clears it away: no process and no file is left.
pub async fn run(options: Options) -> Result<Report, Failure> {
    play(options).await?.finish().await
}

/// Plays the scene and leaves the mesh up until [`Scene::finish`] or drop.
pub async fn play(options: Options) -> Result<Scene, Failure> {
    let scratch = Scratch::new("demo")?;
    let mut narrator = Narrator::new(options.print);
    match perform(options.act, &mut narrator, &scratch).await {
        Ok((mesh, world)) => Ok(Scene { mesh, world, narrator, scratch }),
        Err(failure) if options.keep_traces => {
            let path = scratch.keep();
            Err(failure.remark(format!("the scene's files are left in {}", path.display())))
        }
        Err(failure) => Err(failure),
    }
}

async fn perform(act: Act, narrator: &mut Narrator, scratch: &Scratch) -> Result<(Mesh, World), Failure> {
    let (world, shown) = match act {
        Act::Acceptance => {
            let world = World::start(SHORT_LIFE).await?;
            let shown = show_all(&world, narrator, scratch).await;
            (world, shown)
        }
        Act::Migration => {
            let world = World::start_under(migration::NEW, migration::LIFE).await?;
            let shown = migration::show(&world, scratch.path(), narrator).await;
            (world, shown)
        }
        Act::ControlPlane => {
            let world = World::start(SHORT_LIFE).await?;
            let shown = control_plane::show(&world, scratch.path(), narrator).await;
            (world, shown)
        }
    };
    match shown {
        Ok(mesh) => Ok((mesh, world)),
        Err(failure) => Err(world.explain(failure)),
    }
}

async fn show_all(world: &World, narrator: &mut Narrator, scratch: &Scratch) -> Result<Mesh, Failure> {
    let mut mesh = Mesh::start(world, &scratch.path().join("file"), TokenSource::File, |shim| shim).await?;
    mesh.show_calls(narrator).await?;
    refusals::show(&mesh, world, narrator).await?;
    rotation::show(&mut mesh, narrator).await?;
    files::show(mesh.sidecars(), world, narrator)?;
    // What follows shows other things than rotation, so it need not compete with it for the machine.
    world.ca.set_ttl(None);
    request_token::show(world, &scratch.path().join("request"), narrator).await?;
    Ok(mesh)
}

impl Scene {
    /// Lines that say how to talk to the mesh while it is up.
    pub fn instructions(&self) -> Vec<String> {
        self.mesh.instructions()
    }

    /// Ends every process in order and removes every file.
    pub async fn finish(self) -> Result<Report, Failure> {
        let Self { mesh, world, narrator, scratch } = self;
        mesh.stop().await?;
        drop(world);
        let path = scratch.path().to_owned();
        scratch.remove().or_fail(format!("clear {} away", path.display()))?;
        Ok(Report { lines: narrator.into_lines() })
    }
}
