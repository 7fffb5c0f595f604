//! What Envoy does with each kind of revocation list, and what we say of it: a list that we take for useless makes
//! Envoy refuse certificates that nobody revoked, and every other list serves.

use std::{net::Ipv4Addr, time::Duration};

use sds_shim::{
    clock,
    identity::{CrlSigner, CrlState, RevocationList, certificates},
};
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    development_ca::{CrlOptions, Issued, Leaf, Lifetime, Pki, PkiOptions},
    envoy::Envoy,
    http,
    port::Reservation,
    scratch::Scratch,
    tls,
};
use tokio::net::TcpStream;

const ID: &str = "spiffe://cluster.local/ns/bar/sa/peer";
const DELTA: &str = "2.5.29.27";
const POINT: &str = "2.5.29.28";
const NAMED_POINT: &[u8] = b"\x30\x12\xa0\x10\xa0\x0e\x86\x0chttp://x.y/z";

/// A kind of list; `serves` is whether Envoy lets an ordinary peer in where it looks at leaves alone, and at whole
/// chains.
struct Kind {
    name: &'static str,
    text: String,
    serves: [bool; 2],
    /// Whether it is the list's own fault if it does not.
    flawed: bool,
}

fn kinds(pki: &Pki, other: &Pki) -> Vec<Kind> {
    let root = pki.root_crl(&[], 600);
    let fresh = CrlOptions::fresh_for(600);
    let with = |extensions| pki.crl_with(&[], &CrlOptions { extensions, ..fresh });
    let life =
        |not_before, not_after| pki.crl_with(&[], &CrlOptions { life: Lifetime { not_before, not_after }, ..fresh });
    let root_with =
        |extensions| pki.crl(&[], 600) + &pki.crl_with(&[], &CrlOptions { by_root: true, extensions, ..fresh });
    let kind = |name, list: String, serves, flawed| Kind { name, text: list + &root, serves: [serves; 2], flawed };
    vec![
        kind("an ordinary one", pki.crl(&[], 600), true, false),
        kind("expired", life(-600, -1), false, false),
        kind("ahead", life(500, 600), false, false),
        kind("expired and fresh", life(-600, -1) + &pki.crl(&[], 600), true, false),
        kind("fresh and expired", pki.crl(&[], 600) + &life(-600, -1), true, false),
        kind("ahead and fresh", life(500, 600) + &pki.crl(&[], 600), true, false),
        kind("of another CA", other.crl(&[], 600), false, false),
        kind("wrong signature", pki.crl_with(&[], &CrlOptions { foreign_key: true, ..fresh }), false, true),
        kind("unknown critical extension", with(&[("1.2.3.4", true, &[5, 0])]), false, true),
        kind("unknown extension", with(&[("1.2.3.4", false, &[5, 0])]), true, false),
        kind("delta", with(&[(DELTA, true, &[2, 1, 1])]), false, true),
        kind("delta and fresh", with(&[(DELTA, true, &[2, 1, 1])]) + &pki.crl(&[], 600), true, true),
        kind("for leaves", with(&[(POINT, true, &[0x30, 3, 0x81, 1, 0xff])]), true, false),
        kind("for CA certificates", with(&[(POINT, true, &[0x30, 3, 0x82, 1, 0xff])]), false, false),
        // Envoy takes it for one of all certificates, and so would let everybody in.
        kind("for attribute certificates", with(&[(POINT, true, &[0x30, 3, 0x85, 1, 0xff])]), true, true),
        kind("indirect", with(&[(POINT, true, &[0x30, 3, 0x84, 1, 0xff])]), false, true),
        kind("of some reasons", with(&[(POINT, true, &[0x30, 4, 0x83, 2, 1, 0x40])]), false, true),
        kind("of a distribution point", with(&[(POINT, true, NAMED_POINT)]), false, true),
        kind("of the whole issuer", with(&[(POINT, true, &[0x30, 0])]), true, false),
        kind("a point that is not critical", with(&[(POINT, false, NAMED_POINT)]), false, true),
        Kind { name: "of the issuer alone", text: pki.crl(&[], 600), serves: [true, false], flawed: false },
        Kind { name: "of the root alone", text: root.clone(), serves: [false, false], flawed: false },
        Kind {
            name: "root's for CA certificates",
            text: root_with(&[(POINT, true, &[0x30, 3, 0x82, 1, 0xff])]),
            serves: [true, true],
            flawed: false,
        },
        Kind {
            name: "root's for leaves",
            text: root_with(&[(POINT, true, &[0x30, 3, 0x81, 1, 0xff])]),
            serves: [true, false],
            flawed: false,
        },
        Kind {
            name: "the issuer revoked",
            text: pki.crl(&[], 600) + &pki.root_crl(&[&pki.as_issued()], 600),
            serves: [true, false],
            flawed: false,
        },
    ]
}

fn listener(port: u16, server: &Issued, anchors: &str, crl: &str, leaf_only: bool) -> Value {
    let answer = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x",
            "route_config": { "virtual_hosts": [{ "name": "x", "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "direct_response": { "status": 200 } }
            ]}]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    });
    json!({
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{
            "filters": [answer],
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": {
                        "tls_certificates": [{
                            "certificate_chain": { "inline_string": server.chain_pem },
                            "private_key": { "inline_string": server.key_pem },
                        }],
                        "validation_context": {
                            "trusted_ca": { "inline_string": anchors },
                            "crl": { "inline_string": crl },
                            "only_verify_leaf_cert_crl": leaf_only,
                        },
                    },
                },
            },
        }],
    })
}

async fn lets_in(port: u16, pki: &Pki, peer: &Issued) -> Result<bool, Failure> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.or_fail("connect")?;
    let answer = match tls::connect(stream, &pki.root_pem(), Some(peer)).await {
        Ok(stream) => http::get(stream, "x", "/").await,
        Err(failure) => Err(failure),
    };
    Ok(answer.is_ok_and(|answer| answer.status == 200))
}

/// A differential test: the same lists for Envoy and for us.
#[tokio::test]
async fn we_say_of_each_kind_what_envoy_does_with_it() -> testkit::Result {
    let (pki, other) = (Pki::new("one"), Pki::new("two"));
    let peer = pki.issue(&Leaf::workload(ID, Duration::from_secs(3600)));
    let scratch = Scratch::new("kinds")?;
    let kinds = kinds(&pki, &other);
    let ports: Vec<_> =
        (0..2 * kinds.len()).map(|_| Reservation::new().or_fail("reserve a port")).collect::<Result<_, _>>()?;
    let listeners = ports
        .iter()
        .enumerate()
        .map(|(index, port)| listener(port.port(), &peer, &pki.root_pem(), &kinds[index / 2].text, index % 2 == 0));
    let bootstrap = json!({
        "admin": { "address": { "pipe": { "path": "admin.sock" } } },
        "static_resources": { "listeners": listeners.collect::<Vec<_>>() },
    });
    let mut envoy = Envoy::start("Envoy", scratch.path(), &bootstrap)?;
    envoy.wait_ready().await?;
    let chain = certificates(&(pki.intermediate_pem() + &pki.root_pem())).or_fail("read the CAs")?;
    let signers = CrlSigner::of(chain);
    let mut wrong = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        let lists = RevocationList::all(kind.text.as_bytes()).map_err(Failure::new)?;
        let states = lists.iter().map(|list| list.state(&signers, clock::now()));
        let flaws: Vec<_> = states.filter(|state| matches!(state, CrlState::Flawed(_))).collect();
        let mut seen = [false; 2];
        for (at, seen) in seen.iter_mut().enumerate() {
            *seen = lets_in(ports[2 * index + at].port(), &pki, &peer).await?;
        }
        println!("{:32} leaf alone {:5}, whole chain {:5}; {flaws:?}", kind.name, seen[0], seen[1]);
        if seen != kind.serves || flaws.is_empty() == kind.flawed {
            wrong.push(kind.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// Of an anchor that is no root, Envoy wants a list that tells whether it is revoked itself.
#[tokio::test]
async fn whole_chains_cannot_be_checked_below_an_intermediate_as_anchor() -> testkit::Result {
    let pki = Pki::with_options(&PkiOptions { upper: true, ..PkiOptions::new("one") });
    let peer = pki.issue(&Leaf::workload(ID, Duration::from_secs(3600)));
    let scratch = Scratch::new("kinds")?;
    let ports = [Reservation::new().or_fail("reserve a port")?, Reservation::new().or_fail("reserve a port")?];
    let listener = |at: usize| listener(ports[at].port(), &peer, &pki.intermediate_pem(), &pki.crl(&[], 600), at == 0);
    let bootstrap = json!({
        "admin": { "address": { "pipe": { "path": "admin.sock" } } },
        "static_resources": { "listeners": [listener(0), listener(1)] },
    });
    let mut envoy = Envoy::start("Envoy", scratch.path(), &bootstrap)?;
    envoy.wait_ready().await?;
    assert!(lets_in(ports[0].port(), &pki, &peer).await?);
    assert!(!lets_in(ports[1].port(), &pki, &peer).await?);
    Ok(())
}
