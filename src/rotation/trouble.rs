//! What is told of failures: each change of cause once, and from then on the rarer the more life is left. Pure: time is
//! an argument.

use tracing::Level;

use crate::clock::rfc3339;

/// Pause between two summaries of the same trouble, in seconds.
const SUMMARY: i64 = 3600;

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

/// The trouble that was told last.
#[derive(Debug)]
struct Told {
    cause: String,
    at: i64,
    left: Left,
}

/// What goes wrong with the renewals of one workload.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    since: Option<i64>,
    failures: u64,
    told: Option<Told>,
}

impl Trouble {
    /// An attempt failed at `now` (Unix seconds) for this cause; `next` says what will be tried. Answers what to tell
    /// of it, if anything.
    pub(super) fn failed(&mut self, cause: &str, held: Option<&Held>, now: i64, next: &str) -> Option<(Level, String)> {
        let left = held.map_or(Left::Nothing, |held| Left::of(held.life, now));
        let since = *self.since.get_or_insert(now);
        self.failures += 1;
        let level = if left >= Left::Fifth { Level::ERROR } else { Level::WARN };
        let what = match held {
            Some(_) => format!("no new certificate: {cause}"),
            None => format!("no certificate yet: {cause}"),
        };
        let again = match &self.told {
            Some(told) if same_cause(&told.cause, cause) => {
                let summary = left >= Left::Half && now.saturating_sub(told.at) >= SUMMARY;
                if left <= told.left && !summary {
                    return None;
                }
                format!(" ({} attempts have failed since {})", self.failures, rfc3339(since))
            }
            _ => String::new(),
        };
        self.told = Some(Told { cause: cause.to_owned(), at: now, left });
        let served = match held {
            None => "Envoy waits".to_owned(),
            Some(Held { life: (_, end), .. }) if *end <= now => {
                format!("the old one has expired at {}, and new streams get none", rfc3339(*end))
            }
            Some(Held { life: (_, end), .. }) => {
                format!("the old one is served meanwhile, until {}", rfc3339(*end))
            }
        };
        Some((level, format!("{what}{again}; {served}; {next}")))
    }

    /// An attempt succeeded. Answers what to tell, if there was trouble.
    pub(super) fn over(&mut self) -> Option<String> {
        let Self { since, failures, told } = std::mem::take(self);
        told?;
        Some(format!("the CA issues again, after {failures} failed attempts since {}", rfc3339(since.unwrap_or(0))))
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

/// Whether two failures tell the same, but for the times and counts in them, which differ at each attempt.
fn same_cause(told: &str, cause: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    words(told) == words(cause)
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
        let mut trouble = Trouble::default();
        let attempts = (DAY * 45 / 100..DAY + 7200).step_by(30);
        let told = |now| {
            trouble.failed(&cause(now), Some(&held()), now, "again in 30 s").map(|(level, text)| (now, level, text))
        };
        attempts.filter_map(told).collect()
    }

    #[test]
    fn an_outage_is_told_once_then_hourly_and_louder_towards_the_end() {
        let lines = outage(|now| format!("no connection, {now} s"));
        assert!((14..=18).contains(&lines.len()), "{lines:#?}");
        let first = &lines[0];
        assert_eq!(first.1, Level::WARN);
        assert!(first.2.contains("until 1970-01-02T00:00:00Z; again in 30 s"), "{}", first.2);
        assert!(!first.2.contains("attempts have failed"));
        assert!((DAY / 2..DAY / 2 + 60).contains(&lines[1].0), "again when half of the life is over");
        let gaps = lines[1..].windows(2).map(|pair| pair[1].0 - pair[0].0);
        assert!(gaps.clone().all(|gap| gap <= 3600), "{lines:#?}");
        assert!(gaps.filter(|gap| *gap < 3600).count() <= 2, "sooner only where less is left: {lines:#?}");
        let loud = lines.iter().find(|(_, level, _)| *level == Level::ERROR).unwrap();
        assert!((DAY * 4 / 5..DAY * 4 / 5 + 60).contains(&loud.0), "{loud:?}");
        let expired: Vec<_> = lines.iter().filter(|(_, _, text)| text.contains("has expired at")).collect();
        assert!((DAY..DAY + 60).contains(&expired[0].0));
        assert_eq!(expired.len(), 2, "at once, and an hour later");
    }

    #[test]
    fn each_change_of_cause_is_told_at_once() {
        let lines = outage(|now| if now % 60 == 0 { "one".to_owned() } else { "two".to_owned() });
        assert!(lines.len() > 1000);
    }

    #[test]
    fn before_the_first_certificate_it_is_told_hourly() {
        let mut trouble = Trouble::default();
        let told: Vec<_> = (0..7300).step_by(10).filter_map(|now| trouble.failed("down", None, now, "again")).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(told[0].1, "no certificate yet: down; Envoy waits; again");
        assert!(told[2].1.contains("721 attempts have failed since 1970-01-01T00:00:00Z"), "{}", told[2].1);
        assert!(trouble.over().unwrap().contains("after 730 failed attempts"));
        assert_eq!(trouble.over(), None);
    }
}
