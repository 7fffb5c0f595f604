//! What arrived and what became of it.

use std::time::{Instant, SystemTime};

use openssl::error::ErrorStack;
use tokio::sync::watch;
use tonic::Code;

use crate::csr;

/// One `CreateCertificate`, from its arrival on.
#[derive(Clone, Debug)]
pub struct Call {
    /// When it arrived.
    pub at: SystemTime,
    /// The CSR as sent.
    pub csr: String,
    /// The lifetime asked for, in seconds.
    pub validity_duration: i64,
    /// The string fields of the request's `metadata`, `CertSigner` among them.
    pub metadata: Vec<(String, String)>,
    /// Request headers (names in lower case) without `authorization`; values that are not text are left empty.
    pub headers: Vec<(String, String)>,
    /// What the `authorization` header held; `None` without one.
    pub authorization: Option<Authorization>,
    /// The client certificate of the connection.
    pub peer: Option<Peer>,
    /// What became of it so far.
    pub outcome: Outcome,
    /// When that was decided, just before the answer is sent.
    pub settled: Option<Instant>,
}

impl Call {
    /// The URIs that the CSR asks for.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn uris(&self) -> Result<Vec<String>, ErrorStack> {
        csr::uris(&self.csr)
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An `authorization` header with the credential taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// The scheme as sent, usually `Bearer`.
    pub scheme: String,
    /// The token's `sub`, unverified; `None` when it cannot be read.
    pub subject: Option<String>,
    /// The token's `jti`, unverified, which tells one token of an account from the next.
    pub id: Option<String>,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The URI SAN; `None` when it is not a SPIFFE ID of the trust domain standing alone.
    pub spiffe_id: Option<String>,
    /// Serial number in upper-case hexadecimal.
    pub serial: String,
}

/// The end of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Not answered yet.
    Pending,
    /// A certificate was signed and sent.
    Issued {
        /// Its serial number in upper-case hexadecimal.
        serial: String,
        /// The SPIFFE ID that was authenticated and asked for.
        spiffe_id: String,
    },
    /// A chain was sent verbatim ([`Fault::Chain`](crate::Fault::Chain)).
    Scripted,
    /// An error was sent.
    Refused {
        /// Its code.
        code: Code,
        /// The true reason, which for authentication failures the caller does not get.
        reason: String,
    },
    /// The caller or the connection went away first.
    Abandoned,
}

/// Everything observable, behind one watch so that tests await events.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) calls: Vec<Call>,
    pub(crate) connections: usize,
}

impl Record {
    pub(crate) fn finished(&self) -> usize {
        self.calls.iter().filter(|call| call.outcome != Outcome::Pending).count()
    }
}

/// Sets a call's outcome; one that is dropped unsettled was abandoned.
pub(crate) struct Settle<'a> {
    record: &'a watch::Sender<Record>,
    index: usize,
}

impl<'a> Settle<'a> {
    pub(crate) fn arrived(record: &'a watch::Sender<Record>, call: Call) -> Settle<'a> {
        let mut index = 0;
        record.send_modify(|record| {
            index = record.calls.len();
            record.calls.push(call);
        });
        Settle { record, index }
    }

    pub(crate) fn settle(&self, outcome: Outcome) {
        self.record.send_modify(|record| {
            if let Some(call) = record.calls.get_mut(self.index).filter(|call| call.outcome == Outcome::Pending) {
                call.outcome = outcome;
                call.settled = Some(Instant::now());
            }
        });
    }
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        self.settle(Outcome::Abandoned);
    }
}
