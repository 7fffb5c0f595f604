use std::{ops::Range, sync::Arc};

use prost::encoding::{encoded_len_varint, key_len};

use super::message::encode_length;
use crate::{
    identity::{RevocationList, TrustBundle},
    store::{AnchorText, Content, Encoded, MARK, Piece, Validation},
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
const SECRET_GENERIC: u32 = 5;
const GENERIC_SECRET: u32 = 1;
const CRL: u32 = 7;
const CUSTOM_VALIDATOR: u32 = 12;
/// Field 14, a boolean that is true.
const ONLY_VERIFY_LEAF_CERT_CRL: [u8; 2] = [14 << 3, 1];
/// Those of `TypedExtensionConfig`, `Any` and `SPIFFECertValidatorConfig`.
const EXTENSION_NAME: u32 = 1;
const EXTENSION_CONFIG: u32 = 2;
const ANY_TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;
const VALIDATOR_DOMAINS: u32 = 1;
const DOMAIN_NAME: u32 = 1;
const DOMAIN_BUNDLE: u32 = 2;
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
        Content::Token(token) => generic(name, token.text()),
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

    let mut head = Vec::new();
    open(PRIVATE_KEY, key_source, &mut head);
    open(INLINE_BYTES, key.len(), &mut head);
    let is_short = opening.len() + chain.len() + key_field <= ONE_PIECE;
    ending_in_key(chain, 0..chain.len(), &head, key, is_short).opened(opening.into(), mark)
}

/// A text, in which the certificates are at `certificates`, then `head` and a key. The end of it lies in secret memory,
/// and so does all of it where that is to be one piece.
pub fn ending_in_key(text: &[u8], certificates: Range<usize>, head: &[u8], key: &[u8], is_one_piece: bool) -> Encoded {
    let last = if is_one_piece { text.len() } else { LEAST_SECRET.saturating_sub(key.len()) };
    let (first, last) = text.split_at(text.len().saturating_sub(last));
    let secret = locked::secretly(|| [last, head, key].concat());
    let place = secret.len() - key.len()..secret.len();
    Encoded::with_key(first.to_vec().into(), secret.into(), certificates, place)
}

/// `name`, then `generic_secret` with the text.
fn generic(name: &str, text: &str) -> Encoded {
    let (opening, mark) = opening(name, [SECRET_GENERIC, GENERIC_SECRET], text.len(), 0);
    Encoded::public(vec![Piece::Bytes(text.as_bytes().to_vec().into())]).opened(opening.into(), mark)
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

/// Key and length of a field whose key is one byte long.
fn open(field: u32, len: usize, buf: &mut Vec<u8>) {
    debug_assert_eq!(key_len(field), 1);
    encode_length(field, len, buf);
}

/// Written by hand, because prost would write all of it into one piece of memory: `name`, then `validation_context`,
/// whose anchors may be many, and whose lists may take half of the arena.
fn anchors(name: &str, Validation { anchors, lists, whole_chain, domains }: Validation) -> Encoded {
    let mut rest = Vec::new();
    if !lists.is_empty() {
        rest.push(source(CRL, TrustBundle::default(), lists.clone()));
    }
    if !domains.is_empty() {
        rest.push(Part::Message(CUSTOM_VALIDATOR, spiffe_validator(domains, &lists)));
    }
    if !lists.is_empty() && !whole_chain {
        // Else a CRL of every CA up to the root is needed, and a missing one refuses every peer.
        rest.push(Part::Bytes(ONLY_VERIFY_LEAF_CERT_CRL.to_vec()));
    }
    let trusted = Part::anchors(anchors);
    let rest_len = rest.iter().map(Part::len).sum();
    let (opening, mark) = opening(name, [SECRET_VALIDATION_CONTEXT, TRUSTED_CA], trusted.len(), rest_len);
    let (mut pieces, mut last) = (Vec::new(), Vec::new());
    std::iter::once(trusted).chain(rest).for_each(|part| part.write(&mut pieces, &mut last));
    pieces.push(Piece::Bytes(last.into()));
    Encoded::public(pieces).opened(opening.into(), mark)
}

/// Envoy's SPIFFE validator: anchors vouch for their own trust domain alone. It looks for revocation lists among the
/// anchors of a domain, and we know those of our own, which comes first.
fn spiffe_validator(domains: Vec<(String, TrustBundle)>, lists: &[Arc<RevocationList>]) -> Vec<Part> {
    let mut lists = Some(lists);
    let domains = domains.into_iter().map(|(name, bundle)| {
        let bundle = source(DOMAIN_BUNDLE, bundle, lists.take().unwrap_or_default().to_vec());
        Part::Message(VALIDATOR_DOMAINS, vec![text(DOMAIN_NAME, &name), bundle])
    });
    let config = Part::Message(ANY_VALUE, domains.collect());
    let any = Part::Message(EXTENSION_CONFIG, vec![text(ANY_TYPE_URL, SPIFFE_VALIDATOR_URL), config]);
    vec![text(EXTENSION_NAME, SPIFFE_VALIDATOR), any]
}

/// A part of a message.
enum Part {
    Bytes(Vec<u8>),
    Anchors(Arc<TrustBundle>, usize),
    Lists(Vec<Arc<RevocationList>>, usize),
    /// A field of bytes or of a message, and what is in it.
    Message(u32, Vec<Part>),
}

/// A field with a text.
fn text(field: u32, text: &str) -> Part {
    Part::Message(field, vec![Part::Bytes(text.into())])
}

/// A field with a `DataSource` of these anchors and lists.
fn source(field: u32, anchors: TrustBundle, lists: Vec<Arc<RevocationList>>) -> Part {
    let len = lists.iter().map(|list| list.pem_len()).sum();
    Part::Message(field, vec![Part::Message(INLINE_BYTES, vec![Part::anchors(anchors), Part::Lists(lists, len)])])
}

impl Part {
    fn anchors(anchors: TrustBundle) -> Self {
        let len = anchors.anchors().iter().map(|anchor| anchor.pem_len()).sum();
        Self::Anchors(Arc::new(anchors), len)
    }

    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Anchors(_, len) | Self::Lists(_, len) => *len,
            Self::Message(field, parts) => {
                let len = parts.iter().map(Self::len).sum::<usize>();
                key_len(*field) + encoded_len_varint(len as u64) + len
            }
        }
    }

    /// Writes it behind `last`, the end of what is written.
    fn write(self, pieces: &mut Vec<Piece>, last: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => last.extend_from_slice(&bytes),
            Self::Anchors(_, 0) | Self::Lists(_, 0) => {}
            Self::Anchors(bundle, _) => {
                pieces.push(Piece::Bytes(std::mem::take(last).into()));
                pieces.push(Piece::Anchors(AnchorText::new(bundle)));
            }
            Self::Lists(lists, len) => {
                // A piece of its own, so that what follows does not make it grow.
                let mut text = Vec::with_capacity(len);
                lists.iter().for_each(|list| list.pem(&mut text));
                pieces.extend([std::mem::take(last), text].map(|piece| Piece::Bytes(piece.into())));
            }
            Self::Message(field, parts) => {
                let len = parts.iter().map(Self::len).sum::<usize>();
                encode_length(field, len, last);
                parts.into_iter().for_each(|part| part.write(pieces, last));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use sds_shim_proto::{
        envoy::{
            config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier},
            extensions::transport_sockets::tls::v3::{
                CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret::Type,
                spiffe_cert_validator_config::TrustDomain,
            },
        },
        google::protobuf::Any,
    };
    use testkit::development_ca::Pki;

    fn whole(resource: &Encoded, mark: u64) -> Vec<u8> {
        let mut pieces: Vec<_> = resource.pieces().collect();
        let pieces = pieces.iter_mut().flat_map(|piece| std::iter::from_fn(|| piece.take())).flatten();
        resource.opening(mark).into_iter().chain(pieces).collect()
    }

    fn inline(bytes: Vec<u8>) -> Option<DataSource> {
        Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
    }

    fn bundle(count: usize) -> TrustBundle {
        let text: String = (0..count).map(|number| Pki::new(&number.to_string()).root_pem()).collect();
        TrustBundle::from_pem(&text, 0).unwrap().0
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
            assert!(resource.certificates().collect::<Vec<_>>().concat() == chain && resource.key() == key);
            let Some(secret) = resource.pieces().last().map(|mut last| last.take().unwrap_or_default()) else {
                assert_eq!((chain_len, key_len), (0, 0));
                continue;
            };
            assert!(secret.ends_with(&key));
            assert!(secret.len() >= LEAST_SECRET.min(chain_len + key_len), "{}", secret.len());
        }
    }

    #[test]
    fn anchors_are_what_prost_would_read() {
        let list_text = Pki::new("lists").crl(&[], 600);
        let pem = |bundle: &TrustBundle| bundle.certificates().pem;
        for (count, has_lists, domains) in [(1, false, 0), (20, true, 0), (3, true, 2), (3, false, 2)] {
            let text = if has_lists { list_text.as_str() } else { "" };
            let lists: Vec<_> = RevocationList::all(text.as_bytes()).unwrap().into_iter().map(Arc::new).collect();
            let own = bundle(count);
            let domains: Vec<_> = (0..domains).map(|number| (format!("domain{number}"), bundle(2))).collect();
            let trusted = domains.iter().enumerate().map(|(at, (name, bundle))| {
                let list = if at == 0 { text.as_bytes() } else { &[] };
                TrustDomain { name: name.clone(), trust_bundle: inline([&pem(bundle), list].concat()) }
            });
            let config = SpiffeCertValidatorConfig { trust_domains: trusted.collect() };
            let any = Any { type_url: SPIFFE_VALIDATOR_URL.to_owned(), value: config.encode_to_vec().into() };
            let validator = TypedExtensionConfig { name: SPIFFE_VALIDATOR.to_owned(), typed_config: Some(any) };
            let context = CertificateValidationContext {
                trusted_ca: inline(pem(&own)),
                crl: has_lists.then(|| inline(text.as_bytes().to_vec())).flatten(),
                only_verify_leaf_cert_crl: has_lists,
                custom_validator_config: (!domains.is_empty()).then_some(validator),
            };
            let expected = Secret { name: "ROOTCA".to_owned(), r#type: Some(Type::ValidationContext(context)) };
            let validation = Validation { anchors: own.clone(), lists, whole_chain: false, domains };
            let resource = anchors("ROOTCA", validation);
            let bytes = whole(&resource, u64::MAX);
            assert!(Secret::decode(bytes.as_slice()).unwrap() == expected, "{count}");
            assert_eq!(resource.len(), bytes.len());
            assert_eq!(resource.certificates().collect::<Vec<_>>().concat(), pem(&own));
            assert!(resource.key().is_empty());
        }
    }

    #[test]
    fn a_mark_changes_the_bytes_and_nothing_else() {
        let roots = anchors("ROOTCA", Validation { anchors: bundle(1), ..Validation::default() });
        for resource in [certificate("default", b"chain", b"key"), roots] {
            let (one, other) = (whole(&resource, 1), whole(&resource, u64::MAX));
            assert_eq!(one, whole(&resource, 1));
            assert!(one != other && one.len() == other.len());
            assert!(Secret::decode(one.as_slice()).unwrap() == Secret::decode(other.as_slice()).unwrap());
        }
    }
}
