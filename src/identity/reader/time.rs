/// A UTCTime (two digits of the year) or GeneralizedTime (four) as DER has it, but for the `Z` at its end, in Unix seconds.
pub(in crate::identity) fn unix_time(text: &[u8], digits: usize) -> Option<i64> {
    if text.len() != digits + 10 {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        text.get(range)?
            .iter()
            .try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
    };
    let two = |at: usize| number(digits + at..digits + at + 2);
    let year = match number(0..digits)? {
        // RFC 5280, section 4.1.2.5.1.
        year if digits == 2 => year + if year < 50 { 2000 } else { 1900 },
        year => year,
    };
    let (month, day, hour, minute, second) = (two(0)?, two(2)?, two(4)?, two(6)?, two(8)?);
    let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let length = match month {
        2 => 28 + leap,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let valid = (1..=length).contains(&day) && hour < 24 && minute < 60 && second < 60;
    valid.then_some(((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days since 1970-01-01; years begin in March, so that the day of a leap year is their last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_der_has_them() {
        let rows: [(&str, usize, Option<i64>); 12] = [
            ("700101000000Z", 2, Some(0)),
            ("490101000000Z", 2, Some(2_493_072_000)),
            ("500101000000Z", 2, Some(-631_152_000)),
            ("20000229235959Z", 4, Some(951_868_799)),
            ("20261128212730Z", 4, Some(1_795_901_250)),
            ("99991231235959Z", 4, Some(253_402_300_799)),
            ("21000229000000Z", 4, None),
            ("20261301000000Z", 4, None),
            ("2611282127Z", 2, None),
            ("261128212730+0100Z", 2, None),
            ("261128212760Z", 2, None),
            ("20261128212730.5Z", 4, None),
        ];
        for (text, digits, seconds) in rows {
            assert_eq!(unix_time(text.trim_end_matches('Z').as_bytes(), digits), seconds, "{text}");
        }
    }
}
