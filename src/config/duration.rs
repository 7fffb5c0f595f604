use std::time::Duration;

/// Parses Go's duration syntax (`time.ParseDuration`), which Istio's variables use: `24h0m0s`, `1.5h`, `300ms`.
///
/// # Errors
/// What is expected instead. Negative durations are refused, because nothing here has a use for one.
pub fn parse_go_duration(text: &str) -> Result<Duration, &'static str> {
    const SYNTAX: &str = "expected a Go duration, such as 24h0m0s, 1.5h or 300ms";
    const TOO_LONG: &str = "the duration is too long: the maximum is 292 years";
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.starts_with('-') {
        return Err("a duration must not be negative");
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(SYNTAX);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or(SYNTAX)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| SYNTAX)?;
        let part = Duration::try_from_secs_f64(number * seconds(unit).ok_or(SYNTAX)?);
        total = part.ok().and_then(|part| total.checked_add(part)).ok_or(TOO_LONG)?;
        rest = tail;
    }
    // Go's durations are nanoseconds in 64 bits with a sign, and what is longer would fit nowhere further on: not in
    // the seconds that the CA is asked for, nor in gRPC's deadlines.
    if total.as_nanos() > i64::MAX as u128 { Err(TOO_LONG) } else { Ok(total) }
}

fn seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_go_accepts() {
        for (text, milliseconds) in [
            ("24h0m0s", 86_400_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("1h15m30.5s", 4_530_500),
            ("0", 0),
            ("+5s", 5_000),
            (".5s", 500),
        ] {
            assert_eq!(parse_go_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in
            ["", "5", "s", "1d", "1h-5m", "-1h", "1..5s", "h1", "1e400h", "99999999999999999999h", "2600000h", "+", "µ"]
        {
            assert!(parse_go_duration(text).is_err(), "{text}");
        }
    }
}
