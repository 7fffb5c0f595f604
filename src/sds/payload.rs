use bytes::Bytes;
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

use crate::{
    identity::Certificates,
    store::{Content, Validation},
};

/// The name of Envoy's validator that tells trust domains apart, and the type of its configuration.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const SPIFFE_VALIDATOR_URL: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Writes a content as an SDS resource. The one place where a key is put into Envoy's form.
pub fn encode(name: &str, content: Content) -> Bytes {
    let r#type = match content {
        Content::TlsCertificate { chain, key } => {
            Type::TlsCertificate(TlsCertificate { certificate_chain: inline(chain.pem), private_key: inline(key) })
        }
        Content::ValidationContext(Validation { anchors, crl, domains }) => {
            let has_crl = !crl.is_empty();
            let validator = (!domains.is_empty()).then(|| spiffe_validator(domains, &crl));
            Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(anchors.pem),
                crl: has_crl.then(|| inline(crl)).flatten(),
                // Else a CRL of every CA up to the root would be needed, and a missing one would refuse every peer.
                only_verify_leaf_cert_crl: has_crl,
                custom_validator_config: validator,
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
            let chain = Certificates::unread(bytes(certificate_chain)?);
            Some(Content::TlsCertificate { chain, key: bytes(private_key)? })
        }
        Type::ValidationContext(context) => Some(Content::anchors(Certificates::unread(bytes(context.trusted_ca)?))),
    }
}

/// Envoy's SPIFFE validator: anchors vouch for their own trust domain alone. It looks for revocation lists among the
/// anchors of a domain, and we know those of our own, which comes first.
fn spiffe_validator(domains: Vec<(String, Certificates)>, crl: &[u8]) -> TypedExtensionConfig {
    let mut crl = Some(crl);
    let trust_domains = domains.into_iter().map(|(name, Certificates { pem: mut bundle, .. })| {
        bundle.extend_from_slice(crl.take().unwrap_or_default());
        TrustDomain { name, trust_bundle: inline(bundle) }
    });
    let config = SpiffeCertValidatorConfig { trust_domains: trust_domains.collect() };
    let typed_config = Any { type_url: SPIFFE_VALIDATOR_URL.to_owned(), value: config.encode_to_vec().into() };
    TypedExtensionConfig { name: SPIFFE_VALIDATOR.to_owned(), typed_config: Some(typed_config) }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
}
