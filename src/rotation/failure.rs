use openssl::error::ErrorStack;

use super::{
    caller::AttemptError,
    patience::{Setback, Strain},
};
use crate::{identity::SvidError, status::Reason};

/// Why an attempt brought nothing that can be published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no memory or randomness for a key.
    #[error("a key cannot be made: {0}")]
    Key(ErrorStack),
    /// No address of the CA brought anything.
    #[error("{0}")]
    Attempt(#[from] AttemptError),
    /// What the CA answered must not be published.
    #[error("the CA's answer is not used: {0}")]
    Answer(#[from] SvidError),
}

impl Failure {
    /// Its class.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Key(_) => Reason::Internal,
            Self::Attempt(error) => error.reason(),
            Self::Answer(_) => Reason::Answer,
        }
    }

    /// Whether the CA does not give us this identity, though it may give us another one.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Key(_) => false,
            Self::Attempt(error) => {
                error.retry_after().is_none()
                    && matches!(error.reason(), Reason::Refused | Reason::Unauthenticated | Reason::Token)
            }
            Self::Answer(_) => true,
        }
    }

    /// Whether it is pointless to ask again before there is another token.
    pub(super) fn needs_token(&self) -> bool {
        matches!(self, Self::Attempt(error) if error.needs_token())
    }

    /// What it says of when to ask again.
    pub(super) fn setback(&self) -> Setback {
        match self {
            Self::Attempt(error) if error.needs_token() => Setback::Token,
            Self::Attempt(error) => Setback::Failed { strain: error.strain(), asked: error.retry_after() },
            Self::Key(_) | Self::Answer(_) => Setback::Failed { strain: Strain::None, asked: None },
        }
    }

    /// Whether another token may be just what is missing. Nothing else makes a change of the token a reason to ask:
    /// in an outage the number of calls depends on time alone.
    pub(super) fn concerns_token(&self) -> bool {
        self.needs_token() || matches!(self, Self::Attempt(error) if error.is_authentication())
    }

    /// Whether a token that never changes is of no more use. Once a certificate is held, a refusal of the token
    /// alone may pass; before, whoever brought the token should learn of it.
    pub(super) fn token_is_final(&self, holding: bool) -> bool {
        self.needs_token() || (!holding && self.concerns_token())
    }
}
