use std::collections::VecDeque;

use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource},
    google::protobuf::Any,
};

use super::subscription::Outcome;
use crate::store::{Encoded, Piece};

/// Field numbers of `envoy/service/discovery/v3/discovery.proto` and `google/protobuf/any.proto`.
const RESPONSE_RESOURCES: u32 = 2;
const RESOURCE_RESOURCE: u32 = 2;
const ANY_VALUE: u32 = 2;
/// Bytes of the compression flag and the length before each message ("gRPC over HTTP/2").
pub const PREFIX: usize = 5;

/// A response as it goes on the wire, in pieces: what is this stream's own, and between it the encoded secrets, which
/// all streams share. So a key is encoded once and never copied, and it is gone when the last of its frames is.
pub type Pieces = VecDeque<Piece>;

/// A response of `StreamSecrets` and `FetchSecrets`, in which the secrets have this mark.
pub(super) fn state_of_the_world(outcome: &Outcome, nonce: String, mark: u64) -> Pieces {
    let head = DiscoveryResponse {
        version_info: version(outcome),
        type_url: SECRET_TYPE_URL.to_owned(),
        nonce,
        resources: Vec::new(),
    };
    let resources = outcome.send.iter().map(|(_, secret)| {
        let mut before = Vec::new();
        let any = any_head(secret.resource());
        encode_length(RESPONSE_RESOURCES, any.len() + secret.resource().len(), &mut before);
        before.extend(any);
        before.extend(secret.resource().opening(mark));
        (before, secret.resource())
    });
    pieces(&head, resources)
}

/// A response of `DeltaSecrets`, likewise.
pub(super) fn delta(outcome: &Outcome, nonce: String, mark: u64) -> Pieces {
    let head = DeltaDiscoveryResponse {
        system_version_info: version(outcome),
        type_url: SECRET_TYPE_URL.to_owned(),
        removed_resources: outcome.removed.clone(),
        nonce,
        resources: Vec::new(),
    };
    let resources = outcome.send.iter().map(|(name, secret)| {
        let any = any_head(secret.resource());
        let any_len = any.len() + secret.resource().len();
        let mut resource =
            Resource { name: name.clone(), version: secret.version().to_owned(), resource: None }.encode_to_vec();
        encode_length(RESOURCE_RESOURCE, any_len, &mut resource);
        let mut before = Vec::new();
        encode_length(RESPONSE_RESOURCES, resource.len() + any_len, &mut before);
        before.extend(resource);
        before.extend(any);
        before.extend(secret.resource().opening(mark));
        (before, secret.resource())
    });
    pieces(&head, resources)
}

/// The version of a response: that of its resource, or of all of them in the order of their names.
fn version(outcome: &Outcome) -> String {
    outcome.send.iter().map(|(_, secret)| secret.version()).collect::<Vec<_>>().join("+")
}

/// An `Any` up to its value, which follows.
fn any_head(value: &Encoded) -> Vec<u8> {
    let mut head = Any { type_url: SECRET_TYPE_URL.to_owned(), value: Bytes::new() }.encode_to_vec();
    encode_length(ANY_VALUE, value.len(), &mut head);
    head
}

/// Writes key and length of a field of bytes or of a message.
pub fn encode_length(field: u32, len: usize, buf: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

/// A message of another service.
pub(super) fn plain(message: &impl Message) -> Pieces {
    pieces(message, std::iter::empty())
}

/// The resources come after all other fields, because their place in a message is free.
fn pieces<'a>(head: &impl Message, resources: impl Iterator<Item = (Vec<u8>, &'a Encoded)>) -> Pieces {
    let mut pieces = Pieces::new();
    let mut own = vec![0; PREFIX];
    own.extend(head.encode_to_vec());
    for (before, shared) in resources {
        own.extend(before);
        pieces.push_back(Piece::Bytes(std::mem::take(&mut own).into()));
        pieces.extend(shared.pieces());
    }
    if pieces.is_empty() {
        pieces.push_back(Piece::Bytes(own.into()));
    }
    framed(pieces)
}

/// A whole message with its length, for which its first piece begins with [`PREFIX`] bytes of zeros.
pub fn framed(mut pieces: Pieces) -> Pieces {
    let len = pieces.iter().map(Piece::len).sum::<usize>() - PREFIX;
    if let Some(Piece::Bytes(first)) = pieces.front_mut() {
        let mut head = Vec::from(std::mem::take(first));
        // Secrets and anchors are far below 4 GiB.
        head[1..PREFIX].copy_from_slice(&(len as u32).to_be_bytes());
        *first = head.into();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::TrustBundle,
        store::{Content, SecretStore, Validation, View},
    };

    fn outcome() -> Outcome {
        let store = SecretStore::new(|_, content| {
            let Content::ValidationContext(roots) = content else { unreachable!("only those are published") };
            Encoded::public(roots.domains.into_iter().map(|(name, _)| Piece::Bytes(name.into())).collect())
        });
        let content = |name: &str| {
            let domains = vec![(name.to_owned(), TrustBundle::default())];
            Content::ValidationContext(Validation { domains, ..Validation::default() })
        };
        store.publish([("ROOTCA", content(&"7".repeat(300)), 1), ("default", content("short"), 1)]);
        let View::Open(snapshot) = store.view().borrow().clone() else { unreachable!("nothing ended the store") };
        let send = snapshot.iter().map(|(name, secret)| (name.clone(), secret.clone())).collect();
        Outcome { send, removed: vec!["gone".to_owned()], verdict: None, left_out: None }
    }

    fn resource(outcome: &Outcome, at: usize) -> Bytes {
        outcome.send[at].1.resource().pieces().next().unwrap().take().unwrap()
    }

    fn message(pieces: &Pieces) -> Vec<u8> {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.clone().take().unwrap()).collect();
        assert_eq!(bytes[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize, bytes.len() - PREFIX);
        bytes[PREFIX..].to_vec()
    }

    #[test]
    fn pieces_are_what_prost_would_write() {
        let outcome = outcome();
        let any = |at: usize| Any { type_url: SECRET_TYPE_URL.to_owned(), value: resource(&outcome, at) };
        let stream = DiscoveryResponse::decode(&*message(&state_of_the_world(&outcome, "n".to_owned(), 1))).unwrap();
        assert!(stream.resources == [any(0), any(1)]);
        assert_eq!((stream.nonce.as_str(), stream.type_url.as_str()), ("n", SECRET_TYPE_URL));
        let delta = DeltaDiscoveryResponse::decode(&*message(&delta(&outcome, "n".to_owned(), 1))).unwrap();
        assert_eq!(delta.removed_resources, ["gone"]);
        for (at, resource) in delta.resources.iter().enumerate() {
            assert_eq!(
                (&resource.name, resource.version.as_str()),
                (&outcome.send[at].0, outcome.send[at].1.version())
            );
            assert!(resource.resource == Some(any(at)));
        }
        assert_eq!(delta.system_version_info, stream.version_info);
    }

    #[test]
    fn secrets_are_shared_and_not_copied() {
        let outcome = outcome();
        for pieces in [state_of_the_world(&outcome, "n".to_owned(), 1), delta(&outcome, "n".to_owned(), 1)] {
            assert_eq!(pieces.len(), 4);
            for (at, (_, secret)) in outcome.send.iter().enumerate() {
                let resource = secret.resource().pieces().next().unwrap().take().unwrap();
                assert_eq!(pieces[2 * at + 1].clone().take().unwrap().as_ptr(), resource.as_ptr());
            }
        }
    }

    #[test]
    fn a_response_without_resources_is_whole() {
        let outcome = Outcome { removed: vec!["gone".to_owned()], ..Outcome::default() };
        let pieces = delta(&outcome, "n".to_owned(), 1);
        assert_eq!(DeltaDiscoveryResponse::decode(&*message(&pieces)).unwrap().removed_resources, ["gone"]);
    }
}
