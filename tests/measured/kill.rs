//! Processes that die without a word, and a socket whose file is deleted, under load: about a hundred rounds.
//!
//! Nothing is waited for longer than it takes. The figures that are printed are those of the machine, and a limit on
//! them only tells what hangs.

use std::{fs, time::Duration};

use testkit::{
    Failure, OrFail, POLL,
    scene::{Mesh, Sidecar, Tally, TokenSource, Traffic, World},
    scratch::Scratch,
    sds::{self, SdsClient},
};
use tokio::time::{Instant, sleep};

/// Longer than any test: no certificate is renewed but by a new shim.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(3600);

/// A mesh under load. Processes end before their directory goes.
struct Stage {
    mesh: Mesh,
    world: World,
    _scratch: Scratch,
}

impl Stage {
    async fn new() -> Result<Self, Failure> {
        let scratch = Scratch::new("tests")?;
        let world = World::start(CERTIFICATE_LIFE).await?;
        let mesh = Mesh::start(&world, scratch.path(), TokenSource::File, |shim| shim).await?;
        Ok(Self { mesh, world, _scratch: scratch })
    }

    /// All that was requested must have been answered, and every client must reach every server at the end.
    async fn conclude(self, tally: Tally, what: &str, spans: &mut [Duration]) -> testkit::Result {
        let explain = |failure| self.mesh.sidecars().fold(failure, |failure, sidecar| sidecar.explain(failure));
        if let Some(first) = tally.failures.first() {
            let (failed, answered) = (tally.failures.len(), tally.answered);
            let what = format!("{what}: {failed} requests failed beside {answered} answered ones; the first: {first}");
            return Err(self.world.explain(explain(Failure::new(what))));
        }
        assert!(tally.answered > 0, "there was no load");
        for client in &self.mesh.clients {
            for server in &self.mesh.servers {
                call(client, server).await.map_err(explain)?;
            }
        }
        println!("{what}: {}, {} requests, 0 failures", figures(spans), tally.answered);
        self.mesh.stop().await
    }
}

fn figures(spans: &mut [Duration]) -> String {
    spans.sort();
    let (median, longest) = (spans[spans.len() / 2].as_millis(), spans[spans.len() - 1].as_millis());
    format!("{} rounds, median {median} ms, longest {longest} ms", spans.len())
}

/// One request over a connection of its own.
async fn call(client: &Sidecar, server: &Sidecar) -> testkit::Result {
    let names = format!("{} to {}", client.name(), server.name());
    let answer = async { client.connect().await?.get(&server.name(), "/ip").await };
    let answer = answer.await.map_err(|failure| failure.context(&names))?;
    match answer.status {
        200 => Ok(()),
        status => Err(Failure::new(format!("{names}: {status} {}", answer.text()))),
    }
}

/// The serial number of the certificate that a client of our own gets on a connection of its own.
async fn served_serial(client: &SdsClient) -> Result<String, Failure> {
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let secrets = sds::secrets(&stream.recv().await?)?;
    secrets.first().ok_or_else(|| Failure::new("an answer without a secret"))?.serial()
}

/// Waits until Envoy has the certificate of the shim that runs now: it has found its way to it.
async fn reconciled(sidecar: &mut Sidecar) -> testkit::Result {
    let client = sidecar.shim.connect().await?;
    let serial = served_serial(&client).await.map_err(|failure| sidecar.explain(failure))?;
    sidecar.wait_for_serial(&serial).await
}

/// Kills the shim; every second time also its successor, as soon as that one serves.
async fn kill_shim(sidecar: &mut Sidecar, twice: bool) -> testkit::Result {
    for _ in 0..1 + usize::from(twice) {
        sidecar.shim.wait_for_log("serving SDS").await?;
        sidecar.shim.kill().await?;
        sidecar.restart_shim()?;
    }
    Ok(())
}

/// Deletes the socket's file and waits until the shim has made it anew. Those who are connected notice nothing.
async fn delete_socket(sidecar: &mut Sidecar) -> Result<Duration, Failure> {
    /// The promise is a second; a loaded machine may be late by several.
    const LIMIT: Duration = Duration::from_secs(10);
    let client = sidecar.shim.connect().await?;
    let serial = served_serial(&client).await?;
    let path = sidecar.shim.socket().to_owned();
    let start = Instant::now();
    fs::remove_file(&path).or_fail("delete the socket")?;
    while !path.exists() {
        if start.elapsed() > LIMIT {
            return Err(sidecar.shim.failure(format!("the socket is not there again after {LIMIT:?}")));
        }
        sleep(POLL).await;
    }
    let span = start.elapsed();
    let newcomer = sidecar.shim.connect().await?;
    assert_eq!(served_serial(&newcomer).await?, serial, "by the new file to the same shim");
    assert_eq!(served_serial(&client).await?, serial, "the old connection still works");
    Ok(span)
}

/// Every shim is killed again and again, and its socket's file deleted in between, while all clients call all servers.
#[tokio::test]
async fn neither_killed_shims_nor_deleted_sockets_cost_a_request() -> testkit::Result {
    const KILLS: usize = 12;
    const DELETIONS: usize = 5;
    let mut stage = Stage::new().await?;
    let calls = stage.world.ca.calls().len();
    let traffic = Traffic::start(&stage.mesh).await?;
    let lane = async |sidecar: &mut Sidecar| {
        let (mut spans, mut made_anew) = (Vec::new(), Vec::new());
        for round in 0..KILLS {
            let start = Instant::now();
            kill_shim(sidecar, round % 2 == 1).await?;
            reconciled(sidecar).await?;
            spans.push(start.elapsed());
            if round < DELETIONS {
                // The next round finds its way by the new file.
                made_anew.push(delete_socket(sidecar).await?);
            }
        }
        Ok::<_, Failure>((spans, made_anew))
    };
    let Mesh { clients, servers } = &mut stage.mesh;
    let ([c1, c2], [s1, s2]) = (&mut clients[..], &mut servers[..]) else { unreachable!("a mesh has two of each") };
    let lanes = tokio::try_join!(lane(c1), lane(c2), lane(s1), lane(s2))?;
    let (mut spans, mut made_anew) = (Vec::new(), Vec::new());
    for (lane, anew) in [lanes.0, lanes.1, lanes.2, lanes.3] {
        spans.extend(lane);
        made_anew.extend(anew);
    }
    let tally = traffic.stop().await;
    let more = stage.world.ca.calls().len() - calls;
    let lives = 4 * (KILLS + KILLS / 2);
    assert!(more <= lives, "{more} calls to the CA in {lives} lives of a shim");
    println!("sockets made anew: {}", figures(&mut made_anew));
    stage.conclude(tally, "shims killed, each second one twice", &mut spans).await
}

/// The Envoys and shims in one namespace are killed again and again, together or apart, with their socket's file gone or
/// not, and whoever starts again starts first or last. What goes through the Envoys of the other namespace goes on.
#[tokio::test]
async fn killed_envoys_recover_without_harm_to_others() -> testkit::Result {
    const ROUNDS: usize = 16;
    let mut stage = Stage::new().await?;
    let Mesh { clients, servers } = &mut stage.mesh;
    let ([steady_client, client], [steady_server, server]) = (&mut clients[..], &mut servers[..]) else {
        unreachable!("a mesh has two of each")
    };
    let (steady_client, steady_server) = (&*steady_client, &*steady_server);
    let traffic = Traffic::between([(steady_client, steady_server)].into_iter()).await?;
    let of_client = async {
        let mut spans = Vec::new();
        for round in 0..ROUNDS {
            spans.push(kill_envoy(client, round).await?);
            call(client, steady_server).await.map_err(|failure| client.explain(failure))?;
        }
        Ok::<_, Failure>(spans)
    };
    let of_server = async {
        let mut spans = Vec::new();
        for round in 0..ROUNDS {
            spans.push(kill_envoy(server, round).await?);
            call(steady_client, server).await.map_err(|failure| server.explain(failure))?;
        }
        Ok::<_, Failure>(spans)
    };
    let (mut spans, more) = tokio::try_join!(of_client, of_server)?;
    spans.extend(more);
    let tally = traffic.stop().await;
    stage.conclude(tally, "Envoys killed, most with their shims", &mut spans).await
}

/// Kills an Envoy, in three rounds of four also its shim, and waits until both are as before.
async fn kill_envoy(sidecar: &mut Sidecar, round: usize) -> Result<Duration, Failure> {
    let start = Instant::now();
    let (with_shim, envoy_first, without_file) = match round % 4 {
        0 => (false, false, false),
        1 => (true, true, false),
        2 => (true, false, false),
        _ => (true, false, true),
    };
    sidecar.envoy.kill().await?;
    if with_shim {
        sidecar.shim.kill().await?;
    } else {
        // The Envoy that starts next finds the file that the shim has made anew.
        delete_socket(sidecar).await?;
    }
    if without_file {
        fs::remove_file(sidecar.shim.socket()).or_fail("delete the socket")?;
    }
    if envoy_first {
        sidecar.restart_envoy()?;
        // It has its configuration, and nobody to ask for its secrets.
        let admin = sidecar.envoy.admin().clone();
        sidecar.envoy.wait_until("its admin interface", || async { admin.server_info().await.map(|_| true) }).await?;
    }
    if with_shim {
        sidecar.restart_shim()?;
    }
    if !envoy_first {
        sidecar.restart_envoy()?;
    }
    let ready = sidecar.envoy.wait_ready().await;
    ready.map_err(|failure| sidecar.explain(failure))?;
    reconciled(sidecar).await?;
    Ok(start.elapsed())
}
