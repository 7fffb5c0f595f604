use std::sync::Arc;

use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use sds_shim_proto::{
    envoy::{
        config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, SpiffeCertValidatorConfig, spiffe_cert_validator_config::TrustDomain,
        },
    },
    google::protobuf::Any,
};

use crate::{
    identity::{Certificates, RevocationList},
    store::{Content, Encoded, MARK, Validation},
};

/// The name of Envoy's validator that tells trust domains apart, and the type of its configuration.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const SPIFFE_VALIDATOR_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Field numbers of `envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto`, of `DataSource` and of
/// `WatchedDirectory`.
const SECRET_NAME: u32 = 1;
const SECRET_TLS_CERTIFICATE: u32 = 2;
const SECRET_VALIDATION_CONTEXT: u32 = 4;
const CRL: u32 = 7;
const CERTIFICATE_CHAIN: u32 = 1;
const TRUSTED_CA: u32 = 1;
const PRIVATE_KEY: u32 = 2;
const INLINE_BYTES: u32 = 2;
const WATCHED_DIRECTORY: u32 = 5;
const DIRECTORY_PATH: u32 = 1;

/// What stands before a mark. Envoy answers by ACK, unread, to bytes that it has had before, also to those that it has
/// refused; what it compares is all fields that it knows. So a mark stands in one that it uses for files alone.
const MARKED: &str = "sds-shim-";
/// Bytes of such a field.
const MARKED_LEN: usize = 4 + MARKED.len() + MARK;

/// Bytes that lie in secret memory at the least: with the key goes the end of the chain before it. Below 256 bytes (1,024
/// where a socket cannot take several pieces at once) h2 would copy them into a buffer of its own, which is not secret.
const LEAST_SECRET: usize = 1024;
/// Up to so many bytes a certificate with its key is one piece: each piece is a frame of its own, for which h2 keeps
/// memory on every stream.
const ONE_PIECE: usize = 3 * 1024;

/// Writes a content as an SDS resource. The one place where a key is put into Envoy's form.
pub fn encode(name: &str, content: Content) -> Encoded {
    match content {
        Content::TlsCertificate { chain, key } => certificate(name, &chain.pem, &key),
        Content::ValidationContext(validation) => anchors(name, validation),
    }
}

/// Written by hand, because prost would write the key into one piece of memory with all else: `name`, then
/// `tls_certificate` with the chain and the key, each as `inline_bytes` of a `DataSource`.
fn certificate(name: &str, chain: &[u8], key: &[u8]) -> Encoded {
    let field = |len: usize| encoded_len_varint(len as u64) + len;
    // The keys of all these fields are one byte long.
    let key_source = 1 + field(key.len());
    let key_field = 1 + field(key_source);
    let (opening, mark) = opening(name, [SECRET_TLS_CERTIFICATE, CERTIFICATE_CHAIN], chain.len(), key_field);

    let last = if opening.len() + chain.len() + key_field <= ONE_PIECE {
        chain.len()
    } else {
        LEAST_SECRET.saturating_sub(key.len())
    };
    let (first, last) = chain.split_at(chain.len().saturating_sub(last));
    let secret = locked::secretly(|| {
        let mut secret = Vec::with_capacity(last.len() + key_field);
        secret.extend_from_slice(last);
        open(PRIVATE_KEY, key_source, &mut secret);
        open(INLINE_BYTES, key.len(), &mut secret);
        secret.extend_from_slice(key);
        secret
    });
    let place = secret.len() - key.len()..secret.len();
    Encoded::with_key(first.to_vec().into(), secret.into(), 0..chain.len(), place).opened(opening.into(), mark)
}

/// A secret up to the bytes of its certificates, with the place of its mark. It has `name`, and in one field after the
/// other of `fields` a `DataSource` with so many bytes, which is followed by `rest` bytes of the first of them.
fn opening(name: &str, fields: [u32; 2], certificates: usize, rest: usize) -> (Vec<u8>, usize) {
    let field = |len: usize| encoded_len_varint(len as u64) + len;
    let source = MARKED_LEN + 1 + field(certificates);
    let mut head = Vec::with_capacity(name.len() + MARKED_LEN + 32);
    open(SECRET_NAME, name.len(), &mut head);
    head.extend_from_slice(name.as_bytes());
    open(fields[0], 1 + field(source) + rest, &mut head);
    open(fields[1], source, &mut head);
    open(WATCHED_DIRECTORY, MARKED_LEN - 2, &mut head);
    open(DIRECTORY_PATH, MARKED_LEN - 4, &mut head);
    head.extend_from_slice(MARKED.as_bytes());
    let mark = head.len();
    head.resize(mark + MARK, b'0');
    open(INLINE_BYTES, certificates, &mut head);
    (head, mark)
}

/// Key and length of a field.
fn open(field: u32, len: usize, buf: &mut Vec<u8>) {
    debug_assert_eq!(key_len(field), 1);
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

/// By hand as well: the anchors may be many and the lists half of the arena, and prost would write them once more.
fn anchors(name: &str, Validation { anchors, lists, whole_chain, domains }: Validation) -> Encoded {
    let has_crl = !lists.is_empty();
    let validator = (!domains.is_empty()).then(|| spiffe_validator(domains, &lists));
    let (len, mut pem) = (anchors.pem.len(), anchors.pem);
    let rest = CertificateValidationContext {
        trusted_ca: None,
        crl: None,
        // Else a CRL of every CA up to the root is needed, and a missing one refuses every peer.
        only_verify_leaf_cert_crl: has_crl && !whole_chain,
        custom_validator_config: validator,
    };
    let field = |key: u32, len: usize| key_len(key) + encoded_len_varint(len as u64) + len;
    let list_len: usize = lists.iter().map(|list| list.pem_len()).sum();
    let source = field(INLINE_BYTES, list_len);
    let rest_len = rest.encoded_len() + if has_crl { field(CRL, source) } else { 0 };
    let (opening, mark) = opening(name, [SECRET_VALIDATION_CONTEXT, TRUSTED_CA], len, rest_len);
    pem.reserve_exact(rest_len);
    rest.encode_raw(&mut pem);
    if has_crl {
        open(CRL, source, &mut pem);
        open(INLINE_BYTES, list_len, &mut pem);
        lists.iter().for_each(|list| list.pem(&mut pem));
    }
    Encoded::public(pem.into(), 0..len).opened(opening.into(), mark)
}

/// Envoy's SPIFFE validator: anchors vouch for their own trust domain alone. It looks for revocation lists among the
/// anchors of a domain, and we know those of our own, which comes first.
fn spiffe_validator(domains: Vec<(String, Certificates)>, lists: &[Arc<RevocationList>]) -> TypedExtensionConfig {
    let mut lists = Some(lists);
    let trust_domains = domains.into_iter().map(|(name, Certificates { pem: mut bundle, .. })| {
        lists.take().into_iter().flatten().for_each(|list| list.pem(&mut bundle));
        TrustDomain { name, trust_bundle: inline(bundle) }
    });
    let config = SpiffeCertValidatorConfig { trust_domains: trust_domains.collect() };
    let typed_config = Any { type_url: SPIFFE_VALIDATOR_URL.to_owned(), value: config.encode_to_vec().into() };
    TypedExtensionConfig { name: SPIFFE_VALIDATOR.to_owned(), typed_config: Some(typed_config) }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sds_shim_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, secret::Type};

    fn whole(resource: &Encoded, mark: u64) -> Vec<u8> {
        resource.opening(mark).into_iter().chain(resource.pieces().flatten()).collect()
    }

    #[test]
    fn a_certificate_is_what_prost_would_read_and_its_end_is_secret() {
        for (chain_len, key_len) in [(700, 241), (3000, 241), (100, 30), (20_000, 3272), (1, 1), (0, 0), (127, 128)] {
            let (chain, key) = (vec![b'c'; chain_len], vec![b'k'; key_len]);
            let resource = certificate("default", &chain, &key);
            let expected = Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(chain.clone()),
                private_key: inline(key.clone()),
            });
            let expected = Secret { name: "default".to_owned(), r#type: Some(expected) };
            let bytes = whole(&resource, 7);
            assert!(Secret::decode(bytes.as_slice()).unwrap() == expected, "{chain_len} {key_len}");
            assert_eq!(resource.len(), bytes.len());
            assert!(resource.certificates().concat() == chain && resource.key() == key);
            let secret = resource.pieces().last().unwrap();
            assert!(secret.ends_with(&key));
            assert!(secret.len() >= LEAST_SECRET.min(chain_len + key_len), "{}", secret.len());
        }
    }

    #[test]
    fn anchors_are_found_again() {
        let pki = testkit::development_ca::Pki::new("lists");
        let text = pki.crl(&[], 600);
        let lists = || RevocationList::all(text.as_bytes()).unwrap().into_iter().map(Arc::new).collect();
        for (lists, domains) in [(Vec::new(), 0), (lists(), 0), (lists(), 2), (Vec::new(), 2)] {
            let bundle = || Certificates::unread(vec![b'a'; 1000]);
            let domains: Vec<_> = (0..domains).map(|n| (format!("domain{n}"), bundle())).collect();
            let count = domains.len();
            let pem = if lists.is_empty() { Vec::new() } else { text.clone().into_bytes() };
            let resource = anchors("ROOTCA", Validation { anchors: bundle(), lists, whole_chain: false, domains });
            assert_eq!(resource.certificates().concat(), bundle().pem);
            assert_eq!((resource.key(), resource.pieces().count()), (&[][..], 1));
            let bytes = whole(&resource, u64::MAX);
            assert_eq!(resource.len(), bytes.len());
            let secret = Secret::decode(bytes.as_slice()).unwrap();
            let Some(Type::ValidationContext(context)) = secret.r#type else { panic!("it has none") };
            assert!(secret.name == "ROOTCA" && context.trusted_ca == inline(bundle().pem));
            assert_eq!(context.only_verify_leaf_cert_crl, !pem.is_empty());
            assert!(context.crl == (!pem.is_empty()).then(|| inline(pem)).flatten());
            assert_eq!(context.custom_validator_config.is_some(), count > 0);
        }
    }

    #[test]
    fn a_mark_changes_the_bytes_and_nothing_else() {
        let bundle = Certificates::unread(vec![b'a'; 1000]);
        let roots = anchors("ROOTCA", Validation { anchors: bundle, ..Validation::default() });
        for resource in [certificate("default", b"chain", b"key"), roots] {
            let (one, other) = (whole(&resource, 1), whole(&resource, u64::MAX));
            assert_eq!(one, whole(&resource, 1));
            assert!(one != other && one.len() == other.len());
            assert!(Secret::decode(one.as_slice()).unwrap() == Secret::decode(other.as_slice()).unwrap());
        }
    }
}
