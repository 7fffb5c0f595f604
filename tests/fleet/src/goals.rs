//! The figures of a scenario, and the goals that they are held against.

use std::ops::Range;

use crate::{
    outcome::{Outcome, peak_and_mean},
    scenarios::Scenario,
    time::{HOUR, SECOND},
};

/// Most calls of one shim in an hour of an outage.
const OUTAGE_CALLS: f64 = 130.0;
/// Most that a peak may be above the mean.
const PEAK: f64 = 3.0;
/// How soon after an outage everybody must have a certificate, in seconds.
const RECOVERY: f64 = 600.0;
/// Most attempts of one shim in an hour that find no connection: with nothing valid held, and otherwise as above.
const LOOKS: f64 = 1500.0;
/// How soon after half an hour a fleet that its CA can serve has a certificate, in seconds: half of it, and the last.
const SOON: [f64; 2] = [2.0, 5.0];
/// The least of its capacity that a CA must be able to use, until so many of those who wait are served.
const GOODPUT: f64 = 0.5;
const MOST_OF_THEM: f64 = 0.66;
/// Share of the life after which certificates are renewed in the mean.
const RENEWED_AFTER: f64 = 0.55;
/// How long after its beginning a mass start is over, and only its renewals are left.
const SETTLED: usize = 3600;

/// What was measured of one kind of client in one scenario. Rates are those of the whole fleet, a second.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Calls, and certificates that were issued, while the scenario is looked at.
    pub calls: f64,
    /// See `calls`.
    pub certificates: f64,
    /// The peak of the calls, in ten seconds.
    pub peak: f64,
    /// The most calls of one client in the outage, for each hour of it.
    pub outage_calls: Option<f64>,
    /// The same of attempts that found no connection, which the CA knows nothing of.
    pub outage_refused: Option<f64>,
    /// Attempts that found no connection, while the scenario is looked at.
    pub refused: f64,
    /// From the outage's end until half of those who waited had what they wanted, in seconds.
    pub median_recovery: Option<f64>,
    /// The least share of its capacity that the CA issued in ten seconds, until most of those who waited were served.
    pub goodput: Option<f64>,
    /// From the outage's end until all had what they wanted, in seconds.
    pub recovery: Option<f64>,
    /// The peak of the calls in the recovery, in ten seconds.
    pub recovery_peak: f64,
    /// The mean of the calls in the recovery.
    pub recovery_mean: f64,
    /// Until the last had its first certificate, from its start, in seconds.
    pub slowest: Option<f64>,
    /// Certificates that lapsed.
    pub lapses: f64,
    /// The peak of the renewals in a day afterwards, against the mean of a fleet that has run for long.
    pub echo: f64,
}

/// One goal and what came of it.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What is wanted.
    pub goal: String,
    /// What was measured.
    pub measured: f64,
    /// Whether that is so.
    pub met: bool,
}

impl Figures {
    /// Of an outcome in which the fleet was `share` times smaller.
    pub fn of(scenario: &Scenario, outcome: &Outcome, share: u32) -> Self {
        let share = f64::from(share);
        let sum = |series: &[u32]| share * series[scenario.view.clone()].iter().map(|n| f64::from(*n)).sum::<f64>();
        let (recovery, outage_calls) = match scenario.outage {
            None => (None, None),
            Some((from, to)) => {
                // What a shorter one costs is what its hour costs: the first calls come quickly.
                let hours = ((to - from) as f64 / HOUR as f64).max(1.0);
                (outcome.recovery(), Some(outcome.outage_calls().map(|calls| f64::from(calls) / hours)))
            }
        };
        let end = scenario.end();
        // The last bin is whole.
        let recovering = end..end + recovery.map_or(0, |seconds| (seconds as usize).next_multiple_of(10));
        let (recovery_peak, recovery_mean) = peak_and_mean(&outcome.calls, recovering, 10);
        let afterwards = end + SETTLED..outcome.calls.len();
        let (renewals, _) = peak_and_mean(&outcome.calls, afterwards, scenario.window());
        Self {
            calls: sum(&outcome.calls),
            certificates: sum(&outcome.issued),
            peak: share * peak_and_mean(&outcome.calls, scenario.view.clone(), 10).0,
            outage_calls: outage_calls.map(|[calls, _]| calls),
            outage_refused: outage_calls.map(|[_, refused]| refused),
            refused: sum(&outcome.refused),
            median_recovery: outcome.recovery_of(0.5).filter(|_| scenario.outage.is_some()),
            goodput: goodput(scenario, outcome, share),
            recovery,
            recovery_peak: share * recovery_peak,
            recovery_mean: share * recovery_mean,
            slowest: outcome.slowest_first(),
            lapses: share * outcome.lapses.len() as f64,
            echo: share * renewals / scenario.steady_rate(),
        }
    }

    /// Calls for each certificate.
    pub fn calls_per_certificate(&self) -> f64 {
        self.calls / self.certificates.max(1.0)
    }
}

impl Scenario {
    /// What a fleet that has run for long asks the CA each second.
    pub fn steady_rate(&self) -> f64 {
        f64::from(self.clients) / (RENEWED_AFTER * self.life as f64 / SECOND as f64)
    }

    /// When what happens is over, in seconds.
    fn end(&self) -> usize {
        self.outage.map_or(self.view.start, |(_, to)| (to / SECOND) as usize)
    }

    /// Seconds over which renewals are counted: a hundredth of the life, or more where a small fleet has so few that
    /// their number is a matter of chance.
    fn window(&self) -> usize {
        let share = if self.clients < 50_000 { 20 } else { 100 };
        (self.life / SECOND) as usize / share
    }
}

/// What the CA issued of what it can, where it was least, in bins of ten seconds.
fn goodput(scenario: &Scenario, outcome: &Outcome, share: f64) -> Option<f64> {
    const BIN: usize = 10;
    scenario.outage?;
    let (from, bins) = (scenario.end(), (outcome.recovery_of(MOST_OF_THEM)? as usize) / BIN);
    let issued = outcome.issued.get(from..from + bins * BIN)?;
    let rate = |bin: &[u32]| share * bin.iter().map(|n| f64::from(*n)).sum::<f64>() / BIN as f64;
    issued.chunks(BIN).map(|bin| rate(bin) / scenario.capacity as f64).reduce(f64::min)
}

/// The goals for this scenario.
pub fn goals(scenario: &Scenario, figures: &Figures) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut want = |goal: String, measured: f64, range: Range<f64>| {
        let met = range.contains(&measured);
        verdicts.push(Verdict { scenario: scenario.name, goal, measured, met });
    };
    let capacity = scenario.capacity as f64;
    // Where nobody is refused, the start itself goes on for longer; and a few are too few for a share of them.
    if !["endless-queue", "few"].contains(&scenario.name) {
        want(format!("renewals afterwards at most {PEAK} times the mean"), figures.echo, below(PEAK));
    }
    if scenario.name != "outlived" {
        want("no certificate lapses".to_owned(), figures.lapses, below(0.0_f64.next_up()));
    }
    if let Some(calls) = figures.outage_calls {
        let recovery = figures.recovery.unwrap_or(f64::INFINITY);
        want(format!("at most {OUTAGE_CALLS} calls of a shim in an hour of the outage"), calls, below(OUTAGE_CALLS));
        want(format!("all have recovered within {RECOVERY} s"), recovery, below(RECOVERY));
        let refused = figures.outage_refused.unwrap_or(0.0);
        let most = if scenario.holds { OUTAGE_CALLS } else { LOOKS };
        want(format!("at most {most} attempts of a shim to connect in an hour of the outage"), refused, below(most));
        if let Some(goodput) = figures.goodput.filter(|_| !scenario.holds) {
            let goal = format!("the CA issues {GOODPUT} of what it can until {MOST_OF_THEM} are served");
            want(goal, goodput, GOODPUT..f64::INFINITY);
        }
        if scenario.name == "few" {
            let median = figures.median_recovery.unwrap_or(f64::INFINITY);
            want(format!("half of them have a certificate within {} s", SOON[0]), median, below(SOON[0]));
            want(format!("all of them have one within {} s", SOON[1]), recovery, below(SOON[1]));
        }
        // In a short outage waits are short as well, for the sake of each sidecar, and nobody knows how many there are:
        // the CA has to refuse some.
        if scenario.outage.is_some_and(|(from, to)| to - from >= HOUR) {
            let ratio = figures.recovery_peak / figures.recovery_mean;
            want(format!("calls in the recovery at most {PEAK} times their mean"), ratio, below(PEAK));
            // In a small fleet chance moves the count of ten seconds by some.
            let noise = if scenario.clients < 50_000 { 3.0 * (10.0 * capacity).sqrt() / 10.0 } else { 0.0 };
            let most = capacity + noise;
            want(format!("at most {most:.0} calls a second in the recovery"), figures.recovery_peak, below(most));
        }
    }
    own_goals(scenario, figures, &mut want);
    verdicts
}

/// What is wanted of one scenario alone.
fn own_goals(scenario: &Scenario, figures: &Figures, want: &mut impl FnMut(String, f64, Range<f64>)) {
    let capacity = scenario.capacity as f64;
    match scenario.name {
        "mass-start" | "restart" => {
            let slowest = figures.slowest.unwrap_or(f64::INFINITY);
            want(format!("all have a certificate within {RECOVERY} s"), slowest, below(RECOVERY));
            want("at most 4 calls for a certificate".to_owned(), figures.calls_per_certificate(), below(4.0));
        }
        "limited" | "limited-retry-info" => {
            let (slowest, needed) = (figures.slowest.unwrap_or(f64::INFINITY), f64::from(scenario.clients) / capacity);
            let most = 1.5 * needed;
            want(
                format!("all have a certificate within {most:.0} s, where {needed:.0} s are needed"),
                slowest,
                below(most),
            );
            want("at most 6 calls for a certificate".to_owned(), figures.calls_per_certificate(), below(6.0));
        }
        "endless-queue" => {
            let slowest = figures.slowest.unwrap_or(f64::INFINITY);
            want("no collapse: all have a certificate within three hours".to_owned(), slowest, below(10_800.0));
        }
        "roots" => {
            let usual = scenario.steady_rate() * scenario.view.len() as f64;
            want("new anchors cost no call".to_owned(), figures.calls / usual, below(1.5));
        }
        _ => {}
    }
}

/// A measure that is at most this.
fn below(most: f64) -> Range<f64> {
    0.0..most + f64::EPSILON * most
}
