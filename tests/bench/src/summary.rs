//! What many runs come to.

use std::time::Duration;

/// Smallest, middle and greatest of a number of measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) minimum: f64,
    pub(crate) median: f64,
    pub(crate) maximum: f64,
    pub(crate) runs: usize,
}

impl Summary {
    /// Of these values; nothing comes of none. An even number has the lower of its two middle values as the median,
    /// which was measured, unlike their mean.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (minimum, maximum) = (*sorted.first()?, *sorted.last()?);
        Some(Self { minimum, median: sorted[(sorted.len() - 1) / 2], maximum, runs: sorted.len() })
    }
}

/// A time in milliseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The value below which this share of all values lies, 0 of none. `sorted` ascends.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_holds_measured_values() {
        assert_eq!(Summary::of(&[]), None);
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(summary, Some(Summary { minimum: 1.0, median: 2.0, maximum: 4.0, runs: 4 }));
    }

    #[test]
    fn a_quantile_is_the_least_value_that_covers_its_share() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|share| quantile(&values, share)), [500.0, 990.0, 999.0, 1000.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
