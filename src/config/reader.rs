use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use super::{
    duration::parse_go_duration,
    env::Env,
    kind::{Kind, bound},
    variables::Variable,
};

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
        self.parse_with(variable, |text| match (parse_go_duration(text), &variable.kind) {
            (Ok(duration), Kind::Duration { least }) if duration < *least => {
                Err(Cow::Owned(format!("the duration must be {}", bound(*least))))
            }
            (parsed, _) => parsed.map_err(Cow::Borrowed),
        })
    }

    pub(super) fn number(&mut self, variable: &Variable) -> Option<u32> {
        self.parse_with(variable, |text| match (text.parse(), &variable.kind) {
            (Ok(number), Kind::Number { least, most, multiple_of, .. })
                if (*least..=*most).contains(&number) && number.is_multiple_of(*multiple_of) =>
            {
                Ok(number)
            }
            (_, Kind::Number { .. }) => Err(format!("expected a number from {}", variable.kind)),
            (_, kind) => Err(format!("expected {kind}")),
        })
    }

    pub(super) fn ratio(&mut self, variable: &Variable) -> Option<f64> {
        self.parse_with(variable, |text| match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err("expected a number from 0 to 1, such as 0.5"),
        })
    }

    pub(super) fn boolean(&mut self, variable: &Variable) -> Option<bool> {
        self.parse_with(variable, |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("expected true or false"),
        })
    }

    /// What the choice means, for a variable that has a default value: `meanings` has one for each, in their order.
    pub(super) fn choice<T: Copy, const N: usize>(&mut self, variable: &Variable, meanings: [T; N]) -> T {
        self.choice_if_set(variable, meanings).unwrap_or(meanings[0])
    }

    /// What the choice means; `None` where it is unset and has no default value.
    pub(super) fn choice_if_set<T: Copy, const N: usize>(
        &mut self,
        variable: &Variable,
        meanings: [T; N],
    ) -> Option<T> {
        self.parse_with(variable, |text| {
            let Kind::OneOf(choices) = &variable.kind else { return Err(format!("expected {}", variable.kind)) };
            let found = choices.iter().zip(meanings).find(|(name, _)| **name == text);
            found.map(|(_, meaning)| meaning).ok_or_else(|| format!("expected {}", variable.kind))
        })
    }
}
