//! While an RSA key is made, which takes seconds, everybody else is served. These tests start the shim as another user, so
//! they need root.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use testkit::{
    Failure,
    confined::Confinement,
    fixture::{Logged, Site},
    sds,
};

/// A key that took less shows nothing.
const LONG: Duration = Duration::from_millis(400);
/// Keys take a random time; one of so many is long.
const TRIES: usize = 20;

#[tokio::test]
async fn probes_are_answered_while_a_large_key_is_made() -> testkit::Result {
    let site = Site::new().await?;
    let shim = site.shim().confined(Confinement::default()).env("WORKLOAD_RSA_KEY_SIZE", "4096");
    let mut shim = Logged(shim.start()?);
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let mut answer = stream.recv().await?;
    for _ in 0..TRIES {
        stream.send(sds::ack(&answer, &["default"]));
        let begin = Instant::now();
        shim.signal(Signal::SIGUSR1)?;
        let (mut probes, mut longest) = (0, Duration::ZERO);
        answer = loop {
            let asked = Instant::now();
            assert_eq!(shim.admin("/livez").await?.status, 200);
            (probes, longest) = (probes + 1, longest.max(asked.elapsed()));
            tokio::select! {
                biased;
                answer = stream.recv() => break answer?,
                () = std::future::ready(()) => {}
            }
        };
        let whole = begin.elapsed();
        println!("{probes} probes in {whole:.1?}, the longest took {longest:.1?}");
        if whole > LONG {
            assert!(longest < whole / 2, "a probe waited for the key");
            return Ok(());
        }
    }
    Err(Failure::new("no key took long enough to show anything"))
}
