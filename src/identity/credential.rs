use std::{collections::BTreeSet, fmt, iter, path::Path};

use locked::Structure;
use openssl::{
    error::ErrorStack,
    pkey::{PKey, Private},
    x509::{X509, X509KeyUsage, X509VerifyResult},
};

use super::{
    bundle::{TrustBundle, may_have_issued},
    facts::Certificates,
    leaf,
    pem::{PemError, certificates},
    private_key::{KeyError, KeyText},
    sides::{SIDES, lacking},
    spiffe::TrustDomain,
    svid::verified_path,
    validity::validity,
};
use crate::bounded::foreign_text;

/// Characters of a SPIFFE ID that are told.
const IDENTITY: usize = 512;

/// What the peers of a certificate will not like, while Envoy takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Its key usage has no digitalSignature.
    KeyUsage,
    /// Its extended key usage lacks this one.
    ExtendedKeyUsage(&'static str),
    /// It leads to none of the trust anchors, as far as OpenSSL tells.
    Path(String),
}

impl Flaw {
    /// Names of all.
    pub const LABELS: [&'static str; 3] = ["extended_key_usage", "key_usage", "path"];

    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::KeyUsage => "key_usage",
            Self::ExtendedKeyUsage(_) => "extended_key_usage",
            Self::Path(_) => "path",
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyUsage => write!(f, "its key usage lacks digitalSignature: peers refuse it on both sides"),
            Self::ExtendedKeyUsage("clientAuth") => {
                write!(f, "its extended key usage lacks clientAuth: servers refuse it")
            }
            Self::ExtendedKeyUsage(lack) => write!(f, "its extended key usage lacks {lack}: clients refuse it"),
            Self::Path(cause) => write!(
                f,
                "it leads to none of the trust anchors ({cause}): peers with the same anchors refuse it; intermediates may \
                 be missing, or the anchors are another CA's"
            ),
        }
    }
}

/// Why a key and a chain from files are not served.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The chain cannot be read.
    #[error("the certificate chain: {0}")]
    Chain(#[from] PemError),
    /// The key cannot be read.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// They are of two generations, or were never meant for each other.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// Envoy does not take the leaf.
    #[error("the leaf {0}: Envoy refuses it")]
    Leaf(&'static str),
    /// OpenSSL failed.
    #[error("OpenSSL: {0}")]
    OpenSsl(#[from] ErrorStack),
}

/// A key and its certificate chain that somebody else has made.
pub struct Credential {
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl Credential {
    /// Reads a chain, leaf first, and a key, both PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn from_pem(chain: &str, key: &KeyText) -> Result<Self, CredentialError> {
        let mut chain = certificates(chain)?;
        let key = key.parse()?;
        // Where the leaf stands in a bundle is not fixed.
        let ours = chain.iter().position(|one| one.public_key().is_ok_and(|public| public.public_eq(&key)));
        drop(ErrorStack::get());
        let leaf = chain.remove(ours.ok_or(CredentialError::Mismatch)?);
        leaf::check(&leaf).map_err(CredentialError::Leaf)?;
        Ok(Self { chain: in_order(leaf, chain)?, key })
    }

    /// What peers will not like about it, who have the anchors of this file or of this bundle.
    pub fn flaws(&self, file: &Path, bundle: &TrustBundle, now: i64) -> Vec<Flaw> {
        let Some((leaf, others)) = self.chain.split_first() else { return Vec::new() };
        let mut flaws = Vec::new();
        // Without the extensions every use is allowed (RFC 5280, section 4.2.1.3).
        if leaf.key_usage().is_some_and(|usage| !usage.contains(X509KeyUsage::DIGITAL_SIGNATURE)) {
            flaws.push(Flaw::KeyUsage);
        }
        flaws.extend(lacking(leaf).map(|side| Flaw::ExtendedKeyUsage(side.name)));
        let presented: Vec<_> = self.chain.iter().map(AsRef::as_ref).collect();
        let mut anchors = bundle.issuers_of(&presented);
        let look = |anchor: &X509| anchors.extend(may_have_issued(anchor, &presented).then(|| anchor.clone()));
        // What is wrong with the file is told by whoever serves it.
        let _ = TrustBundle::look_at_file(file, now, look);
        let now = now.max(validity(leaf).0);
        // For each side that the leaf is for, or else for none.
        let purposes: Vec<_> = match flaws.is_empty() {
            true => SIDES.iter().map(|side| Some(side.purpose)).collect(),
            false => vec![None],
        };
        let verify = |purpose| verified_path(leaf, others, anchors.clone(), now, purpose).err();
        flaws.extend(purposes.into_iter().find_map(verify).map(|cause| Flaw::Path(cause.to_string())));
        drop(ErrorStack::get());
        flaws
    }

    /// The beginning of the leaf in Unix seconds.
    pub fn not_before(&self) -> i64 {
        self.chain.first().map_or(i64::MAX, |leaf| validity(leaf).0)
    }

    /// The end of the leaf in Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.chain.first().map_or(i64::MIN, |leaf| validity(leaf).1)
    }

    /// The trust domain in the leaf's URI SAN, if it has one.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        let names = self.chain.first()?.subject_alt_names()?;
        names.iter().find_map(|name| name.uri()?.strip_prefix("spiffe://")?.split('/').next()?.parse().ok())
    }

    /// The SPIFFE ID in the leaf's URI SAN, if it has one, fit for one line.
    pub fn identity(&self) -> Option<String> {
        let names = self.chain.first()?.subject_alt_names()?;
        let id = names.iter().find_map(|name| name.uri().filter(|uri| uri.starts_with("spiffe://")))?;
        Some(foreign_text(id, IDENTITY))
    }

    /// The chain, leaf first.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn chain(&self) -> Result<Certificates, ErrorStack> {
        Certificates::of(self.chain.iter().map(AsRef::as_ref))
    }

    /// All of the chain but the leaf, its issuer first where it is there.
    pub fn others(&self) -> &[X509] {
        self.chain.get(1..).unwrap_or_default()
    }

    /// The key as PKCS#8 PEM.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn key_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        locked::write_private_key(&self.key, Structure::Pkcs8)
    }
}

/// The leaf, what leads from it upwards, and what else there is: nothing twice, and no roots, which peers have.
fn in_order(leaf: X509, others: Vec<X509>) -> Result<Vec<X509>, ErrorStack> {
    let is_issued = |issuer: &X509, by: &X509| issuer.issued(by) == X509VerifyResult::OK;
    let mut seen: BTreeSet<_> = iter::once(leaf.to_der()?).collect();
    let mut rest = Vec::new();
    for other in others {
        if seen.insert(other.to_der()?) && !is_issued(&other, &other) {
            rest.push(other);
        }
    }
    let mut chain = vec![leaf];
    while let Some(next) = chain.last().and_then(|last| rest.iter().position(|one| is_issued(one, last))) {
        chain.push(rest.remove(next));
    }
    chain.append(&mut rest);
    drop(ErrorStack::get());
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use testkit::development_ca::{Issued, Leaf, Pki, PkiOptions};

    fn issued() -> Issued {
        Pki::new("files").issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)))
    }

    fn key(text: &str) -> KeyText {
        KeyText::split(text.as_bytes(), text.len(), 1 << 16).unwrap().1
    }

    #[test]
    fn a_pair_is_read_and_written_in_order() {
        let issued = issued();
        let credential = Credential::from_pem(&issued.chain_pem, &key(&issued.key_pem)).unwrap();
        assert_eq!(String::from_utf8(credential.chain().unwrap().pem).unwrap(), issued.chain_pem);
        assert!(credential.key_pem().unwrap().starts_with(b"-----BEGIN PRIVATE KEY-----"));
    }

    #[test]
    fn one_file_may_hold_all() {
        let Issued { chain_pem, key_pem, .. } = issued();
        for bundle in [format!("{key_pem}{chain_pem}"), format!("{chain_pem}{key_pem}")] {
            let credential = Credential::from_pem(&bundle, &key(&bundle)).unwrap();
            assert_eq!(String::from_utf8(credential.chain().unwrap().pem).unwrap(), chain_pem);
        }
    }

    #[test]
    fn a_chain_is_ordered_without_duplicates_and_roots() {
        let options = PkiOptions { upper: true, ..PkiOptions::new("order") };
        let pki = Pki::with_options(&options);
        let issued = pki.issue(&Leaf::workload("spiffe://td/ns/a/sa/b", Duration::from_secs(3600)));
        let blocks: Vec<_> = issued.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").collect();
        let [leaf, lower, upper] = blocks[..] else { panic!("{} certificates", blocks.len()) };
        let root = pki.root_pem();
        let stranger = Pki::new("stranger").intermediate_pem();
        for (mixed, expected) in [
            ([root.as_str(), upper, leaf, lower, leaf, upper].concat(), issued.chain_pem.clone()),
            ([stranger.as_str(), lower, upper, leaf].concat(), issued.chain_pem.clone() + &stranger),
        ] {
            let credential = Credential::from_pem(&mixed, &key(&issued.key_pem)).unwrap();
            assert_eq!(String::from_utf8(credential.chain().unwrap().pem).unwrap(), expected);
        }
    }

    #[test]
    fn a_mismatched_key_and_chain_are_rejected() {
        let (one, other) = (issued(), issued());
        let error = |chain: &str, text: &str| Credential::from_pem(chain, &key(text)).err().unwrap().to_string();
        assert!(error(&one.chain_pem, &other.key_pem).contains("does not belong"));
        assert!(error(&one.chain_pem, &one.chain_pem).contains("no PEM private key"));
        assert!(error(&one.key_pem, &one.key_pem).contains("the certificate chain"));
    }
}
