//! What a failure is: everything that follows from one is read from its [`Class`], which is found here.

mod source;
#[cfg(test)]
mod tests;

use std::time::Duration;

use openssl::error::ErrorStack;
use tonic::Code;

use super::patience::{Setback, Strain};
use crate::{
    ca::CaError,
    config::CaAddress,
    identity::{SvidError, TokenError},
    status::Reason,
};

pub(super) use source::SourceFailure;

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
    #[error("{wanted}; requesting the previous identity failed as well: {before}")]
    Both {
        /// What came of the one that is wanted.
        wanted: Box<Failure>,
        /// What came of the other one.
        before: Box<Failure>,
    },
}

/// Why no certificate came of an attempt.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// The CA was asked, or could not be reached.
    #[error("{0}")]
    Ca(#[from] CaError),
    /// The CA was not asked, because nothing that we could show it is valid.
    #[error("{0}; not calling the CA until that changes")]
    Token(#[from] TokenError),
    /// The token cannot be used, and the certificate alone was refused.
    #[error("{token}; the CA did not accept our certificate alone: {ca}")]
    CertificateAlone {
        /// What is wrong with the token.
        token: TokenError,
        /// The CA's answer.
        ca: CaError,
    },
    /// What the CA answered must not be published.
    #[error("the CA's answer was rejected: {0}")]
    Answer(#[from] SvidError),
    /// No address of the CA brought a certificate; each with what it said.
    #[error("{}", everywhere(.0))]
    Everywhere(Vec<(CaAddress, AttemptError)>),
}

fn everywhere(all: &[(CaAddress, AttemptError)]) -> String {
    let told: Vec<_> = all.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    told.join("; ")
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// What it is called in public; where several addresses failed, as the first did.
    pub(super) reason: Reason,
    /// What it hung on.
    pub(super) hangs: Hangs,
    /// Whether the CA, or one of them, says that it does not give us this identity, for what it knows of us: it may
    /// give us another one.
    pub(super) is_refusal: bool,
    /// Whether another identity could have fared better: the CA, or one of them, may have seen the request, or would
    /// have with another credential, and nothing else may have stood in the way of this one. A CA may also be silent on
    /// a name that it does not know.
    pub(super) may_be_for_the_name: bool,
    /// Whether the CA, or one of them, did not accept who we say we are.
    pub(super) is_authentication: bool,
    /// Whether it is pointless to ask again before there is another token.
    pub(super) needs_token: bool,
    /// Whether the pause is that for a token.
    token_first: bool,
    /// Whether the CA has more to do than it can.
    strain: Strain,
    /// How long the CA asks us to wait.
    pub(super) retry_after: Option<Duration>,
    /// Whether anything of it was asked outside.
    asked: bool,
}

impl Class {
    /// Something failed in this process.
    const INTERNAL: Self = Self {
        reason: Reason::Internal,
        hangs: Hangs { anchors: false, provisioned: false, way: false, clock: false },
        is_refusal: false,
        may_be_for_the_name: false,
        is_authentication: false,
        needs_token: false,
        token_first: false,
        strain: Strain::None,
        retry_after: None,
        asked: false,
    };

    /// The CA's answer must not be published.
    fn of_answer() -> Self {
        let hangs = Hangs { way: true, clock: true, ..Hangs::default() };
        Self { reason: Reason::Answer, hangs, asked: true, ..Self::INTERNAL }
    }

    /// There is nothing valid to show to the CA.
    fn of_token() -> Self {
        Self {
            reason: Reason::Token,
            hangs: Hangs { clock: true, ..Hangs::default() },
            is_refusal: true,
            may_be_for_the_name: true,
            needs_token: true,
            token_first: true,
            ..Self::INTERNAL
        }
    }

    /// A call failed.
    fn of_call(ca: &CaError) -> Self {
        let reason = reason(ca);
        Self {
            reason,
            hangs: hangs(ca),
            is_refusal: matches!(reason, Reason::Refused | Reason::Unauthenticated),
            may_be_for_the_name: ca.was_asked(),
            is_authentication: ca.is_authentication(),
            strain: match ca {
                late if late.is_late() => Strain::Late,
                busy if busy.is_overload() => Strain::Overload,
                away if away.is_away() => Strain::Away,
                _ => Strain::None,
            },
            retry_after: ca.retry_after(),
            asked: true,
            ..Self::INTERNAL
        }
    }

    /// A call failed that was made with a certificate alone, for want of a token.
    fn of_call_without_token(ca: &CaError) -> Self {
        let call = Self::of_call(ca);
        let refused = call.is_authentication;
        Self {
            reason: if refused { Reason::Token } else { call.reason },
            hangs: Hangs { clock: true, ..call.hangs },
            is_refusal: true,
            may_be_for_the_name: true,
            needs_token: refused,
            token_first: refused,
            ..call
        }
    }

    /// Several addresses failed, each in its way.
    fn at_another_address(self, other: Self) -> Self {
        let needs_token = self.needs_token && other.needs_token;
        Self {
            reason: self.reason,
            hangs: self.hangs.or(other.hangs),
            is_refusal: self.is_refusal || other.is_refusal,
            may_be_for_the_name: self.may_be_for_the_name || other.may_be_for_the_name,
            is_authentication: self.is_authentication || other.is_authentication,
            needs_token,
            token_first: needs_token,
            // What the least strained says: as long as one of them is there, looking for the others costs that one
            // its time.
            strain: match (self.strain, other.strain) {
                (Strain::Away, Strain::Away) => Strain::Away,
                (one, other) => one.max(Strain::None).min(other.max(Strain::None)),
            },
            // The one that wants to be asked first.
            retry_after: self.retry_after.min(other.retry_after),
            asked: self.asked || other.asked,
        }
    }

    /// The identity that is wanted failed like this, and the one of `before` as well.
    fn as_before(self, before: Self) -> Self {
        Self {
            hangs: self.hangs.or(before.hangs),
            is_refusal: false,
            may_be_for_the_name: false,
            is_authentication: self.concerns_token() || before.concerns_token(),
            needs_token: self.needs_token && before.needs_token,
            // What is held must be renewed in time, whatever becomes of its successor.
            ..before
        }
    }

    /// What it says of when to ask again.
    pub(super) fn setback(&self) -> Setback {
        match self.token_first {
            true => Setback::Token,
            false => Setback::Failed { strain: self.strain, asked: self.retry_after },
        }
    }

    /// Whether anybody was reached who had work with it.
    pub(super) fn reached(&self) -> bool {
        self.asked && !self.token_first && self.strain != Strain::Away
    }

    /// Whether another token may be just what is missing. Nothing else makes a change of the token a reason to ask:
    /// in an outage the number of calls depends on time alone.
    pub(super) fn concerns_token(&self) -> bool {
        self.needs_token || self.is_authentication
    }

    /// Whether a token that never changes is of no more use. Once a certificate is held, a refusal of the token
    /// alone may pass; before, whoever brought the token should learn of it.
    pub(super) fn token_is_final(&self, holding: bool) -> bool {
        self.needs_token || (!holding && self.concerns_token())
    }
}

impl AttemptError {
    /// What follows from it.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Token(_) => Class::of_token(),
            // Another of our names may be answered as it should be.
            Self::Answer(_) => Class { is_refusal: true, may_be_for_the_name: true, ..Class::of_answer() },
            Self::CertificateAlone { ca, .. } => Class::of_call_without_token(ca),
            Self::Ca(ca) => Class::of_call(ca),
            Self::Everywhere(all) => {
                let classes = all.iter().map(|(_, error)| error.class());
                classes.reduce(Class::at_another_address).unwrap_or(Class::INTERNAL)
            }
        }
    }
}

impl Failure {
    /// What follows from it.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Key(_) => Class::INTERNAL,
            Self::Attempt(error) => error.class(),
            Self::Answer(_) => Class::of_answer(),
            Self::Both { wanted, before } => wanted.class().as_before(before.class()),
        }
    }
}

fn reason(error: &CaError) -> Reason {
    match error {
        late if late.is_late() => Reason::Deadline,
        CaError::Resolve { .. } => Reason::Resolve,
        CaError::Connect { .. } => Reason::Connect,
        CaError::Roots { .. } | CaError::Tls { .. } => Reason::Tls,
        CaError::ClientCertificateRefused(_) | CaError::Provisioned(_) => Reason::ClientCertificate,
        CaError::Unreached { .. } | CaError::Deadline(..) | CaError::Dead(_) => Reason::Deadline,
        CaError::Transport(_) | CaError::GivenUp(_) => Reason::Transport,
        CaError::Status { code: Code::Unauthenticated | Code::PermissionDenied, .. } => Reason::Unauthenticated,
        CaError::Calm | CaError::Status { code: Code::ResourceExhausted, .. } => Reason::Overload,
        CaError::Status { .. } => Reason::Refused,
        CaError::OpenSsl { .. } => Reason::Internal,
    }
}

/// What a failure hung on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hangs {
    /// The anchors for the CA's server.
    pub(super) anchors: bool,
    /// The certificate in `PROV_CERT`.
    pub(super) provisioned: bool,
    /// Where the CA's name leads, and whether there is a way.
    pub(super) way: bool,
    /// What the clock shows.
    pub(super) clock: bool,
}

impl Hangs {
    /// On any of both.
    fn or(self, other: Self) -> Self {
        Self {
            anchors: self.anchors || other.anchors,
            provisioned: self.provisioned || other.provisioned,
            way: self.way || other.way,
            clock: self.clock || other.clock,
        }
    }
}

fn hangs(error: &CaError) -> Hangs {
    let way = Hangs { way: true, ..Hangs::default() };
    match error {
        CaError::Resolve { .. } | CaError::Connect { .. } | CaError::Unreached { .. } => way,
        // A CA that has too much to do has no less of it elsewhere, where a name has a new address at each look.
        late if late.is_late() || late.is_overload() => Hangs::default(),
        // Nor is one asked sooner than it wants.
        patient if patient.retry_after().is_some() => Hangs::default(),
        CaError::Roots { .. } | CaError::Tls { .. } => Hangs { anchors: true, clock: true, ..way },
        CaError::ClientCertificateRefused(_) | CaError::Provisioned(_) => {
            Hangs { provisioned: true, clock: true, ..way }
        }
        authentication if authentication.is_authentication() => Hangs { provisioned: true, clock: true, ..way },
        CaError::OpenSsl { .. } => Hangs::default(),
        // A refusal of our certificate comes after the handshake, and is lost with a connection that is closed at once.
        CaError::Transport(_) => Hangs { provisioned: true, ..way },
        _ => way,
    }
}
