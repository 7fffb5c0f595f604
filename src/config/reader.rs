use std::{fmt, str::FromStr, time::Duration};

use super::{duration::parse_go_duration, env::Env, variables::Variable};

/// One mistake in the configuration, in words that name the variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake(String);

impl Mistake {
    pub(super) fn new(name: &str, what: impl fmt::Display) -> Self {
        Self(format!("{name}: {what}"))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads variables and collects what is wrong with them, so that all mistakes are told at once.
///
/// A rejected value is never repeated: somebody may have put a secret into the wrong variable.
pub(super) struct Reader<'a> {
    env: &'a dyn Env,
    mistakes: Vec<Mistake>,
    /// What is no mistake, and yet should be known.
    pub(super) notes: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a dyn Env) -> Self {
        Self { env, mistakes: Vec::new(), notes: Vec::new() }
    }

    pub(super) fn finish(self) -> Vec<Mistake> {
        self.mistakes
    }

    pub(super) fn env(&self) -> &'a dyn Env {
        self.env
    }

    pub(super) fn mistake(&mut self, variable: &Variable, what: impl fmt::Display) {
        self.mistake_in(variable.name, what);
    }

    pub(super) fn mistake_in(&mut self, name: &str, what: impl fmt::Display) {
        self.mistakes.push(Mistake::new(name, what));
    }

    pub(super) fn unknown_name(&mut self, name: &str) {
        self.mistake_in(name, "unknown variable; `sds-shim env` lists all of them");
    }

    /// Whether it has a value, where an empty one counts as unset: Kubernetes manifests cannot unset a variable
    /// otherwise.
    pub(super) fn is_set(&self, variable: &Variable) -> bool {
        self.env.value(variable.name).is_some_and(|value| !value.is_empty())
    }

    /// The value, or the default where that is one. After a mistake there is none, and nobody will see what is taken
    /// in its place.
    pub(super) fn text(&mut self, variable: &Variable) -> Option<String> {
        if !self.is_set(variable) {
            return variable.value.map(str::to_owned);
        }
        let value = self.env.value(variable.name)?;
        if value.contains(char::REPLACEMENT_CHARACTER) || value.contains('\0') {
            self.mistake(variable, "the value is not UTF-8 text");
            return None;
        }
        Some(value)
    }

    pub(super) fn parse_with<T, E: fmt::Display>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.text(variable)?;
        parse(&value).map_err(|error| self.mistake(variable, error)).ok()
    }

    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, variable: &Variable) -> Option<T> {
        self.parse_with(variable, str::parse)
    }

    pub(super) fn duration(&mut self, variable: &Variable) -> Option<Duration> {
        self.parse_with(variable, parse_go_duration)
    }

    pub(super) fn positive_duration(&mut self, variable: &Variable) -> Option<Duration> {
        let value = self.duration(variable)?;
        if value.is_zero() {
            self.mistake(variable, "the duration must be longer than zero");
        }
        Some(value)
    }

    pub(super) fn ratio(&mut self, variable: &Variable) -> Option<f64> {
        self.parse_with(variable, |text| match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err("expected a number from 0 to 1, such as 0.5"),
        })
    }

    /// Go's `strconv.ParseBool`, which Istio's variables use.
    pub(super) fn boolean(&mut self, variable: &Variable) -> Option<bool> {
        self.parse_with(variable, |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("expected true or false"),
        })
    }

    /// One of `choices`, for a variable that has a default value.
    pub(super) fn choice<T: Copy, const N: usize>(&mut self, variable: &Variable, choices: &[(&str, T); N]) -> T {
        self.choice_if_set(variable, choices).unwrap_or(choices[0].1)
    }

    pub(super) fn choice_if_set<T: Copy>(&mut self, variable: &Variable, choices: &[(&str, T)]) -> Option<T> {
        self.parse_with(variable, |text| {
            choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                format!("expected one of {}", names.join(", "))
            })
        })
    }
}
