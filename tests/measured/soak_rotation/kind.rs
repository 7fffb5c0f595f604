//! What goes wrong.

use std::time::Duration;

use testkit::{
    development_ca::{Fault, Flood, Leaf},
    rng::Rng,
};
use tonic::Code;

/// All of it.
pub(crate) const KINDS: [Kind; 23] = [
    Kind::Status,
    Kind::Overload,
    Kind::Late,
    Kind::Hang,
    Kind::Drop,
    Kind::RefuseCertificate,
    Kind::Empty,
    Kind::NoPem,
    Kind::WithoutRoot,
    Kind::LeafLast,
    Kind::OtherKey,
    Kind::OtherName,
    Kind::Expired,
    Kind::Flood,
    Kind::ManyNames,
    Kind::Refused,
    Kind::Lost,
    Kind::CaRestart,
    Kind::ExpiredToken,
    Kind::NoToken,
    Kind::Stopped,
    Kind::Killed,
    Kind::Reconnects,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Any code.
    Status,
    /// The code that asks for the longest back-off.
    Overload,
    /// Answers in time or not.
    Late,
    Hang,
    Drop,
    RefuseCertificate,
    Empty,
    NoPem,
    WithoutRoot,
    LeafLast,
    OtherKey,
    OtherName,
    Expired,
    /// Frames without an end.
    Flood,
    /// A leaf with thousands of names.
    ManyNames,
    /// Nobody listens at the CA's address.
    Refused,
    /// Connections to it lead nowhere.
    Lost,
    CaRestart,
    ExpiredToken,
    NoToken,
    /// A shim does not run for a while.
    Stopped,
    Killed,
    /// Clients come and go.
    Reconnects,
}

impl Kind {
    /// What the CA does, for the kinds that are its own doing.
    pub(crate) fn fault(self, rng: &mut Rng) -> Option<Fault> {
        let leaf = |edit: fn(&mut Leaf)| Some(Fault::sign(move |sign| edit(&mut sign.leaf)));
        match self {
            Self::Status => Some(Fault::Status(Code::from_i32(rng.within(1..17) as i32), "soak".to_owned())),
            Self::Overload => Some(Fault::Status(Code::ResourceExhausted, "soak".to_owned())),
            Self::Late => Some(Fault::Delay(Duration::from_millis(rng.within(100..1500) as u64))),
            Self::Hang => Some(Fault::Hang),
            Self::Drop => Some(Fault::DropConnection),
            Self::RefuseCertificate => Some(Fault::RefuseClientCertificate),
            Self::Flood => Some(Fault::Flood(Flood::ALL[rng.within(0..Flood::ALL.len())])),
            Self::ManyNames => leaf(|leaf| leaf.dns = vec!["a.b".to_owned(); 5000]),
            Self::Empty => Some(Fault::Chain(Vec::new())),
            Self::NoPem => Some(Fault::Chain(vec!["no PEM".to_owned()])),
            Self::WithoutRoot => Some(Fault::mutate(|chain| chain[..1].to_vec())),
            Self::LeafLast => Some(Fault::mutate(|chain| chain.into_iter().rev().collect())),
            Self::OtherKey => Some(Fault::sign(|sign| sign.other_key = true)),
            Self::OtherName => leaf(|leaf| leaf.uri = vec!["spiffe://cluster.local/ns/foo/sa/other".to_owned()]),
            Self::Expired => leaf(|leaf| (leaf.not_before, leaf.not_after) = (-7200, -3600)),
            _ => None,
        }
    }
}
