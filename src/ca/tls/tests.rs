use std::{io::Read as _, os::unix::net::UnixStream, thread};

use openssl::{asn1::Asn1Time, hash::MessageDigest, pkey::PKey, rsa::Rsa};

use super::*;

/// A server with an RSA key.
fn server(edit: impl FnOnce(&mut SslContextBuilder)) -> Ssl {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut certificate = X509::builder().unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
    context.set_certificate(&certificate.build()).unwrap();
    context.set_private_key(&key).unwrap();
    edit(&mut context);
    Ssl::new(&context.build()).unwrap()
}

/// One that encrypts the secret with its key, in TLS 1.2, and with nothing else.
fn without_groups() -> Ssl {
    server(|context| {
        context.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
        context.set_cipher_list("kRSA").unwrap();
    })
}

/// What came of a connection to a server: whether its certificate was looked at, and the reason.
fn meets(server: Ssl, groups: Option<&str>, before: Option<Negotiated>) -> (bool, Option<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || server.accept(theirs).is_ok());
    let tls = CaTls { only_1_3: false, groups: groups.map(str::to_owned) };
    let ssl = Ssl::new(&context(&tls, None, before).unwrap().build()).unwrap();
    let openssl::ssl::HandshakeError::Failure(failed) = ssl.connect(ours).unwrap_err() else {
        panic!("the handshake did not come to an end");
    };
    let seen = failed.ssl().verify_result() != X509VerifyResult::OK;
    let reason = nothing_in_common(&tls, failed.ssl(), failed.error());
    drop(failed);
    assert!(!server.join().unwrap());
    (seen, reason)
}

/// The groups that a client names as the ones it has, and those that it sends a key share of.
fn groups_and_shares(before: Option<Negotiated>) -> (Vec<u16>, Vec<u16>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ssl = Ssl::new(&context(&CaTls::default(), None, before).unwrap().build()).unwrap();
    let client = thread::spawn(move || ssl.connect(ours).is_ok());
    let mut head = [0; 5];
    theirs.read_exact(&mut head).unwrap();
    let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    theirs.read_exact(&mut hello).unwrap();
    drop(theirs);
    assert!(!client.join().unwrap());
    let number = |at: usize| u16::from_be_bytes([hello[at], hello[at + 1]]);
    // The message's head, the version, the random bytes, the session, the ciphers and the compressions (RFC 8446,
    // section 4.1.2).
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(number(at));
    at += 1 + usize::from(hello[at]);
    at += 2;
    let (mut groups, mut shares) = (Vec::new(), Vec::new());
    while at < hello.len() {
        let (kind, length) = (number(at), usize::from(number(at + 2)));
        let (mut inside, end) = (at + 4 + 2, at + 4 + length);
        while inside < end && [10, 51].contains(&kind) {
            if kind == 10 {
                groups.push(number(inside));
                inside += 2;
            } else {
                shares.push(number(inside));
                inside += 4 + usize::from(number(inside + 2));
            }
        }
        at = end;
    }
    (groups, shares)
}

fn took(group: &'static str) -> Option<Negotiated> {
    Some(Negotiated { version: "TLSv1.3", group })
}

#[test]
fn a_server_that_has_lost_the_hybrid_group_gets_another_share() {
    let classical = server(|context| context.set_groups_list("X25519").unwrap());
    assert_eq!(
        meets(classical, None, took(HYBRID)),
        (true, None),
        "as far as the certificate, which nobody has issued"
    );
}

#[test]
fn once_a_server_has_taken_the_hybrid_share_it_is_the_only_one() {
    const X25519: u16 = 0x1d;
    const X25519_MLKEM768: u16 = 0x11ec;
    let (groups, shares) = groups_and_shares(None);
    if !has_known_groups() {
        assert_eq!(option_env!("OPENSSL_IS_OURS"), None, "look at HYBRID_SHARE for this OpenSSL");
        // What another OpenSSL has by itself stays as it is.
        return assert_eq!(groups_and_shares(took(HYBRID)), (groups, shares));
    }
    assert_eq!(shares, [X25519_MLKEM768, X25519]);
    assert_eq!(groups_and_shares(took("X25519")), (groups.clone(), shares));
    assert_eq!(groups_and_shares(took(HYBRID)), (groups, vec![X25519_MLKEM768]));
}

#[test]
fn a_key_exchange_without_a_group_matches_no_wanted_group() {
    assert_eq!(meets(without_groups(), None, None), (true, None), "as far as the certificate, which nobody has issued");
    for groups in ["X25519MLKEM768", "X25519:P-256"] {
        let (seen, reason) = meets(without_groups(), Some(groups), None);
        let expected = format!("no group in common (SDS_SHIM_CA_TLS_GROUPS={groups}): ");
        assert!(!seen && reason.as_ref().is_some_and(|reason| reason.starts_with(&expected)), "{reason:?}");
    }
}
