use std::time::Duration;

use openssl::error::ErrorStack;
use tonic::{Code, Status};

use super::retry;
use crate::{bounded::foreign_text, resolve::ResolveError};

/// What a deadline is called that is none of the configuration's.
const HELD: &str = "half of the certificate's remaining life";

/// Why a call to the CA brought no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The name of the CA has no address: check CA_ADDR and the cluster's DNS.
    #[error("cannot resolve {host}: {cause}")]
    Resolve {
        /// Host of CA_ADDR.
        host: String,
        /// What the nameservers said.
        cause: ResolveError,
    },
    /// There is no TCP connection: check that the CA runs and that network policies let us through.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The file with the CA's trust anchors is missing or unusable: check CA_ROOT_CA.
    #[error("trust anchors for the CA, {path}: {cause}")]
    Roots {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The TLS handshake failed: check CA_ROOT_CA and ISTIOD_SAN against the CA's server certificate.
    #[error("TLS handshake with {address}: {cause}")]
    Tls {
        /// Host and port.
        address: String,
        /// What failed, and how the server certificate was verified.
        cause: String,
    },
    /// The CA ended the TLS connection because of our client certificate.
    #[error("the CA rejected the client certificate: {0}")]
    ClientCertificateRefused(String),
    /// PROV_CERT is unusable.
    #[error("client certificate in PROV_CERT: {0}")]
    Provisioned(String),
    /// Name, connection and TLS handshake took longer than SDS_SHIM_CA_TIMEOUT.
    #[error("{address} not reached within {} s (SDS_SHIM_CA_TIMEOUT)", limit.as_secs_f64())]
    Unreached {
        /// Host and port.
        address: String,
        /// How long was tried.
        limit: Duration,
    },
    /// The answer took longer than SDS_SHIM_CA_ANSWER_TIMEOUT, or than what is held allows.
    #[error("no answer within {} s ({})", .0.as_secs_f64(), if *.1 { HELD } else { "SDS_SHIM_CA_ANSWER_TIMEOUT" })]
    Deadline(Duration, bool),
    /// The CA has the call, and does not even answer a PING.
    #[error("the connection is open, but the CA does not respond on it: {0}")]
    Dead(String),
    /// The connection broke before the answer was there.
    #[error("the connection broke: {0}")]
    Transport(String),
    /// Whoever answers for the CA ended the call because it is asked too much.
    #[error("the CA is overloaded: it ended the call with HTTP/2's ENHANCE_YOUR_CALM")]
    Calm,
    /// More came than an answer can be, or than there is room for: check that CA_ADDR names a CA.
    #[error("connection aborted: {0}")]
    GivenUp(&'static str),
    /// The CA answered with an error.
    #[error("the CA answered {}: {message}", crate::wire::code_name(*.code))]
    Status {
        /// Its gRPC code.
        code: Code,
        /// Its text, cut and without anything that could be a key.
        message: String,
        /// How long it asks us to wait.
        retry_after: Option<Duration>,
    },
    /// OpenSSL failed before anything was sent; most often for want of memory.
    #[error("{what}: OpenSSL: {cause}")]
    OpenSsl {
        /// What could not be done.
        what: &'static str,
        /// What OpenSSL said.
        cause: ErrorStack,
    },
}

impl CaError {
    pub(super) fn from_status(status: &Status, header: Option<Duration>) -> Self {
        let retry_after = retry::from_status(status).or(header);
        Self::Status { code: status.code(), message: foreign_text(status.message(), 256), retry_after }
    }

    pub(super) fn openssl(what: &'static str) -> impl Fn(ErrorStack) -> Self {
        move |cause| Self::OpenSsl { what, cause }
    }

    /// How long the CA asks us to wait before the next call.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the request may have reached the CA.
    pub fn was_asked(&self) -> bool {
        !matches!(
            self,
            Self::Resolve { .. }
                | Self::Connect { .. }
                | Self::Roots { .. }
                | Self::Tls { .. }
                | Self::Unreached { .. }
                | Self::OpenSsl { .. }
        )
    }

    /// Whether nobody was there for whom the attempt could have been any work: who refuses a connection does nothing else.
    /// A connection that is silent may be one that a busy CA does not take.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Resolve { .. } => true,
            Self::Connect { cause, .. } => cause.kind() != std::io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Whether the answer did not come in time, for us or for whoever stands before the CA and may be less patient.
    pub fn is_late(&self) -> bool {
        matches!(
            self,
            Self::Unreached { .. }
                | Self::Deadline(..)
                | Self::Dead(_)
                | Self::Status { code: Code::DeadlineExceeded, .. }
        )
    }

    /// Whether the CA says that it is asked too much (`RESOURCE_EXHAUSTED`, or the same of HTTP/2).
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Calm | Self::Status { code: Code::ResourceExhausted, .. })
    }

    /// Whether the CA did not accept who we say we are, so that another credential may help.
    pub fn is_authentication(&self) -> bool {
        matches!(
            self,
            Self::ClientCertificateRefused(_)
                | Self::Status { code: Code::Unauthenticated | Code::PermissionDenied, .. }
        )
    }
}
