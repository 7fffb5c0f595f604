use std::fmt::Write as _;

use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    error::ErrorStack,
    pkey::{PKey, Private},
    stack::Stack,
    x509::{X509, X509Ref, X509StoreContext, store::X509StoreBuilder, verify::X509VerifyParam},
};

use super::{
    bundle::{TrustBundle, concatenated_pem},
    key::KeySpec,
    pem::{PemError, certificates},
    spiffe::SpiffeId,
};

/// Why a CA's answer is not published. Whatever was held before stays.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The answer has no leaf or no root: Citadel's list ends with the root bundle.
    #[error("the CA answered {0} element(s); a leaf and a root bundle are the least")]
    TooFewElements(usize),
    /// An element is not what it should be.
    #[error("element {position} of the CA's answer: {cause}")]
    Element {
        /// Which one, counted from 1.
        position: usize,
        /// What is wrong with it.
        cause: PemError,
    },
    /// The leaf is for somebody else's key.
    #[error("the leaf's public key is not that of our CSR")]
    ForeignKey,
    /// The leaf carries another identity.
    #[error("the leaf's URI SAN is {found:?}, our SPIFFE ID is {wanted}")]
    ForeignIdentity {
        /// What the leaf carries.
        found: Vec<String>,
        /// What it should carry.
        wanted: String,
    },
    /// The leaf could sign other certificates.
    #[error("the leaf is a CA certificate")]
    LeafIsCa,
    /// The leaf cannot be used on both sides of mutual TLS.
    #[error("the leaf's extended key usage lacks {0}")]
    KeyUsage(&'static str),
    /// A certificate's time has not come or is over; times are Unix seconds.
    #[error("a certificate is valid from {not_before} to {not_after}, and now is {now}")]
    Time {
        /// Its NotBefore.
        not_before: i64,
        /// Its NotAfter.
        not_after: i64,
        /// The local clock.
        now: i64,
    },
    /// The chain does not lead to a root of the answer.
    #[error("the chain does not lead to a root of the answer: {0}")]
    Chain(String),
    /// OpenSSL failed.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
}

/// A verified X.509-SVID: leaf, intermediates and the key.
pub struct X509Svid {
    leaf: X509,
    intermediates: Vec<X509>,
    key: PKey<Private>,
}

impl X509Svid {
    /// Turns Citadel's answer into an SVID and the trust bundle, or says why it must not be used: the key is ours,
    /// the identity is ours, it works on both sides of mutual TLS, it cannot sign, it is valid at `now` (Unix
    /// seconds) and its chain leads to a root of the answer.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn verify(
        answer: &[String],
        key: &PKey<Private>,
        id: &SpiffeId,
        now: i64,
    ) -> Result<(Self, TrustBundle), SvidError> {
        let Some((roots, chain)) = answer.split_last().filter(|(_, chain)| !chain.is_empty()) else {
            return Err(SvidError::TooFewElements(answer.len()));
        };
        let at = |index: usize| move |cause| SvidError::Element { position: index + 1, cause };
        let bundle = TrustBundle::from_pem(roots).map_err(at(chain.len()))?;
        let mut certs = Vec::new();
        for (index, element) in chain.iter().enumerate() {
            certs.extend(certificates(element).map_err(at(index))?);
        }
        let leaf = certs.remove(0);
        let ours = leaf.public_key()?.public_eq(key);
        drop(ErrorStack::get());
        if !ours {
            return Err(SvidError::ForeignKey);
        }
        check_identity(&leaf, id)?;
        check_usage(&leaf)?;
        for certificate in std::iter::once(&leaf).chain(&certs) {
            check_time(certificate, now)?;
        }
        let chain = check_chain(&leaf, &certs, &bundle, now);
        // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
        drop(ErrorStack::get());
        chain?;
        Ok((Self { leaf, intermediates: certs, key: key.clone() }, bundle))
    }

    /// The first NotBefore and NotAfter that count, in Unix seconds: the leaf's start, and the end of whichever
    /// certificate of the chain ends first.
    pub fn validity(&self) -> (i64, i64) {
        let (not_before, leaf_end) = validity(&self.leaf);
        let ends = self.intermediates.iter().map(|intermediate| validity(intermediate).1);
        (not_before, ends.fold(leaf_end, i64::min))
    }

    /// Leaf and intermediates as PEM, leaf first, for Envoy.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn chain_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        let mut text = self.leaf.to_pem()?;
        text.extend(concatenated_pem(&self.intermediates)?);
        Ok(text)
    }

    /// The key as PEM, for Envoy.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn key_pem(&self, spec: &KeySpec) -> Result<Vec<u8>, ErrorStack> {
        spec.to_pem(&self.key)
    }

    /// The leaf's serial number in lower-case hexadecimal.
    pub fn serial(&self) -> String {
        let bytes = self.leaf.serial_number().to_bn().map(|number| number.to_vec()).unwrap_or_default();
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Leaf, intermediates and key, for a TLS client.
    pub fn parts(&self) -> (&X509, &[X509], &PKey<Private>) {
        (&self.leaf, &self.intermediates, &self.key)
    }
}

fn check_identity(leaf: &X509Ref, id: &SpiffeId) -> Result<(), SvidError> {
    let names = leaf.subject_alt_names();
    let uris: Vec<_> = names.iter().flatten().filter_map(|name| name.uri()).collect();
    if uris == [id.as_str()] {
        return Ok(());
    }
    let found = uris.into_iter().take(4).map(|uri| uri.chars().take(256).collect()).collect();
    Err(SvidError::ForeignIdentity { found, wanted: id.to_string() })
}

fn check_usage(leaf: &X509Ref) -> Result<(), SvidError> {
    use openssl::x509::{X509ExtendedKeyUsage, X509KeyUsage};
    let signs = leaf.key_usage().is_some_and(|usage| usage.contains(X509KeyUsage::KEY_CERT_SIGN));
    if signs || is_ca(leaf)? {
        return Err(SvidError::LeafIsCa);
    }
    // An absent extension would allow every use, but no Citadel omits it: it is not what we asked for.
    let usage = leaf.extended_key_usage().unwrap_or(X509ExtendedKeyUsage::empty());
    for (flag, name) in
        [(X509ExtendedKeyUsage::SSL_SERVER, "serverAuth"), (X509ExtendedKeyUsage::SSL_CLIENT, "clientAuth")]
    {
        if !usage.contains(flag) {
            return Err(SvidError::KeyUsage(name));
        }
    }
    Ok(())
}

/// Whether basicConstraints says CA:TRUE (RFC 5280, section 4.2.1.9), found by its encoding: the OpenSSL binding has
/// no accessor for it, and its own check for servers and clients lets a CA certificate pass as a leaf.
fn is_ca(certificate: &X509Ref) -> Result<bool, ErrorStack> {
    const OID: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x13];
    const CRITICAL: [u8; 3] = [0x01, 0x01, 0xff];
    const TRUE: [u8; 3] = [0x01, 0x01, 0xff];
    let der = certificate.to_der()?;
    Ok(der.windows(OID.len()).enumerate().filter(|(_, window)| *window == OID).any(|(at, _)| {
        let value = &der[at + OID.len()..];
        let value = value.strip_prefix(&CRITICAL).unwrap_or(value);
        // OCTET STRING { SEQUENCE { BOOLEAN TRUE … } }, each with a length of one byte.
        value.len() > 7 && value[0] == 0x04 && value[2] == 0x30 && value[4..7] == TRUE
    }))
}

fn check_time(certificate: &X509Ref, now: i64) -> Result<(), SvidError> {
    let (not_before, not_after) = validity(certificate);
    if (not_before..not_after).contains(&now) {
        return Ok(());
    }
    Err(SvidError::Time { not_before, not_after, now })
}

fn check_chain(leaf: &X509, intermediates: &[X509], bundle: &TrustBundle, now: i64) -> Result<(), SvidError> {
    let mut param = X509VerifyParam::new()?;
    param.set_time(now);
    let mut store = X509StoreBuilder::new()?;
    bundle.add_to(&mut store)?;
    store.set_param(&param)?;
    let mut untrusted = Stack::new()?;
    for intermediate in intermediates {
        untrusted.push(intermediate.clone())?;
    }
    let mut context = X509StoreContext::new()?;
    let (verified, error) = context.init(&store.build(), leaf, &untrusted, |context| {
        let verified = context.verify_cert()?;
        Ok((verified, context.error()))
    })?;
    if verified { Ok(()) } else { Err(SvidError::Chain(error.error_string().to_owned())) }
}

/// NotBefore and NotAfter in Unix seconds.
fn validity(certificate: &X509Ref) -> (i64, i64) {
    // A time that cannot be read is in the past, so that the certificate is refused.
    let seconds = |time| unix_seconds(time).unwrap_or(i64::MIN);
    (unix_seconds(certificate.not_before()).unwrap_or(i64::MAX), seconds(certificate.not_after()))
}

/// An ASN.1 time in Unix seconds.
///
/// # Errors
/// When OpenSSL cannot read it.
pub fn unix_seconds(time: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let since_epoch = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs))
}
