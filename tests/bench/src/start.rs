//! From the moment of execution until the socket accepts, and until a client has its first `default`.

use nix::sys::signal::Signal;
use testkit::{Failure, OrFail};

use crate::{
    agent::{FLOOR, Launch, OURS, PEER},
    ground::Ground,
    plan::Plan,
    report::{Figure, Section},
    sds::Crowd,
    summary::milliseconds,
};

/// One of the kinds of start that take turns.
struct Kind {
    /// Figure, and whose result it is.
    id: &'static str,
    what: &'static str,
    of: &'static str,
    cold: bool,
    long: bool,
    launch: fn(&Ground) -> Result<Launch, Failure>,
}

const KINDS: &[Kind] = &[
    Kind { id: "warm", what: WARM, of: OURS, cold: false, long: false, launch: Launch::ours },
    Kind { id: "warm", what: WARM, of: PEER, cold: false, long: false, launch: peer_with_ecdsa },
    Kind { id: "warm", what: WARM, of: FLOOR, cold: false, long: false, launch: Launch::floor },
    Kind { id: "cold", what: COLD, of: OURS, cold: true, long: false, launch: Launch::ours },
    Kind { id: "cold", what: COLD, of: PEER, cold: true, long: true, launch: peer_with_ecdsa },
    Kind { id: "cold", what: COLD, of: FLOOR, cold: true, long: false, launch: Launch::floor },
    Kind { id: "rsa", what: RSA, of: OURS, cold: false, long: true, launch: ours_with_rsa },
    Kind { id: "rsa", what: RSA, of: PEER, cold: false, long: true, launch: Launch::peer },
    Kind { id: "default", what: DEFAULT, of: OURS, cold: false, long: true, launch: Launch::ours },
    Kind { id: "default", what: DEFAULT, of: PEER, cold: false, long: true, launch: peer_as_it_comes },
    Kind { id: "cloud", what: CLOUD, of: OURS, cold: false, long: true, launch: Launch::ours },
    Kind { id: "cloud", what: CLOUD, of: PEER, cold: false, long: true, launch: peer_with_cloud },
];

const WARM: &str = "ECDSA, warm";
const COLD: &str = "ECDSA, the program's file not in memory";
const RSA: &str = "RSA 2048, warm";
const CLOUD: &str = "ECDSA, warm, with the agent's look-up of a cloud";
const DEFAULT: &str = "defaults, warm: ECDSA; the agent's RSA 2048 and look-up of a cloud";

fn peer_with_ecdsa(ground: &Ground) -> Result<Launch, Failure> {
    Ok(Launch::peer(ground)?.env("ECC_SIGNATURE_ALGORITHM", "ECDSA"))
}

fn peer_with_cloud(ground: &Ground) -> Result<Launch, Failure> {
    Ok(peer_with_ecdsa(ground)?.without("CLOUD_PLATFORM"))
}

fn peer_as_it_comes(ground: &Ground) -> Result<Launch, Failure> {
    Ok(Launch::peer(ground)?.without("CLOUD_PLATFORM"))
}

fn ours_with_rsa(ground: &Ground) -> Result<Launch, Failure> {
    Ok(Launch::ours(ground)?.env("WORKLOAD_RSA_KEY_SIZE", "2048"))
}

/// Starts all kinds in turn.
pub(crate) fn measure(ground: &Ground, plan: &Plan) -> Result<Section, Failure> {
    let mut times = vec![(Vec::new(), Vec::new()); KINDS.len()];
    // The first start of each is not counted: it finds less in memory than the others.
    for run in 0..=plan.starts {
        for (kind, (accepts, first)) in KINDS.iter().zip(&mut times) {
            if kind.long && run > plan.long_starts {
                continue;
            }
            let (accepted, answered) = once(kind, ground)?;
            if run > 0 {
                accepts.push(accepted);
                first.push(answered);
            }
        }
    }
    let mut section = Section::new(
        "start",
        "Start: exec to the first certificate",
        "From the moment before exec; `default` counts when the last byte of it has arrived at the client. The floor \
         is a bare program that makes a key and a CSR, and has one TLS 1.3 handshake, one HTTP/2 request to the same \
         CA and one write to a socket.",
    );
    for (part, what) in [("first_default", "first `default`"), ("accepts", "the socket accepts")] {
        for (kind, (accepts, first)) in KINDS.iter().zip(&times) {
            let values = if part == "accepts" { accepts } else { first };
            let figure = || Figure::new(format!("start.{}.{part}", kind.id), format!("{what}: {}", kind.what), "ms");
            section.add(figure, kind.of, values);
        }
    }
    Ok(section)
}

/// Milliseconds until the socket accepts and until the first `default`.
fn once(kind: &Kind, ground: &Ground) -> Result<(f64, f64), Failure> {
    let launch = (kind.launch)(ground)?;
    if kind.cold {
        launch.forget_program()?;
    }
    first_default(launch)
}

/// The same of a program by itself, whose pod goes with it.
pub(crate) fn first_default(launch: Launch) -> Result<(f64, f64), Failure> {
    let pod = launch.directory.clone();
    let mut running = launch.start()?;
    let (crowd, round) = Crowd::open(&mut running, 1)?;
    let times = (milliseconds(crowd.accepted - running.since), milliseconds(round.last - running.since));
    drop(crowd);
    // What the agent has started ends with it; the floor ends with its only connection.
    running.signal(Signal::SIGKILL)?;
    drop(running);
    std::fs::remove_dir_all(&pod).or_fail(format!("remove {}", pod.display()))?;
    Ok(times)
}
