use std::{fmt, time::Duration};

/// What the value of a variable looks like.
#[derive(Debug)]
pub enum Kind {
    /// In words; the syntax is that of the parser in the module that reads it.
    Words(&'static str),
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A whole number.
    Number {
        /// The least.
        least: u32,
        /// The most.
        most: u32,
        /// What it must be a multiple of.
        multiple_of: u32,
        /// What it counts.
        unit: &'static str,
    },
    /// A share.
    Ratio,
    /// Go's `strconv.ParseBool`, which Istio's variables use.
    Boolean,
    /// Go's `time.ParseDuration`, which Istio's variables use, of at least this.
    Duration {
        /// The least; a nanosecond for anything but zero.
        least: Duration,
    },
}

impl Kind {
    /// Any duration.
    pub(super) const DURATION: Self = Self::Duration { least: Duration::ZERO };
    /// A duration longer than zero.
    pub(super) const POSITIVE_DURATION: Self = Self::Duration { least: SHORTEST };
}

/// The shortest duration above zero.
const SHORTEST: Duration = Duration::from_nanos(1);

/// How long a duration must be that may not be shorter than this.
pub(super) fn bound(least: Duration) -> String {
    if least == SHORTEST { "longer than 0s".to_owned() } else { format!("at least {least:?}") }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(words) => f.write_str(words),
            Self::OneOf(choices) => {
                for (at, choice) in choices.iter().enumerate() {
                    let separator = match choices.len() - at {
                        _ if at == 0 => "",
                        1 => " or ",
                        _ => ", ",
                    };
                    write!(f, "{separator}{choice}")?;
                }
                Ok(())
            }
            Self::Number { least, most, multiple_of: 1, unit } => write!(f, "{least} to {most} {unit}"),
            Self::Number { least, most, multiple_of, unit } => {
                write!(f, "{least} to {most} {unit}, a multiple of {multiple_of}")
            }
            Self::Ratio => f.write_str("0 to 1"),
            Self::Boolean => f.write_str("true or false"),
            Self::Duration { least: Duration::ZERO } => f.write_str("Go duration"),
            Self::Duration { least } => write!(f, "Go duration, {}", bound(*least)),
        }
    }
}
