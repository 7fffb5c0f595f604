//! Root, intermediate and the certificates under them.

mod build;
mod leaf;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, PKeyRef, Private, Public};
use openssl::x509::X509;

use build::Authority;
pub use leaf::{Issued, Leaf};

/// A root and an intermediate, and another one between them on demand, all ECDSA P-256.
pub struct Pki {
    root: Authority,
    upper: Option<X509>,
    intermediate: Authority,
}

/// Names and lifetimes of a [`Pki`].
#[derive(Clone, Debug)]
pub struct PkiOptions {
    /// Common name of the root; the intermediate's adds ` intermediate`.
    pub common_name: String,
    /// Validity of the root.
    pub root: Lifetime,
    /// Validity of the intermediate.
    pub intermediate: Lifetime,
    /// Whether another intermediate, with the validity of the first, lies between it and the root.
    pub upper: bool,
}

/// A validity window, in seconds from now.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// NotBefore; negative is the past.
    pub not_before: i64,
    /// NotAfter; negative is the past.
    pub not_after: i64,
}

/// What a CRL is like.
#[derive(Clone, Copy, Debug)]
pub struct CrlOptions<'a> {
    /// Whether the root signs it, not the intermediate.
    pub by_root: bool,
    /// ThisUpdate and NextUpdate.
    pub life: Lifetime,
    /// Extensions beside the usual ones: name, whether it is critical, DER of the value.
    pub extensions: &'a [(&'a str, bool, &'a [u8])],
    /// Whether it is signed with a key that nobody knows.
    pub foreign_key: bool,
}

impl CrlOptions<'_> {
    /// An ordinary one that is up to date for so many seconds, and began a day before that or before now.
    pub fn fresh_for(seconds: i64) -> Self {
        let life = Lifetime { not_before: seconds.min(0) - 86_400, not_after: seconds };
        Self { by_root: false, life, extensions: &[], foreign_key: false }
    }
}

impl PkiOptions {
    /// A root for ten years, an intermediate for one, both valid since yesterday (so that backdated leaves fit in).
    pub fn new(common_name: &str) -> PkiOptions {
        let lifetime = |days: i64| Lifetime { not_before: -86_400, not_after: days * 86_400 };
        PkiOptions {
            common_name: common_name.to_owned(),
            root: lifetime(3650),
            intermediate: lifetime(365),
            upper: false,
        }
    }
}

impl Pki {
    /// A fresh root and intermediate with the lifetimes of [`PkiOptions::new`].
    pub fn new(common_name: &str) -> Pki {
        Pki::with_options(&PkiOptions::new(common_name))
    }

    /// A fresh root and intermediate.
    pub fn with_options(options: &PkiOptions) -> Pki {
        Pki::generate(options).expect("OpenSSL makes a root and an intermediate")
    }

    /// The root, PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The root renewed under its name and key, PEM.
    pub fn renewed_root(&self, lifetime: Lifetime) -> String {
        self.root.renewed(lifetime).expect("OpenSSL signs a certificate")
    }

    /// The intermediate that signs leaves, PEM.
    pub fn intermediate_pem(&self) -> String {
        self.intermediate.pem()
    }

    /// All intermediates from the one that signs leaves upwards, one PEM each.
    pub fn intermediates(&self) -> Vec<String> {
        let upper = self.upper.iter().map(|upper| build::pem(upper));
        std::iter::once(self.intermediate_pem()).chain(upper).collect()
    }

    /// What istiod finds in its secret `cacerts`, as (file name, PEM): the intermediate is the CA that is plugged in.
    pub fn plugged_in(&self) -> Result<[(&'static str, String); 4], ErrorStack> {
        Ok([
            ("ca-cert.pem", self.intermediate_pem()),
            ("ca-key.pem", build::key_pem(&self.intermediate.key)?),
            ("cert-chain.pem", self.intermediates().concat()),
            ("root-cert.pem", self.root_pem()),
        ])
    }

    /// A CRL of the intermediate that names these leaves, PEM. It is up to date for so many seconds, and began a day
    /// before.
    pub fn crl(&self, revoked: &[&Issued], fresh_for: i64) -> String {
        self.crl_with(revoked, &CrlOptions::fresh_for(fresh_for))
    }

    /// The same of the root, which issued the intermediate.
    pub fn root_crl(&self, revoked: &[&Issued], fresh_for: i64) -> String {
        self.crl_with(revoked, &CrlOptions { by_root: true, ..CrlOptions::fresh_for(fresh_for) })
    }

    /// A CRL of any kind.
    pub fn crl_with(&self, revoked: &[&Issued], options: &CrlOptions<'_>) -> String {
        let issuer = if options.by_root { &self.root } else { &self.intermediate };
        issuer.crl(&leaves(revoked), options).expect("OpenSSL signs a CRL")
    }

    /// The intermediate as what can be revoked by the root.
    pub fn as_issued(&self) -> Issued {
        Issued { chain_pem: self.intermediate_pem(), key_pem: String::new() }
    }

    /// Issues a certificate for a fresh P-256 key.
    pub fn issue(&self, leaf: &Leaf) -> Issued {
        self.try_issue(leaf).expect("OpenSSL issues a certificate")
    }

    /// Certifies somebody else's key; the certificate alone, PEM.
    pub fn certify(&self, leaf: &Leaf, public_key_pem: &str) -> Result<String, ErrorStack> {
        let key = PKey::public_key_from_pem(public_key_pem.as_bytes())?;
        let certificate = self.certify_key(leaf, &key)?;
        Ok(build::pem(&certificate))
    }

    pub(crate) fn certify_key(&self, leaf: &Leaf, key: &PKeyRef<Public>) -> Result<X509, ErrorStack> {
        self.intermediate.certify(leaf, key)
    }

    fn generate(options: &PkiOptions) -> Result<Pki, ErrorStack> {
        let root = Authority::root(&options.common_name, options.root)?;
        let name = format!("{} intermediate", options.common_name);
        let upper = match options.upper {
            true => Some(root.subordinate(&format!("{} upper", options.common_name), options.intermediate, 1)?),
            false => None,
        };
        let intermediate = upper.as_ref().unwrap_or(&root).subordinate(&name, options.intermediate, 0)?;
        Ok(Pki { root, upper: upper.map(|upper| upper.certificate), intermediate })
    }

    fn try_issue(&self, leaf: &Leaf) -> Result<Issued, ErrorStack> {
        let key = build::p256()?;
        let certificate = self.certify_key(leaf, &*build::public(&key)?)?;
        let chain_pem = build::pem(&certificate) + &self.intermediates().concat();
        Ok(Issued { chain_pem, key_pem: build::key_pem(&key)? })
    }

    /// Certificates and keys as (file name, PEM), for [`crate::state`].
    pub(crate) fn to_files(&self) -> Result<[(&'static str, String); 4], ErrorStack> {
        Ok([
            (ROOT, self.root.pem()),
            (ROOT_KEY, build::key_pem(&self.root.key)?),
            (INTERMEDIATE, self.intermediate.pem()),
            (INTERMEDIATE_KEY, build::key_pem(&self.intermediate.key)?),
        ])
    }

    /// The reverse of [`Pki::to_files`].
    pub(crate) fn from_files<E: From<ErrorStack>>(read: impl Fn(&str) -> Result<String, E>) -> Result<Pki, E> {
        let authority = |certificate: &str, key: &str| -> Result<Authority, E> {
            let key: PKey<Private> = PKey::private_key_from_pem(read(key)?.as_bytes())?;
            Ok(Authority { certificate: X509::from_pem(read(certificate)?.as_bytes())?, key })
        };
        let (root, intermediate) = (authority(ROOT, ROOT_KEY)?, authority(INTERMEDIATE, INTERMEDIATE_KEY)?);
        Ok(Pki { root, upper: None, intermediate })
    }
}

const ROOT: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const INTERMEDIATE: &str = "intermediate-cert.pem";
const INTERMEDIATE_KEY: &str = "intermediate-key.pem";

fn leaves(issued: &[&Issued]) -> Vec<X509> {
    issued.iter().map(|issued| X509::from_pem(issued.chain_pem.as_bytes()).expect("it was issued")).collect()
}
