//! What a fleet costs its CA: N sidecars in virtual time, with the schedule, the back-off and the waits that ship, and
//! Istio's agent beside them as its source has it.
//!
//! `simulation` runs `clients` against a CA as `ca` models it; `scenarios` says what happens to them, `goals` what must
//! come of it, and `report` tells it. `real` holds the model against processes.
#![forbid(unsafe_code)]

pub mod ca;
pub mod capacity;
pub mod clients;
pub mod goals;
pub mod outcome;
pub mod plot;
pub mod real;
pub mod report;
pub mod scenarios;
pub mod simulation;
pub mod time;
