//! Certificates for the fuzz targets. All keys are fixed and Ed25519 signs without chance, so that an input means the
//! same in every run.
#![forbid(unsafe_code)]

use openssl::{
    asn1::{Asn1Integer, Asn1Object, Asn1OctetString, Asn1Time},
    bn::BigNum,
    hash::MessageDigest,
    nid::Nid,
    pkey::{HasPublic, Id, PKey, PKeyRef, Private},
    sha::sha256,
    x509::{
        X509, X509Builder, X509Extension, X509Name,
        extension::{BasicConstraints, SubjectKeyIdentifier},
    },
};

/// The time at which everything happens, in Unix seconds.
pub const NOW: i64 = 1_800_000_000;
const YEAR: i64 = 31_536_000;

/// A certificate and the key that belongs to it.
pub struct Authority {
    key: PKey<Private>,
    certificate: X509,
}

/// What an authority signs.
pub struct Request<'a, T> {
    /// The common name; none leaves the subject empty.
    pub name: Option<&'a str>,
    /// The public key.
    pub key: &'a PKeyRef<T>,
    /// NotBefore and NotAfter, in Unix seconds.
    pub validity: (i64, i64),
    /// Object identifier, criticality and content (DER) of each extension.
    pub extensions: &'a [(&'a str, bool, &'a [u8])],
}

impl Authority {
    /// A root of this name; its key is made of the name.
    pub fn new(name: &str) -> Self {
        let key = key(name);
        let mut builder = builder(&Request {
            name: Some(name),
            key: &key,
            validity: (NOW - 10 * YEAR, NOW + 10 * YEAR),
            extensions: &[],
        });
        builder.set_issuer_name(&subject(Some(name))).expect("a name");
        builder.append_extension(BasicConstraints::new().critical().ca().build().expect("an extension")).expect("room");
        let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None)).expect("an extension");
        builder.append_extension(identifier).expect("room");
        builder.sign(&key, MessageDigest::null()).expect("a signature");
        Self { key, certificate: builder.build() }
    }

    /// An authority below this one, if it may be one.
    pub fn intermediate(&self, name: &str, ca: bool) -> Self {
        let key = key(name);
        let constraints: &[u8] = if ca { b"\x30\x03\x01\x01\xff" } else { b"\x30\x00" };
        let certificate = self.sign(&Request {
            name: Some(name),
            key: &key,
            validity: (NOW - YEAR, NOW + YEAR),
            extensions: &[("2.5.29.19", true, constraints)],
        });
        Self { key, certificate }
    }

    /// Whoever holds this key, with this certificate.
    pub fn with(key: PKey<Private>, certificate: X509) -> Self {
        Self { key, certificate }
    }

    /// Signs whatever is asked.
    pub fn sign<T: HasPublic>(&self, request: &Request<'_, T>) -> X509 {
        let mut builder = builder(request);
        builder.set_issuer_name(self.certificate.subject_name()).expect("a name");
        builder.sign(&self.key, MessageDigest::null()).expect("a signature");
        builder.build()
    }

    /// When its certificate ends, in Unix seconds.
    pub fn not_after(&self) -> i64 {
        sds_shim::identity::unix_seconds(self.certificate.not_after()).expect("a time")
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        pem(&self.certificate)
    }
}

/// A certificate as text.
pub fn pem(certificate: &X509) -> String {
    String::from_utf8(certificate.to_pem().expect("memory")).expect("PEM is ASCII")
}

/// The key of this name.
pub fn key(name: &str) -> PKey<Private> {
    PKey::private_key_from_raw_bytes(&sha256(name.as_bytes()), Id::ED25519).expect("32 bytes are a key")
}

fn builder<T: HasPublic>(request: &Request<'_, T>) -> X509Builder {
    let mut builder = X509::builder().expect("memory");
    let serial = BigNum::from_u32(7).and_then(|number| Asn1Integer::from_bn(&number)).expect("a number");
    builder.set_version(2).expect("version 3");
    builder.set_serial_number(&serial).expect("a number");
    builder.set_subject_name(&subject(request.name)).expect("a name");
    builder.set_pubkey(request.key).expect("a key");
    builder.set_not_before(&Asn1Time::from_unix(request.validity.0).expect("a time")).expect("a time");
    builder.set_not_after(&Asn1Time::from_unix(request.validity.1).expect("a time")).expect("a time");
    for (identifier, critical, content) in request.extensions {
        let identifier = Asn1Object::from_str(identifier).expect("an identifier");
        let content = Asn1OctetString::new_from_bytes(content).expect("memory");
        let extension = X509Extension::new_from_der(&identifier, *critical, &content).expect("any bytes will do");
        builder.append_extension(extension).expect("room");
    }
    builder
}

fn subject(name: Option<&str>) -> X509Name {
    let mut builder = X509Name::builder().expect("memory");
    if let Some(name) = name {
        builder.append_entry_by_nid(Nid::COMMONNAME, name).expect("a name");
    }
    builder.build()
}
