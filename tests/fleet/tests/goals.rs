//! The goals for the CA's load, held on a small fleet in virtual time with the schedule and back-off that ship.

use fleet::{
    clients::{Agent, Shim},
    goals::{Figures, goals},
    scenarios,
};

/// A fleet for which a run takes moments; `make fleet` takes 100,000.
const CLIENTS: u32 = 20_000;

#[test]
fn every_scenario_meets_its_goals() {
    let mut missed = Vec::new();
    for scenario in scenarios::all(CLIENTS) {
        let figures = Figures::of(&scenario, &scenario.run::<Shim>(scenario.clients, 1), 1);
        let verdicts = goals(&scenario, &figures);
        assert!(verdicts.len() >= 2);
        missed.extend(verdicts.into_iter().filter(|verdict| !verdict.met));
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// The goals tell a good client from another: Istio's agent, with its own constants, misses them where it is known to.
#[test]
fn the_reference_misses_what_it_is_known_to_miss() {
    let missed = |scenario: scenarios::Scenario| {
        let clients = CLIENTS / 10;
        let figures = Figures::of(&scenario, &scenario.run::<Agent>(clients, 1), 10);
        let missed = goals(&scenario, &figures).into_iter().filter(|verdict| !verdict.met);
        missed.map(|verdict| verdict.goal).collect::<Vec<_>>().join("; ")
    };
    assert!(missed(scenarios::outage(CLIENTS)).contains("attempts of a shim to connect in an hour"));
    assert!(missed(scenarios::mass_start(CLIENTS)).contains("renewals afterwards"));
    assert!(missed(scenarios::roots(CLIENTS)).contains("no call"));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let scenario = scenarios::short_lives(200);
    let run = |seed| scenario.run::<Shim>(200, seed).calls;
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
