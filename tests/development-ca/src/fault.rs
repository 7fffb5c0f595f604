//! Scripted misbehaviour.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::flood::Flood;
use crate::pki::{Leaf, Pki};

/// Edits an answer's `cert_chain`.
type EditChain = Arc<dyn Fn(Vec<String>) -> Vec<String> + Send + Sync>;
/// Edits what is about to be signed.
type EditLeaf = Arc<dyn Fn(&mut SignOverrides) + Send + Sync>;

/// One way to go wrong. The faults that answer (`Status`, `Refuse`, `Http`, `Hang`, `Chain`) do so before anything is verified.
#[derive(Clone)]
pub enum Fault {
    /// Answers this error.
    Status(tonic::Code, String),
    /// Answers this error, with its details and metadata.
    Refuse(Box<tonic::Status>),
    /// Answers as a proxy before the CA might: HTTP without gRPC.
    Http(PlainAnswer),
    /// Answers right, but later.
    Delay(Duration),
    /// Accepts the call and never answers.
    Hang,
    /// Answers this `cert_chain` verbatim.
    Chain(Vec<String>),
    /// Answers right, with the chain edited.
    Mutate(EditChain),
    /// Verifies the caller, then signs something else.
    Sign(EditLeaf),
    /// A new connection gets HTTP/2 frames without an end once a call arrives on it.
    Flood(Flood),
    /// A client certificate in the handshake gets a TLS alert; on a connection that is up already, nothing changes.
    RefuseClientCertificate,
    /// Closes the connection: a new one straight after accept, an existing one when a call arrives on it.
    DropConnection,
    /// Closes the connection when a call arrives on it, and never before.
    Break,
}

impl Fault {
    /// [`Fault::Mutate`] without the wrapping.
    pub fn mutate(edit: impl Fn(Vec<String>) -> Vec<String> + Send + Sync + 'static) -> Fault {
        Fault::Mutate(Arc::new(edit))
    }

    /// A refusal that asks to be left alone for so many seconds, by the header `retry-after`.
    pub fn later(code: tonic::Code, seconds: u32) -> Fault {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("retry-after", seconds.into());
        Fault::Refuse(Box::new(tonic::Status::with_metadata(code, "later", metadata)))
    }

    /// [`Fault::Sign`] without the wrapping.
    pub fn sign(edit: impl Fn(&mut SignOverrides) + Send + Sync + 'static) -> Fault {
        Fault::Sign(Arc::new(edit))
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Status(code, message) => f.debug_tuple("Status").field(code).field(message).finish(),
            Fault::Refuse(status) => f.debug_tuple("Refuse").field(status).finish(),
            Fault::Http(answer) => f.debug_tuple("Http").field(answer).finish(),
            Fault::Delay(delay) => f.debug_tuple("Delay").field(delay).finish(),
            Fault::Chain(chain) => f.debug_tuple("Chain").field(chain).finish(),
            Fault::Hang => f.write_str("Hang"),
            Fault::Mutate(_) => f.write_str("Mutate"),
            Fault::Sign(_) => f.write_str("Sign"),
            Fault::Flood(flood) => f.debug_tuple("Flood").field(flood).finish(),
            Fault::RefuseClientCertificate => f.write_str("RefuseClientCertificate"),
            Fault::DropConnection => f.write_str("DropConnection"),
            Fault::Break => f.write_str("Break"),
        }
    }
}

/// An HTTP answer that is no gRPC.
#[derive(Clone, Debug, Default)]
pub struct PlainAnswer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// What [`Fault::Sign`] may change.
#[derive(Clone)]
pub struct SignOverrides {
    /// Names, validity, usages and CA flag of the certificate; holds the right values when the fault gets it.
    pub leaf: Leaf,
    /// Certifies a fresh key in place of the CSR's.
    pub other_key: bool,
    /// Signs with this PKI's intermediate; the answer still carries the right intermediate and root.
    pub signed_by: Option<Arc<Pki>>,
}
