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
    store::{Content, Encoded, Validation},
};

/// The name of Envoy's validator that tells trust domains apart, and the type of its configuration.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const SPIFFE_VALIDATOR_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Field numbers of `envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto` and of `DataSource`.
const SECRET_NAME: u32 = 1;
const SECRET_TLS_CERTIFICATE: u32 = 2;
const SECRET_VALIDATION_CONTEXT: u32 = 4;
const CRL: u32 = 7;
const CERTIFICATE_CHAIN: u32 = 1;
const PRIVATE_KEY: u32 = 2;
const INLINE_BYTES: u32 = 2;

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
    let [chain_source, key_source] = [chain, key].map(|bytes| 1 + field(bytes.len()));
    let key_field = 1 + field(key_source);
    let body = 1 + field(chain_source) + key_field;
    let mut head = Vec::with_capacity(name.len() + 32);
    open(SECRET_NAME, name.len(), &mut head);
    head.extend_from_slice(name.as_bytes());
    open(SECRET_TLS_CERTIFICATE, body, &mut head);
    open(CERTIFICATE_CHAIN, chain_source, &mut head);
    open(INLINE_BYTES, chain.len(), &mut head);
    let certificates = head.len()..head.len() + chain.len();

    let last =
        if certificates.end + key_field <= ONE_PIECE { chain.len() } else { LEAST_SECRET.saturating_sub(key.len()) };
    let (first, last) = chain.split_at(chain.len().saturating_sub(last));
    let (public, before) = if first.is_empty() { (Vec::new(), head) } else { ([&head, first].concat(), Vec::new()) };
    let secret = locked::secretly(|| {
        let mut secret = Vec::with_capacity(before.len() + last.len() + key_field);
        secret.extend_from_slice(&before);
        secret.extend_from_slice(last);
        open(PRIVATE_KEY, key_source, &mut secret);
        open(INLINE_BYTES, key.len(), &mut secret);
        secret.extend_from_slice(key);
        secret
    });
    let place = secret.len() - key.len()..secret.len();
    Encoded::with_key(public.into(), secret.into(), certificates, place)
}

/// Key and length of a field.
fn open(field: u32, len: usize, buf: &mut Vec<u8>) {
    debug_assert_eq!(key_len(field), 1);
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(len as u64, buf);
}

/// The lists are written by hand as well: they may take half of the arena, and prost would write them twice.
fn anchors(name: &str, Validation { anchors, lists, whole_chain, domains }: Validation) -> Encoded {
    let has_crl = !lists.is_empty();
    let validator = (!domains.is_empty()).then(|| spiffe_validator(domains, &lists));
    let len = anchors.pem.len();
    let context = CertificateValidationContext {
        trusted_ca: inline(anchors.pem),
        crl: None,
        // Else a CRL of every CA up to the root is needed, and a missing one refuses every peer.
        only_verify_leaf_cert_crl: has_crl && !whole_chain,
        custom_validator_config: validator,
    };
    let trusted = context.trusted_ca.as_ref().map_or(0, Message::encoded_len);
    let field = |key: u32, len: usize| key_len(key) + encoded_len_varint(len as u64) + len;
    let list_len: usize = lists.iter().map(|list| list.pem_len()).sum();
    let source = field(INLINE_BYTES, list_len);
    let context_len = context.encoded_len() + if has_crl { field(CRL, source) } else { 0 };
    let mut bytes = Vec::with_capacity(field(SECRET_NAME, name.len()) + field(SECRET_VALIDATION_CONTEXT, context_len));
    open(SECRET_NAME, name.len(), &mut bytes);
    bytes.extend_from_slice(name.as_bytes());
    open(SECRET_VALIDATION_CONTEXT, context_len, &mut bytes);
    // The anchors are the first field of the context.
    let start = bytes.len() + 1 + encoded_len_varint(trusted as u64) + trusted - len;
    context.encode_raw(&mut bytes);
    if has_crl {
        open(CRL, source, &mut bytes);
        open(INLINE_BYTES, list_len, &mut bytes);
        lists.iter().for_each(|list| list.pem(&mut bytes));
    }
    Encoded::public(bytes.into(), start..start + len)
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

    fn whole(resource: &Encoded) -> Vec<u8> {
        resource.pieces().flatten().collect()
    }

    #[test]
    fn a_certificate_is_what_prost_would_write_and_its_end_is_secret() {
        for (chain_len, key_len) in [(700, 241), (3000, 241), (100, 30), (20_000, 3272), (1, 1), (0, 0), (127, 128)] {
            let (chain, key) = (vec![b'c'; chain_len], vec![b'k'; key_len]);
            let resource = certificate("default", &chain, &key);
            let expected = Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(chain.clone()),
                private_key: inline(key.clone()),
            });
            let expected = Secret { name: "default".to_owned(), r#type: Some(expected) };
            assert!(whole(&resource) == expected.encode_to_vec(), "{chain_len} {key_len}");
            assert_eq!(resource.len(), expected.encoded_len());
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
            let domains = (0..domains).map(|n| (format!("domain{n}"), bundle())).collect();
            let pem = if lists.is_empty() { Vec::new() } else { text.clone().into_bytes() };
            let resource = anchors("ROOTCA", Validation { anchors: bundle(), lists, whole_chain: false, domains });
            assert_eq!(resource.certificates().concat(), bundle().pem);
            assert_eq!((resource.key(), resource.pieces().count()), (&[][..], 1));
            let secret = Secret::decode(whole(&resource).as_slice()).unwrap();
            assert_eq!(secret.encoded_len(), resource.len());
            let Some(Type::ValidationContext(context)) = secret.r#type else { panic!("another type") };
            assert_eq!(context.only_verify_leaf_cert_crl, !pem.is_empty());
            assert!(context.crl == if pem.is_empty() { None } else { inline(pem) });
        }
    }
}
