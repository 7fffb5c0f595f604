//! Go durations, against a reader of their grammar that reckons in whole nanoseconds.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use sds_shim::config::Config;

/// What Go's `time.Duration` holds: 292 years.
const MOST: u128 = i64::MAX as u128;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.is_empty() || text.contains(['\0', char::REPLACEMENT_CHARACTER]) {
        return;
    }
    let variables = [("POD_NAMESPACE", "foo"), ("SERVICE_ACCOUNT", "sleep"), ("SDS_SHIM_CA_TIMEOUT", text)];
    let parsed = Config::from_env(&BTreeMap::from(variables)).ok().map(|config| config.ca.timeout.as_nanos());
    match (parsed, nanoseconds(text)) {
        // A deadline of nothing is refused; what is below a nanosecond may be rounded to it.
        (None, None | Some(0)) => {}
        (Some(parsed), Some(expected)) => {
            // Fractions are binary there: of each number a part in 2^52, and half a nanosecond.
            let tolerance = expected / (1 << 50) + text.len() as u128;
            assert!(parsed.abs_diff(expected) <= tolerance, "{parsed} instead of {expected}");
        }
        // At the very end of the range, rounding decides.
        (Some(parsed), None) => assert!(edge(text) || parsed == 0, "{parsed} of what Go refuses"),
        (None, Some(expected)) => assert!(edge(text), "{expected} was refused"),
    }
});

/// Go's grammar: `[+] ( number unit )…`, or a zero alone. None is what Go refuses, or what is negative.
fn nanoseconds(text: &str) -> Option<u128> {
    total(text).filter(|total| *total <= MOST)
}

fn edge(text: &str) -> bool {
    total(text).is_some_and(|total| total.abs_diff(MOST) <= MOST / (1 << 50) + text.len() as u128)
        || total(text) == Some(0)
}

fn total(text: &str) -> Option<u128> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_u128;
    loop {
        let whole = take(&mut rest, |c| c.is_ascii_digit());
        let fraction = rest.strip_prefix('.').map(|after| {
            rest = after;
            take(&mut rest, |c| c.is_ascii_digit())
        });
        if whole.is_empty() && fraction.is_none_or(str::is_empty) {
            return None;
        }
        let unit: u128 = match take(&mut rest, |c| c != '.' && !c.is_ascii_digit()) {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole = whole.bytes().fold(0_u128, |n, digit| n.saturating_mul(10).saturating_add((digit - b'0').into()));
        // More digits than these are below a nanosecond, whatever the unit.
        let digits = fraction.unwrap_or_default().bytes().chain(std::iter::repeat(b'0')).take(15);
        let fraction = digits.fold(0_u128, |n, digit| n * 10 + u128::from(digit - b'0'));
        total = total.saturating_add(whole.saturating_mul(unit)).saturating_add(fraction * unit / 10_u128.pow(15));
        if rest.is_empty() {
            return Some(total);
        }
    }
}

fn take<'a>(rest: &mut &'a str, belongs: impl Fn(char) -> bool) -> &'a str {
    let (taken, after) = rest.split_at(rest.find(|c| !belongs(c)).unwrap_or(rest.len()));
    *rest = after;
    taken
}
