use openssl::error::ErrorStack;

use super::{
    caller::AttemptError,
    cure::Hangs,
    patience::{Setback, Strain},
};
use crate::{identity::SvidError, status::Reason};

/// Why an attempt brought nothing that can be published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no memory or randomness for a key.
    #[error("cannot generate a key: {0}")]
    Key(ErrorStack),
    /// No address of the CA brought anything.
    #[error("{0}")]
    Attempt(#[from] AttemptError),
    /// What the CA has issued cannot be published.
    #[error("the CA's answer was rejected: {0}")]
    Answer(#[from] SvidError),
    /// The identity that is wanted is not to be had, and what is held, or would do, is not either.
    #[error("{wanted}; the CA was asked for the identity of before as well: {before}")]
    Both {
        /// What came of the one that is wanted.
        wanted: Box<Failure>,
        /// What came of the other one.
        before: Box<Failure>,
    },
}

impl Failure {
    /// Its class.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Key(_) => Reason::Internal,
            Self::Attempt(error) => error.reason(),
            Self::Answer(_) => Reason::Answer,
            Self::Both { before, .. } => before.reason(),
        }
    }

    /// Whether the CA, or one of them, says that it does not give us this identity: it may give us another one.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Key(_) | Self::Answer(_) => false,
            Self::Attempt(error) => error.is_refusal(),
            Self::Both { .. } => false,
        }
    }

    /// Whether another identity could have fared better: nothing else than the CA may have stood in the way of this
    /// one. A CA may also be silent on a name that it does not know.
    pub(super) fn may_be_for_the_name(&self) -> bool {
        match self {
            Self::Key(_) | Self::Answer(_) | Self::Both { .. } => false,
            Self::Attempt(error) => error.was_asked(),
        }
    }

    /// Whether it is pointless to ask again before there is another token.
    pub(super) fn needs_token(&self) -> bool {
        match self {
            Self::Key(_) | Self::Answer(_) => false,
            Self::Attempt(error) => error.needs_token(),
            Self::Both { wanted, before } => wanted.needs_token() && before.needs_token(),
        }
    }

    /// What it says of when to ask again.
    pub(super) fn setback(&self) -> Setback {
        match self {
            Self::Attempt(error) if error.needs_token() => Setback::Token,
            Self::Attempt(error) => Setback::Failed { strain: error.strain(), asked: error.retry_after() },
            Self::Key(_) | Self::Answer(_) => Setback::Failed { strain: Strain::None, asked: None },
            // What is held must be renewed in time, whatever becomes of its successor.
            Self::Both { before, .. } => before.setback(),
        }
    }

    /// What it hung on.
    pub(super) fn hangs(&self) -> Hangs {
        match self {
            Self::Key(_) => Hangs::default(),
            Self::Attempt(error) => error.hangs(),
            Self::Answer(_) => Hangs { way: true, clock: true, ..Hangs::default() },
            Self::Both { wanted, before } => wanted.hangs().or(before.hangs()),
        }
    }

    /// Whether anybody was reached who had work with it.
    pub(super) fn reached(&self) -> bool {
        !matches!(self, Self::Key(_))
            && !matches!(self.setback(), Setback::Token | Setback::Failed { strain: Strain::Away, .. })
    }

    /// Whether another token may be just what is missing. Nothing else makes a change of the token a reason to ask:
    /// in an outage the number of calls depends on time alone.
    pub(super) fn concerns_token(&self) -> bool {
        match self {
            Self::Both { wanted, before } => wanted.concerns_token() || before.concerns_token(),
            Self::Attempt(error) => error.needs_token() || error.is_authentication(),
            Self::Key(_) | Self::Answer(_) => false,
        }
    }

    /// Whether a token that never changes is of no more use. Once a certificate is held, a refusal of the token
    /// alone may pass; before, whoever brought the token should learn of it.
    pub(super) fn token_is_final(&self, holding: bool) -> bool {
        self.needs_token() || (!holding && self.concerns_token())
    }
}
