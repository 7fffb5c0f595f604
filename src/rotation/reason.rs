use tonic::Code;

use super::caller::AttemptError;
use crate::{ca::CaError, status::Reason};

impl AttemptError {
    /// Its class; where several addresses failed, that of the first.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Token(_) => Reason::Token,
            Self::Answer(_) => Reason::Answer,
            Self::CertificateAlone { ca, .. } if ca.is_authentication() => Reason::Token,
            Self::CertificateAlone { ca, .. } | Self::Ca(ca) => of_ca(ca),
            Self::Everywhere(all) => all.first().map_or(Reason::Internal, |(_, error)| error.reason()),
        }
    }
}

fn of_ca(error: &CaError) -> Reason {
    match error {
        late if late.is_late() => Reason::Deadline,
        CaError::Resolve { .. } => Reason::Resolve,
        CaError::Connect { .. } => Reason::Connect,
        CaError::Roots { .. } | CaError::Tls { .. } => Reason::Tls,
        CaError::ClientCertificateRefused(_) | CaError::Provisioned(_) => Reason::ClientCertificate,
        CaError::Unreached(_) | CaError::Deadline(..) | CaError::Dead(_) => Reason::Deadline,
        CaError::Transport(_) | CaError::GivenUp(_) => Reason::Transport,
        CaError::Status { code: Code::Unauthenticated | Code::PermissionDenied, .. } => Reason::Unauthenticated,
        CaError::Calm | CaError::Status { code: Code::ResourceExhausted, .. } => Reason::Overload,
        CaError::Status { .. } => Reason::Refused,
        CaError::OpenSsl { .. } => Reason::Internal,
    }
}
