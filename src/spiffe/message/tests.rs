use super::*;
use prost::Message;
use sds_shim_proto::spiffe::{X509svid, X509svidResponse};

fn svid(id: &str, byte: u8) -> X509svid {
    let [x509_svid, x509_svid_key, bundle] = [700, 138, 3000].map(|length| vec![byte; length].into());
    X509svid { spiffe_id: id.to_owned(), x509_svid, x509_svid_key, bundle, hint: "hint".to_owned() }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

fn response() -> X509svidResponse {
    let federated_bundles = [("spiffe://other".to_owned(), vec![7; 500].into()), ("third".to_owned(), vec![].into())];
    X509svidResponse {
        svids: vec![svid("spiffe://td/first", 1), svid("spiffe://td/second", 2)],
        crl: vec![vec![9; 400].into()],
        federated_bundles: federated_bundles.into_iter().collect(),
    }
}

fn told(wanted: Option<&str>, stream: &[u8], size: usize) -> Result<Option<Told>, &'static str> {
    in_pieces(wanted.map(|id| SpiffeId::parse(id).unwrap()), stream, size)
}

#[test]
fn a_message_is_read_in_whatever_portions() {
    // Fields of others, inside and outside: a number, eight bytes, a text, four bytes.
    let others = [0x50, 0xff, 0x01, 0x59, 1, 2, 3, 4, 5, 6, 7, 8, 0x62, 2, b'a', b'b', 0x6d, 1, 2, 3, 4];
    let message = [&others[..], &response().encode_to_vec(), &others].concat();
    let stream = [framed(&[]), framed(&message)].concat();
    for size in [1, 2, 3, 100, stream.len()] {
        for (wanted, byte) in [(None, 1), (Some("spiffe://td/first"), 1), (Some("spiffe://td/second"), 2)] {
            let told = told(wanted, &stream, size).unwrap().unwrap();
            let found = told.svid.unwrap();
            assert_eq!(found.id, wanted.unwrap_or("spiffe://td/first").as_bytes());
            assert!(found.chain == [byte; 700] && found.bundle == [byte; 3000]);
            assert!(found.key.bytes() == [byte; 138]);
            assert_eq!(told.ids, ["spiffe://td/first", "spiffe://td/second"]);
            assert_eq!(told.bundles, [(b"spiffe://other".to_vec(), vec![7; 500]), (b"third".to_vec(), vec![])]);
        }
    }
    assert!(told(Some("spiffe://td/third"), &stream, 100).unwrap().unwrap().svid.is_none());
    assert!(told(None, &framed(&[]), 1).unwrap().unwrap().svid.is_none());
}

#[test]
fn a_truncated_message_is_rejected() {
    let message = X509svidResponse { svids: vec![svid("spiffe://td/first", 1)], ..Default::default() };
    let message = message.encode_to_vec();
    for cut in 1..message.len() {
        assert_eq!(told(None, &framed(&message[..cut]), 64).err(), Some(MALFORMED), "after {cut} bytes");
    }
}

#[test]
fn oversized_and_invalid_messages_are_rejected() {
    let large = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
    let bundle = |length| {
        let federated_bundles = [("td".to_owned(), vec![0; length].into())].into_iter().collect();
        framed(&X509svidResponse { federated_bundles, ..Default::default() }.encode_to_vec())
    };
    let name = |length| {
        let svids = vec![X509svid { spiffe_id: "x".repeat(length), ..Default::default() }];
        framed(&X509svidResponse { svids, ..Default::default() }.encode_to_vec())
    };
    let key = X509svid { x509_svid_key: vec![0; MAX_KEY + 1].into(), ..Default::default() };
    let key = X509svidResponse { svids: vec![key], ..Default::default() };
    let many = X509svidResponse { crl: vec![Vec::new().into(); MAX_FIELDS + 1], ..Default::default() };
    for (stream, flaw) in [
        (vec![1, 0, 0, 0, 0], COMPRESSED),
        (large(u32::MAX), TOO_LARGE),
        (bundle(MAX_KEPT), TOO_LARGE),
        (name(MAX_NAME + 1), TOO_LARGE),
        (framed(&key.encode_to_vec()), TOO_LARGE),
        (framed(&many.encode_to_vec()), FIELDS),
        (framed(&[0x00]), MALFORMED),
        (framed(&[0x0b]), MALFORMED),
        // A length that is more than its message has.
        (framed(&[0x0a, 2, 0x0a, 5, 1, 2, 3, 4, 5]), MALFORMED),
        (framed(&[0xff; 11]), MALFORMED),
    ] {
        assert_eq!(told(None, &stream, 1000).err(), Some(flaw));
    }
    assert!(told(None, &bundle(MAX_KEPT - 100), 1000).unwrap().is_some());
    // Whatever is said of identities that are not wanted takes no room for long.
    let many = X509svidResponse { svids: vec![svid("spiffe://td/other", 1); 150], ..Default::default() };
    assert!(told(Some("spiffe://td/a"), &framed(&many.encode_to_vec()), 1000).unwrap().is_some());
}

#[test]
fn a_key_cannot_be_printed() {
    let stream = framed(&response().encode_to_vec());
    let told = told(None, &stream, 100).unwrap().unwrap();
    assert!(format!("{:?}", told.svid.unwrap()).contains("key: KeyDer(138 bytes)"));
}
