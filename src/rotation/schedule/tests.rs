use super::*;
use proptest::{option, prelude::*};

const OURS: Schedule = Schedule { grace_period: None, availability_target: None };
/// When the certificates of these tests arrive.
const NOW: i64 = 1_700_000_000;
/// From what tests use to what nobody should: 10 s to 10 years.
const LIVES: std::ops::RangeInclusive<i64> = 10..=315_360_000;

fn istio(ratio: f64, jitter: f64) -> Schedule {
    Schedule { grace_period: Some(GracePeriod { ratio, jitter }), ..OURS }
}

fn target(seconds: u64) -> Schedule {
    Schedule { availability_target: Some(Duration::from_secs(seconds)), ..OURS }
}

fn seconds_after(schedule: &Schedule, life: i64, random: f64) -> f64 {
    renewal_after(schedule, NOW + life, NOW, random).as_secs_f64()
}

#[test]
fn renews_within_the_window_of_what_is_left() {
    for (config, random, expected) in [
        (OURS, 0.0, 450),
        (OURS, 0.5, 550),
        (istio(0.5, 0.0), 0.3, 500),
        (istio(0.2, 0.0), 0.3, 800),
        (istio(0.5, 0.1), 0.0, 600),
        (istio(0.5, 0.1), 1.0, 400),
        (istio(0.0, 0.0), 0.5, 950),
        (target(100), 0.5, 550),
        (target(700), 0.0, 300),
        (target(700), 1.0, 200),
        (target(5000), 0.0, 100),
        (target(5000), 1.0, 200),
    ] {
        let after = seconds_after(&config, 1000, random);
        assert!((after - f64::from(expected)).abs() < 1e-3, "{config:?} {random} {after:?}");
    }
}

/// Lifetimes of every order of magnitude alike.
fn life() -> impl Strategy<Value = i64> {
    let log = |life: i64| (life as f64).ln();
    (log(*LIVES.start())..=log(*LIVES.end())).prop_map(|log| log.exp().round() as i64)
}

fn random() -> impl Strategy<Value = f64> {
    prop_oneof![8 => 0.0..1.0, 1 => Just(0.0), 1 => Just(1.0 - f64::EPSILON)]
}

fn share() -> impl Strategy<Value = f64> {
    prop_oneof![8 => 0.0..=1.0, 1 => Just(0.0), 1 => Just(1.0)]
}

/// All that the variables can say.
fn schedule() -> impl Strategy<Value = Schedule> {
    let grace_period = (share(), share()).prop_map(|(ratio, jitter)| GracePeriod { ratio, jitter });
    let target = (0..2 * LIVES.end()).prop_map(|seconds| Duration::from_secs(seconds as u64));
    (option::of(grace_period), option::of(target))
        .prop_map(|(grace_period, availability_target)| Schedule { grace_period, availability_target })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The clock is read in whole seconds, so that up to one of them may be over already.
    #[test]
    fn never_in_the_past_never_a_busy_loop_and_before_the_end(schedule in schedule(), life in life(), random in random()) {
        let after = seconds_after(&schedule, life, random);
        prop_assert!(after >= 1.0);
        prop_assert!(after + 1.0 < life as f64, "{after} s of {life} s");
        prop_assert!(after <= life as f64 * 0.95 + 1e-6);
    }

    #[test]
    fn expired_or_expiring_certificates_cause_no_busy_loop(schedule in schedule(), left in any::<i64>(), random in random()) {
        let after = renewal_after(&schedule, NOW.saturating_add(left), NOW, random);
        prop_assert!(after >= Duration::from_secs(1));
        prop_assert!(left > 2 || after == Duration::from_secs(1));
    }

    #[test]
    fn our_window_is_45_to_65_percent_for_every_lifetime(life in life(), random in random()) {
        let (after, life) = (seconds_after(&OURS, life, random), life as f64);
        prop_assert!((after - life * (0.45 + 0.2 * random)).abs() < 1e-6);
        prop_assert!((life * 0.45 - 1e-6..life * 0.65 + 1e-6).contains(&after));
    }

    #[test]
    fn istios_ratio_is_what_is_left_within_the_jitter(ratio in share(), jitter in share(), life in life(), random in random()) {
        let (after, life) = (seconds_after(&istio(ratio, jitter), life, random), life as f64);
        let left = life - after;
        let reserve = (life * 0.05).max(2.0);
        prop_assert!(left + 1e-6 >= (life * (ratio - jitter)).clamp(reserve, life - 1.0), "{left} s of {life} s");
        prop_assert!(left - 1e-6 <= (life * (ratio + jitter)).clamp(reserve, life - 1.0), "{left} s of {life} s");
    }

    #[test]
    fn an_availability_target_is_met_where_the_life_allows_it(
        schedule in schedule(), seconds in 0..2 * LIVES.end(), life in life(), random in random()
    ) {
        let target = Duration::from_secs(seconds as u64);
        let with = Schedule { availability_target: Some(target), ..schedule };
        let without = Schedule { availability_target: None, ..schedule };
        let (after, life_s) = (seconds_after(&with, life, random), life as f64);
        prop_assert!(after <= seconds_after(&without, life, random), "later than without a target");
        // Seconds between two CSRs come before it.
        let feasible = target.as_secs_f64() <= 0.95 * life_s;
        let early = after <= 0.2 * life_s + 1.0;
        let met = if feasible { life_s - after + 1.0 >= target.as_secs_f64() } else { early };
        prop_assert!(met, "{} s of {} s for {:?}", after, life_s, target);
    }
}

/// Ten thousand workloads that start at the same moment, over two dozen generations.
#[test]
fn sidecars_started_together_drift_apart() {
    const SHIMS: usize = 10_000;
    const GENERATIONS: usize = 24;
    const LIFE: i64 = 86_400;
    let mut numbers = 0x9e37_79b9_u64;
    let mut planned = vec![0.0; SHIMS];
    let mut slices = vec![0_u32; 100 * GENERATIONS];
    for _ in 0..GENERATIONS {
        for at in &mut planned {
            // xorshift64: what counts is the schedule, so the numbers are the same in every run.
            numbers ^= numbers << 13;
            numbers ^= numbers >> 7;
            numbers ^= numbers << 17;
            *at += seconds_after(&OURS, LIFE, (numbers >> 11) as f64 / (1_u64 << 53) as f64);
            slices[(*at / LIFE as f64 * 100.0) as usize] += 1;
        }
    }
    // In the long run each asks once in 55 % of a life.
    let mean = SHIMS as f64 / 55.0;
    let peak_from = |slice: usize| f64::from(slices[slice..].iter().copied().max().unwrap_or(0)) / mean;
    // A fifth of a life holds the whole first generation: 2.75 times the mean, and the chance of the draw.
    assert!(peak_from(0) <= 3.0, "{} times the mean", peak_from(0));
    assert!(peak_from(200) <= 2.0, "{} times the mean after two lives", peak_from(200));
    assert!(peak_from(1000) <= 1.3, "{} times the mean after ten lives", peak_from(1000));
}
