use openssl::{
    pkey::{PKey, Private},
    x509::X509,
};
use prost::Message;
use sds_shim_proto::{
    SECRET_TYPE_URL,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{Secret as WireSecret, secret::Type},
        service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
    },
    google::protobuf::Any,
};

use crate::{Failure, OrFail, tls};

/// A secret as Envoy receives it; what it does not carry is empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The resource name.
    pub name: String,
    /// Leaf and intermediates.
    pub chain_pem: String,
    /// The private key.
    pub key_pem: String,
    /// The trust anchors.
    pub trusted_ca_pem: String,
    /// The certificate revocation lists.
    pub crl_pem: String,
}

/// The secrets of a state-of-the-world answer.
pub fn secrets(answer: &DiscoveryResponse) -> Result<Vec<Secret>, Failure> {
    answer.resources.iter().map(Secret::decode).collect()
}

/// The secrets of an incremental answer.
pub fn delta_secrets(answer: &DeltaDiscoveryResponse) -> Result<Vec<Secret>, Failure> {
    let resources = answer.resources.iter();
    resources
        .map(|resource| match &resource.resource {
            Some(any) => Secret::decode(any),
            None => Err(Failure::new(format!("the resource {:?} has no content", resource.name))),
        })
        .collect()
}

impl Secret {
    /// Unpacks one resource; another type URL or unreadable bytes are a failure.
    pub fn decode(any: &Any) -> Result<Self, Failure> {
        if any.type_url != SECRET_TYPE_URL {
            return Err(Failure::new(format!("a resource has the type URL {:?}", any.type_url)));
        }
        let wire = WireSecret::decode(&any.value[..]).or_fail("decode a Secret")?;
        let mut secret = Self {
            name: wire.name,
            chain_pem: String::new(),
            key_pem: String::new(),
            trusted_ca_pem: String::new(),
            crl_pem: String::new(),
        };
        match wire.r#type {
            Some(Type::TlsCertificate(certificate)) => {
                secret.chain_pem = inline(certificate.certificate_chain)?;
                secret.key_pem = inline(certificate.private_key)?;
            }
            Some(Type::ValidationContext(context)) => {
                secret.trusted_ca_pem = inline(context.trusted_ca)?;
                secret.crl_pem = inline(context.crl)?;
            }
            None => return Err(Failure::new(format!("the secret {:?} is empty", secret.name))),
        }
        Ok(secret)
    }

    /// The certificates of the chain, leaf first.
    pub fn chain(&self) -> Result<Vec<X509>, Failure> {
        X509::stack_from_pem(self.chain_pem.as_bytes()).or_fail(format!("read the chain of {}", self.name))
    }

    /// The first certificate of the chain.
    pub fn leaf(&self) -> Result<X509, Failure> {
        X509::from_pem(self.chain_pem.as_bytes()).or_fail(format!("read the leaf of {}", self.name))
    }

    /// The leaf's serial number in lower-case hexadecimal.
    pub fn serial(&self) -> Result<String, Failure> {
        tls::serial(&self.leaf()?)
    }

    /// The leaf's URI names.
    pub fn spiffe_ids(&self) -> Result<Vec<String>, Failure> {
        Ok(tls::uri_names(&self.leaf()?))
    }

    /// The private key.
    pub fn key(&self) -> Result<PKey<Private>, Failure> {
        PKey::private_key_from_pem(self.key_pem.as_bytes()).or_fail(format!("read the key of {}", self.name))
    }

    /// Whether the private key is the one that the leaf is for.
    pub fn key_fits_leaf(&self) -> Result<bool, Failure> {
        let public = self.leaf()?.public_key().or_fail(format!("read the public key of {}", self.name))?;
        Ok(public.public_eq(&*self.key()?))
    }

    /// The trust anchors.
    pub fn trust_anchors(&self) -> Result<Vec<X509>, Failure> {
        let anchors = X509::stack_from_pem(self.trusted_ca_pem.as_bytes());
        anchors.or_fail(format!("read the trust anchors of {}", self.name))
    }
}

/// Keys never leave memory, so a file name in their place is as wrong as bytes that are not text.
fn inline(source: Option<DataSource>) -> Result<String, Failure> {
    match source.and_then(|source| source.specifier) {
        None => Ok(String::new()),
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.to_vec()).or_fail("read PEM as text"),
        Some(Specifier::InlineString(text)) => Ok(text),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            Err(Failure::new("a secret refers to a place instead of carrying its bytes"))
        }
    }
}
