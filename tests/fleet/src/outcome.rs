//! What came of a simulation: what the CA saw each second, and how each client fared.

use crate::{
    ca::Answer,
    time::{Micros, SECOND, seconds},
};

/// What was counted.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Calls that arrived in each second.
    pub calls: Vec<u32>,
    /// Attempts in each second that found no connection: the CA knows nothing of them.
    pub refused: Vec<u32>,
    /// Certificates that were issued in each second.
    pub issued: Vec<u32>,
    /// Calls of each client during the outage.
    pub in_outage: Vec<u32>,
    /// Attempts of each client during the outage that found no connection.
    pub refused_in_outage: Vec<u32>,
    /// When certificates lapsed that had no successor, in seconds.
    pub lapses: Vec<i64>,
    /// How long each first certificate took, from the client's start.
    pub firsts: Vec<Micros>,
    /// How long the clients that had something to make up for at the outage's end took from there.
    pub recoveries: Vec<Micros>,
    /// Clients that had nothing valid at the end.
    pub without: usize,
    outage: Option<(Micros, Micros)>,
    clients: Vec<Held>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    not_after: Option<i64>,
    started: Micros,
    /// Since when it has wanted a certificate in vain.
    wanting: Option<Micros>,
}

impl Outcome {
    pub(crate) fn new(count: u32, outage: Option<(Micros, Micros)>) -> Self {
        let count = count as usize;
        Self {
            calls: Vec::new(),
            refused: Vec::new(),
            issued: Vec::new(),
            in_outage: vec![0; count],
            refused_in_outage: vec![0; count],
            lapses: Vec::new(),
            firsts: Vec::new(),
            recoveries: Vec::new(),
            without: 0,
            outage,
            clients: vec![Held::default(); count],
        }
    }

    pub(crate) fn started(&mut self, client: u32, at: Micros) {
        self.clients[client as usize] = Held { not_after: None, started: at, wanting: Some(at) };
    }

    pub(crate) fn called(&mut self, client: u32, at: Micros, refused: bool) {
        let (series, in_outage) = match refused {
            true => (&mut self.refused, &mut self.refused_in_outage),
            false => (&mut self.calls, &mut self.in_outage),
        };
        count(series, at);
        if self.outage.is_some_and(|(from, to)| (from..to).contains(&at)) {
            in_outage[client as usize] += 1;
        }
    }

    pub(crate) fn answered(&mut self, client: u32, at: Micros, answer: Answer) {
        let held = &mut self.clients[client as usize];
        let Answer::Issued { not_after } = answer else {
            held.wanting.get_or_insert(at);
            return;
        };
        match held.not_after.replace(not_after) {
            None => self.firsts.push(at - held.started),
            Some(end) if end < seconds(at) => self.lapses.push(end),
            Some(_) => {}
        }
        if let (Some(since), Some((_, end))) = (held.wanting.take(), self.outage)
            && since <= end
            && at >= end
        {
            self.recoveries.push(at - end);
        }
        count(&mut self.issued, at);
    }

    pub(crate) fn end(&mut self, at: Micros) {
        for series in [&mut self.calls, &mut self.refused, &mut self.issued] {
            series.resize((at / SECOND) as usize, 0);
        }
        let now = seconds(at);
        let lapsed = self.clients.iter().filter_map(|held| held.not_after).filter(|end| *end < now);
        self.lapses.extend(lapsed);
        self.without = self.clients.iter().filter(|held| held.not_after.is_none_or(|end| end < now)).count();
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        self.calls.iter().map(|calls| u64::from(*calls)).sum()
    }

    /// All certificates.
    pub fn certificates(&self) -> u64 {
        self.issued.iter().map(|issued| u64::from(*issued)).sum()
    }

    /// How long it took after the outage until nobody had anything to make up for, in seconds.
    pub fn recovery(&self) -> Option<f64> {
        self.recovery_of(1.0)
    }

    /// How long it took until this share of them had nothing to make up for any more, in seconds.
    pub fn recovery_of(&self, share: f64) -> Option<f64> {
        let mut sorted = self.recoveries.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().checked_sub(1)?);
        Some(sorted[index] as f64 / SECOND as f64)
    }

    /// When the last client had its first certificate, in seconds from its start.
    pub fn slowest_first(&self) -> Option<f64> {
        self.firsts.iter().max().map(|longest| *longest as f64 / SECOND as f64)
    }

    /// The most calls of one client in the outage, and the most attempts that found no connection.
    pub fn outage_calls(&self) -> [u32; 2] {
        [&self.in_outage, &self.refused_in_outage].map(|calls| calls.iter().copied().max().unwrap_or(0))
    }
}

/// Calls a second at the peak and in the mean, over `span` (seconds) in bins of so many seconds.
pub fn peak_and_mean(calls: &[u32], span: std::ops::Range<usize>, bin: usize) -> (f64, f64) {
    let calls = &calls[span.start.min(calls.len())..span.end.min(calls.len())];
    let sum = |calls: &[u32]| calls.iter().map(|calls| u64::from(*calls)).sum::<u64>() as f64;
    let peak = calls.chunks(bin).filter(|chunk| chunk.len() == bin).map(|chunk| sum(chunk) / bin as f64);
    (peak.fold(0.0, f64::max), sum(calls) / calls.len().max(1) as f64)
}

fn count(series: &mut Vec<u32>, at: Micros) {
    let second = (at / SECOND) as usize;
    if series.len() <= second {
        series.resize(second + 1, 0);
    }
    series[second] += 1;
}
