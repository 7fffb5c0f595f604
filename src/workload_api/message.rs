use std::{mem, sync::Arc};

use prost::encoding::encoded_len_varint;

use crate::{
    identity::{TrustBundle, TrustDomain},
    sds::{PREFIX, Pieces, encode_length, framed},
    store::{AnchorText, Piece, Svid, Validation},
};

/// Field numbers of `X509SVIDResponse`, of `X509SVID`, of `X509BundlesResponse` and of an entry of a map.
const SVIDS: u32 = 1;
const FEDERATED_BUNDLES: u32 = 3;
const BUNDLE: u32 = 4;
const BUNDLES: u32 = 2;
const ENTRY_KEY: u32 = 1;
const ENTRY_VALUE: u32 = 2;

/// The certificate with the anchors of its trust domain, and those of others; `None` where there are none of its own,
/// because clients refuse such a message.
pub(super) fn svid(svid: &Svid, validation: &Validation) -> Option<Pieces> {
    let own = svid.id.domain();
    let bundle = validation.anchors_of(&own).filter(|bundle| !bundle.anchors().is_empty())?;
    let mut message = Message::new();
    let anchors = AnchorText::der(Arc::new(bundle.clone()));
    encode_length(SVIDS, svid.encoded.len() + field(anchors.len()), &mut message.last);
    message.cut();
    message.pieces.extend(svid.encoded.pieces());
    message.anchors(BUNDLE, anchors);
    message.bundles(FEDERATED_BUNDLES, others(validation, &own));
    Some(framed(message.pieces))
}

/// The anchors of all trust domains, `None` where there are none of this one.
pub(super) fn bundles(own: &TrustDomain, validation: &Validation) -> Option<Pieces> {
    let bundle = validation.anchors_of(own).filter(|bundle| !bundle.anchors().is_empty())?;
    let mut message = Message::new();
    message.bundles(BUNDLES, [(own.to_string(), bundle)].into_iter().chain(others(validation, own)));
    Some(framed(message.pieces))
}

/// The other trust domains. One that has withdrawn its anchors is left out, which says the same: for an empty bundle
/// py-spiffe 0.3.2 and java-spiffe 0.8.11 refuse the whole message, with the workload's own certificate.
fn others<'a>(
    validation: &'a Validation,
    own: &TrustDomain,
) -> impl Iterator<Item = (String, &'a TrustBundle)> + use<'a> {
    let own = own.to_string();
    let others = validation.domains.iter().filter(move |(name, bundle)| *name != own && !bundle.anchors().is_empty());
    others.map(|(name, bundle)| (name.clone(), bundle))
}

/// Bytes of a field with so many in it. The keys of all fields here are one byte long.
fn field(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// A message that is written in pieces.
struct Message {
    pieces: Pieces,
    /// What comes behind them.
    last: Vec<u8>,
}

impl Message {
    fn new() -> Self {
        Self { pieces: Pieces::new(), last: vec![0; PREFIX] }
    }

    fn cut(&mut self) {
        self.pieces.push_back(Piece::Bytes(mem::take(&mut self.last).into()));
    }

    fn anchors(&mut self, field: u32, anchors: AnchorText) {
        encode_length(field, anchors.len(), &mut self.last);
        self.cut();
        self.pieces.push_back(Piece::Anchors(anchors));
    }

    fn bundles<'a>(&mut self, map: u32, bundles: impl Iterator<Item = (String, &'a TrustBundle)>) {
        for (domain, bundle) in bundles {
            let (name, anchors) = (format!("spiffe://{domain}"), AnchorText::der(Arc::new(bundle.clone())));
            encode_length(map, field(name.len()) + field(anchors.len()), &mut self.last);
            encode_length(ENTRY_KEY, name.len(), &mut self.last);
            self.last.extend_from_slice(name.as_bytes());
            self.anchors(ENTRY_VALUE, anchors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use sds_shim_proto::spiffe::{X509BundlesResponse, X509svidResponse};
    use testkit::development_ca::{Leaf, Pki};

    fn read(pieces: Pieces) -> Vec<u8> {
        let bytes: Vec<u8> =
            pieces.into_iter().flat_map(|mut piece| std::iter::from_fn(move || piece.take())).flatten().collect();
        assert_eq!(bytes[0], 0, "not compressed");
        assert_eq!(u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize, bytes.len() - PREFIX);
        bytes[PREFIX..].to_vec()
    }

    fn bundle(count: usize) -> (TrustBundle, Vec<u8>) {
        let text: String = (0..count).map(|number| Pki::new(&number.to_string()).root_pem()).collect();
        let bundle = TrustBundle::from_pem(&text, 0).unwrap().0;
        let der = bundle.anchors().iter().flat_map(|anchor| anchor.der()).copied().collect();
        (bundle, der)
    }

    #[test]
    fn messages_are_what_prost_would_read() {
        let issued = Pki::new("message").issue(&Leaf::workload("spiffe://own/path", testkit::PATIENCE));
        let of = super::super::encode(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        let of = of.unwrap_or_else(|why| panic!("{why}"));
        // More than one portion.
        let ((own, own_der), (other, other_der)) = (bundle(40), bundle(2));
        let whole = Validation { anchors: own.clone(), ..Validation::default() };
        let told = X509svidResponse::decode(read(svid(&of, &whole).unwrap()).as_slice()).unwrap();
        assert_eq!((told.svids.len(), told.federated_bundles.len()), (1, 0));
        assert_eq!(told.svids[0].spiffe_id, "spiffe://own/path");
        assert!(told.svids[0].bundle == own_der && told.svids[0].x509_svid_key == of.encoded.key());

        let none = ("withdrawn".to_owned(), TrustBundle::default());
        let domains = vec![("own".to_owned(), own.clone()), ("other".to_owned(), other), none];
        let several = Validation { anchors: own, domains, ..Validation::default() };
        let told = X509svidResponse::decode(read(svid(&of, &several).unwrap()).as_slice()).unwrap();
        assert!(told.svids[0].bundle == own_der);
        let federated: Vec<_> = told.federated_bundles.into_iter().collect();
        assert!(federated == [("spiffe://other".to_owned(), other_der.clone().into())]);
        let told = bundles(&of.id.domain(), &several).unwrap();
        let told: Vec<_> = X509BundlesResponse::decode(read(told).as_slice()).unwrap().bundles.into_iter().collect();
        assert!(told == [("spiffe://other".to_owned(), other_der.into()), ("spiffe://own".to_owned(), own_der.into())]);
    }

    #[test]
    fn without_anchors_no_message_is_made() {
        let issued = Pki::new("message").issue(&Leaf::workload("spiffe://own/path", testkit::PATIENCE));
        let of = super::super::encode(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        let of = of.unwrap_or_else(|why| panic!("{why}"));
        let domains = vec![("other".to_owned(), bundle(1).0)];
        for validation in [Validation::default(), Validation { domains, ..Validation::default() }] {
            assert!(svid(&of, &validation).is_none() && bundles(&of.id.domain(), &validation).is_none());
        }
    }
}
