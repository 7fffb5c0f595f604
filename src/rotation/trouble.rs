//! What is told of failures: each cause once, and from then on the rarer the more life is left. Pure: time is
//! an argument.

use tracing::Level;

use crate::clock::rfc3339;

/// Pause between two summaries of the same trouble, in seconds.
const SUMMARY: i64 = 3600;
/// Causes that are remembered.
const MOST_CAUSES: usize = 8;

/// What is served while there is trouble.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) serial: String,
    /// When it was issued and when it ends, Unix seconds.
    pub(super) life: (i64, i64),
}

/// How much life is left of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    /// Half of it or more.
    Much,
    /// Less than half.
    Half,
    /// Less than a fifth.
    Fifth,
    /// None, or nothing is held.
    Nothing,
}

/// A cause that was told.
#[derive(Debug)]
struct Told {
    /// As [`essence`] has it.
    cause: String,
    at: i64,
    left: Left,
}

/// What goes wrong with the renewals of one workload.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<i64>,
    failures: u64,
    /// The causes that were told, the one that was told last at the end.
    told: Vec<Told>,
}

impl Outage {
    /// An attempt failed at `now` (Unix seconds) for this cause; `next` says what will be tried. Answers what to tell
    /// of it, if anything.
    pub(super) fn failed(&mut self, cause: &str, held: Option<&Held>, now: i64, next: &str) -> Option<(Level, String)> {
        let left = held.map_or(Left::Nothing, |held| Left::of(held.life, now));
        let since = *self.since.get_or_insert(now);
        self.failures += 1;
        let level = if left >= Left::Fifth { Level::ERROR } else { Level::WARN };
        let what = match held {
            Some(_) => format!("renewal failed: {cause}"),
            None => format!("cannot obtain a certificate: {cause}"),
        };
        let essence = essence(cause);
        let again = match self.told.iter().position(|told| told.cause == essence) {
            Some(known) => {
                let told = &self.told[known];
                let summary = left >= Left::Half && now.saturating_sub(told.at) >= SUMMARY;
                if left <= told.left && !summary {
                    return None;
                }
                self.told.remove(known);
                format!(" ({} failed attempts since {})", self.failures, rfc3339(since))
            }
            None => String::new(),
        };
        if self.told.len() == MOST_CAUSES {
            self.told.remove(0);
        }
        self.told.push(Told { cause: essence, at: now, left });
        let served = match held {
            None => "Envoy waits".to_owned(),
            Some(Held { life: (_, end), .. }) if *end <= now => {
                format!("the certificate expired at {}; new streams get none", rfc3339(*end))
            }
            Some(Held { life: (_, end), .. }) => {
                format!("still serving the current certificate until {}", rfc3339(*end))
            }
        };
        Some((level, format!("{what}{again}; {served}; {next}")))
    }

    /// An attempt succeeded. Answers what to tell, if there was trouble.
    pub(super) fn over(&mut self) -> Option<String> {
        let Self { since, failures, told } = std::mem::take(self);
        told.first()?;
        Some(format!("renewal succeeded after {failures} failed attempts since {}", rfc3339(since.unwrap_or(0))))
    }
}

impl Left {
    fn of((from, to): (i64, i64), now: i64) -> Self {
        let (life, left) = (to.saturating_sub(from), to.saturating_sub(now));
        match left {
            ..=0 => Self::Nothing,
            _ if left < life / 5 => Self::Fifth,
            _ if left < life / 2 => Self::Half,
            _ => Self::Much,
        }
    }
}

/// What two failures that tell the same have in common: without times, counts and ids, which differ at each attempt.
fn essence(cause: &str) -> String {
    /// Hexadecimal words without a digit are ids from this length on; shorter ones are more often English.
    const SHORTEST_ID: usize = 4;
    let mut essence = String::new();
    let mut rest = cause;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let hexadecimal = word.len() >= SHORTEST_ID && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        match hexadecimal || word.bytes().any(|byte| byte.is_ascii_digit()) {
            // Of several in a row, as in a UUID or a fraction, one counts.
            true => match essence.trim_end_matches(['.', '-']) {
                before if before.ends_with('#') => essence.truncate(before.len()),
                _ => essence.push('#'),
            },
            false => essence.push_str(word),
        }
        let separator = tail.chars().next().map_or(0, char::len_utf8);
        essence.push_str(&tail[..separator]);
        rest = &tail[separator..];
    }
    essence
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn held() -> Held {
        Held { serial: "ab".to_owned(), life: (0, DAY) }
    }

    /// A day of an outage, with an attempt each 30 s from half of the life on.
    fn outage(cause: impl Fn(i64) -> String) -> Vec<(i64, Level, String)> {
        let mut trouble = Outage::default();
        let attempts = (DAY * 45 / 100..DAY + 7200).step_by(30);
        let told = |now| {
            trouble.failed(&cause(now), Some(&held()), now, "again in 30 s").map(|(level, text)| (now, level, text))
        };
        attempts.filter_map(told).collect()
    }

    #[test]
    fn an_outage_is_logged_once_then_hourly_and_louder_near_expiry() {
        let lines = outage(|now| format!("no connection, {now} s"));
        assert!((14..=18).contains(&lines.len()), "{lines:#?}");
        let first = &lines[0];
        assert_eq!(first.1, Level::WARN);
        assert!(first.2.contains("until 1970-01-02T00:00:00Z; again in 30 s"), "{}", first.2);
        assert!(!first.2.contains("failed attempts"));
        assert!((DAY / 2..DAY / 2 + 60).contains(&lines[1].0), "again when half of the life is over");
        let gaps = lines[1..].windows(2).map(|pair| pair[1].0 - pair[0].0);
        assert!(gaps.clone().all(|gap| gap <= 3600), "{lines:#?}");
        assert!(gaps.filter(|gap| *gap < 3600).count() <= 2, "sooner only where less is left: {lines:#?}");
        let loud = lines.iter().find(|(_, level, _)| *level == Level::ERROR).unwrap();
        assert!((DAY * 4 / 5..DAY * 4 / 5 + 60).contains(&loud.0), "{loud:?}");
        let expired: Vec<_> = lines.iter().filter(|(_, _, text)| text.contains("the certificate expired at")).collect();
        assert!((DAY..DAY + 60).contains(&expired[0].0));
        assert_eq!(expired.len(), 2, "at once, and an hour later");
    }

    #[test]
    fn each_new_cause_is_logged_at_once() {
        let mut trouble = Outage::default();
        let mut told = |cause: &str, now| trouble.failed(cause, None, now, "again").is_some();
        assert!(told("one", 0) && told("two", 30) && told("three", 60));
        assert!(!told("one", 90) && !told("two", 3629) && told("one", 3630) && told("two", 3660));
    }

    #[test]
    fn alternating_causes_are_logged_no_more_often_than_each_alone() {
        let alone = outage(|_| "one".to_owned()).len();
        let turns = outage(|now| if now % 60 == 0 { "one".to_owned() } else { "two".to_owned() }).len();
        assert!(turns <= 2 * alone, "{turns} lines, {alone} of one cause");
    }

    #[test]
    fn many_causes_do_not_fill_the_memory() {
        let mut trouble = Outage::default();
        let words = ["k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
        for (now, word) in (0..).zip(words) {
            assert!(trouble.failed(word, None, now, "again").is_some());
        }
        assert_eq!(trouble.told.len(), MOST_CAUSES);
    }

    #[test]
    fn ids_times_and_counts_make_no_new_cause() {
        let same = [
            ("after 3 s", "after 12 s"),
            ("request 7f3a9c01 failed", "request deadbeef failed"),
            ("trace=550e8400-e29b-41d4-a716-446655440000, busy", "trace=6ba7b810-9dad-11d1-80b4-00c04fd430c8, busy"),
            ("within 1.5 s", "within 2 s"),
            ("10.0.0.1:15012: down", "10.0.0.2:15012: down"),
        ];
        for (one, two) in same {
            assert_eq!(essence(one), essence(two));
        }
        let different = [("ca-a:15012: down", "ca-b:15012: down"), ("busy", "down"), ("UNAVAILABLE: x", "INTERNAL: x")];
        for (one, two) in different {
            assert_ne!(essence(one), essence(two));
        }
    }

    #[test]
    fn before_the_first_certificate_failures_are_logged_hourly() {
        let mut trouble = Outage::default();
        let told: Vec<_> = (0..7300).step_by(10).filter_map(|now| trouble.failed("down", None, now, "again")).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(told[0].1, "cannot obtain a certificate: down; Envoy waits; again");
        assert!(told[2].1.contains("721 failed attempts since 1970-01-01T00:00:00Z"), "{}", told[2].1);
        assert!(trouble.over().unwrap().contains("after 730 failed attempts"));
        assert_eq!(trouble.over(), None);
    }
}
