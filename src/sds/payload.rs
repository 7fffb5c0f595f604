use bytes::Bytes;
use prost::Message;
use sds_shim_proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{CertificateValidationContext, Secret, TlsCertificate, secret::Type},
};

use crate::store::Content;

/// Writes a content as an SDS resource. The one place where a key is put into Envoy's form.
pub fn encode(name: &str, content: Content) -> Bytes {
    let r#type = match content {
        Content::TlsCertificate { chain, key } => {
            Type::TlsCertificate(TlsCertificate { certificate_chain: inline(chain), private_key: inline(key) })
        }
        Content::ValidationContext { anchors } => {
            Type::ValidationContext(CertificateValidationContext { trusted_ca: inline(anchors), crl: None })
        }
    };
    Secret { name: name.to_owned(), r#type: Some(r#type) }.encode_to_vec().into()
}

/// The content of a resource that [`encode`] has written; `None` if it is another one.
pub fn decode(resource: &Bytes) -> Option<Content> {
    let bytes = |source: Option<DataSource>| match source?.specifier? {
        Specifier::InlineBytes(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    match Secret::decode(resource.clone()).ok()?.r#type? {
        Type::TlsCertificate(TlsCertificate { certificate_chain, private_key }) => {
            Some(Content::TlsCertificate { chain: bytes(certificate_chain)?, key: bytes(private_key)? })
        }
        Type::ValidationContext(context) => Some(Content::ValidationContext { anchors: bytes(context.trusted_ca)? }),
    }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
}
