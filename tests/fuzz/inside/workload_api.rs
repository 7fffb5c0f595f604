//! What a SPIFFE Workload API sends, on a stream that comes in pieces.

use prost::Message;
use sds_shim_proto::spiffe::X509svidResponse;

use super::message::{Told, in_pieces};

/// The first byte says how large the pieces are, and whether the rest is a stream as it came or one message.
pub fn workload_api(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let size = usize::from(first >> 1) + 1;
    if first & 1 == 0 {
        // Whatever it is, it is taken or refused, and nothing of it is left.
        let _ = in_pieces(None, rest, size);
        return;
    }
    let framed = [&[0][..], &(rest.len() as u32).to_be_bytes(), rest].concat();
    let Ok(expected) = X509svidResponse::decode(rest) else {
        let _ = in_pieces(None, &framed, size);
        return;
    };
    // As it would have been written: without fields of others, and each field once.
    let written = expected.encode_to_vec();
    let framed_anew = [&[0][..], &(written.len() as u32).to_be_bytes(), &written].concat();
    let Ok(Some(read)) = in_pieces(None, &framed_anew, size) else {
        panic!("a message of {} bytes is refused", written.len())
    };
    check(&read, &expected);
    // Prost passes over groups, which nobody sends any more.
    if let Ok(Some(read)) = in_pieces(None, &framed, size) {
        assert!(read.svid.is_none() == expected.svids.is_empty());
    }
}

fn check(read: &Told, expected: &X509svidResponse) {
    match (&read.svid, expected.svids.first()) {
        (None, None) => {}
        (Some(svid), Some(first)) => {
            assert_eq!(svid.id, first.spiffe_id.as_bytes());
            assert!(svid.chain == first.x509_svid && svid.bundle == first.bundle);
            assert!(svid.key.bytes() == &first.x509_svid_key[..]);
        }
        _ => panic!("there is one, or there is none"),
    }
    assert!(read.ids.iter().all(|id| !id.contains(char::is_control)));
    let bundles: Vec<_> = expected.federated_bundles.iter().map(|(name, der)| (name.as_bytes(), &der[..])).collect();
    assert!(read.bundles.iter().map(|(name, der)| (&name[..], &der[..])).eq(bundles));
}
