use bytes::Bytes;
use prost::Message;
use sds_shim_proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret::Type},
};

use crate::store::{Content, Validation};

/// Writes a content as an SDS resource. The one place where a key is put into Envoy's form.
pub fn encode(name: &str, content: Content) -> Bytes {
    let r#type = match content {
        Content::TlsCertificate { chain, key } => {
            Type::TlsCertificate(TlsCertificate { certificate_chain: inline(chain), private_key: inline(key) })
        }
        Content::ValidationContext(Validation { anchors, crl, .. }) => {
            let has_crl = !crl.is_empty();
            Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(anchors),
                crl: has_crl.then(|| inline(crl)).flatten(),
                // Else a CRL of every CA up to the root would be needed, and a missing one would refuse every peer.
                only_verify_leaf_cert_crl: has_crl,
            })
        }
    };
    Secret { name: name.to_owned(), r#type: Some(r#type) }.encode_to_vec().into()
}

/// The content of a resource that [`encode`] has written, as far as it is a key, a chain or trust anchors; `None` if it
/// is another one.
pub fn decode(resource: &Bytes) -> Option<Content> {
    let bytes = |source: Option<DataSource>| match source?.specifier? {
        Specifier::InlineBytes(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    match Secret::decode(resource.clone()).ok()?.r#type? {
        Type::TlsCertificate(TlsCertificate { certificate_chain, private_key }) => {
            Some(Content::TlsCertificate { chain: bytes(certificate_chain)?, key: bytes(private_key)? })
        }
        Type::ValidationContext(context) => Some(Content::anchors(bytes(context.trusted_ca)?)),
    }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
}
