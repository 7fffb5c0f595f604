use std::time::Duration;

use tonic::Code;

use crate::{spiffe::SpiffeError, status::Reason};

/// Why a Workload API has brought nothing that can be published.
#[derive(Debug, thiserror::Error)]
pub(in crate::rotation) enum SourceFailure {
    /// The call has failed.
    #[error("{0}")]
    Api(#[from] SpiffeError),
    /// Nothing has come for so long.
    #[error("the Workload API has not answered for {} s", .0.as_secs())]
    Silent(Duration),
    /// What it says cannot be used.
    #[error("the Workload API's answer was rejected: {0}")]
    Answer(String),
}

impl SourceFailure {
    /// What it counts as.
    pub(in crate::rotation) fn reason(&self) -> Reason {
        match self {
            Self::Api(SpiffeError::Unreachable { .. }) => Reason::Connect,
            Self::Api(SpiffeError::Refused { code: Code::PermissionDenied | Code::Unauthenticated, .. }) => {
                Reason::Unauthenticated
            }
            Self::Api(SpiffeError::Refused { .. }) => Reason::Refused,
            Self::Api(SpiffeError::Stranger(_) | SpiffeError::Ended | SpiffeError::Broken(_)) => Reason::Transport,
            Self::Silent(_) => Reason::Deadline,
            Self::Api(SpiffeError::Message(_)) | Self::Answer(_) => Reason::Answer,
        }
    }

    /// Whether somebody was there.
    pub(in crate::rotation) fn reached(&self) -> bool {
        !matches!(self, Self::Api(SpiffeError::Unreachable { .. }))
    }
}
