//! X.509 by OpenSSL.

use std::time::{SystemTime, UNIX_EPOCH};

use openssl::asn1::{Asn1Integer, Asn1Object, Asn1OctetString, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, PKeyRef, Private, Public};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName, SubjectKeyIdentifier,
};
use openssl::x509::{
    X509, X509Builder, X509CrlBuilder, X509Extension, X509Name, X509NameRef, X509Ref, X509RevokedBuilder,
};

use super::{CrlOptions, Leaf, Lifetime};

/// A CA certificate and its key.
pub(super) struct Authority {
    pub(super) certificate: X509,
    pub(super) key: PKey<Private>,
}

impl Authority {
    pub(super) fn root(common_name: &str, lifetime: Lifetime) -> Result<Authority, ErrorStack> {
        let (key, name) = (p256()?, subject(Some(common_name))?);
        let mut builder = builder(&name, lifetime, &*public(&key)?)?;
        builder.set_issuer_name(&name)?;
        append_ca(&mut builder, None, None)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Authority { certificate: builder.build(), key })
    }

    /// Another certificate of a root's name and key, PEM.
    pub(super) fn renewed(&self, lifetime: Lifetime) -> Result<String, ErrorStack> {
        let name = self.certificate.subject_name();
        let mut builder = builder(name, lifetime, &*public(&self.key)?)?;
        builder.set_issuer_name(name)?;
        append_ca(&mut builder, None, None)?;
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok(pem(&builder.build()))
    }

    /// A CA below this one, with at most `below` further ones under it.
    pub(super) fn subordinate(&self, name: &str, lifetime: Lifetime, below: u32) -> Result<Authority, ErrorStack> {
        let key = p256()?;
        let mut builder = builder(&*subject(Some(name))?, lifetime, &*public(&key)?)?;
        builder.set_issuer_name(self.certificate.subject_name())?;
        append_ca(&mut builder, Some(below), Some(&self.certificate))?;
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok(Authority { certificate: builder.build(), key })
    }

    pub(super) fn certify(&self, leaf: &Leaf, key: &PKeyRef<Public>) -> Result<X509, ErrorStack> {
        let lifetime = Lifetime { not_before: leaf.not_before, not_after: leaf.not_after };
        let mut builder = builder(&*subject(leaf.common_name.as_deref())?, lifetime, key)?;
        builder.set_issuer_name(self.certificate.subject_name())?;
        append_leaf(&mut builder, leaf, &self.certificate)?;
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok(builder.build())
    }

    /// A CRL that names these, PEM.
    pub(super) fn crl(&self, revoked: &[X509], options: &CrlOptions<'_>) -> Result<String, ErrorStack> {
        let mut builder = X509CrlBuilder::new()?;
        builder.set_issuer_name(self.certificate.subject_name())?;
        builder.set_last_update(&*at(options.life.not_before)?)?;
        builder.set_next_update(&*at(options.life.not_after)?)?;
        let certificate = X509Builder::new()?;
        let context = certificate.x509v3_context(Some(&self.certificate), None);
        builder.append_extension(AuthorityKeyIdentifier::new().keyid(true).build(&context)?)?;
        // RFC 5280, section 5.2.3: INTEGER 1.
        let further = options.extensions.iter().copied().chain([("2.5.29.20", false, &[2, 1, 1][..])]);
        for (name, critical, value) in further {
            let name = Asn1Object::from_str(name)?;
            let value = Asn1OctetString::new_from_bytes(value)?;
            builder.append_extension(X509Extension::new_from_der(&name, critical, &value)?)?;
        }
        for certificate in revoked {
            let mut entry = X509RevokedBuilder::new()?;
            entry.set_serial_number(certificate.serial_number())?;
            entry.set_revocation_date(&*at(-86_400)?)?;
            builder.add_revoked(entry.build())?;
        }
        builder.sort()?;
        let foreign = if options.foreign_key { Some(p256()?) } else { None };
        builder.sign(foreign.as_ref().unwrap_or(&self.key), MessageDigest::sha256())?;
        Ok(String::from_utf8(builder.build()?.to_pem()?).expect("PEM is ASCII"))
    }

    pub(super) fn pem(&self) -> String {
        pem(&self.certificate)
    }
}

/// Starts a certificate with a random serial; `key` is the subject's.
fn builder(subject: &X509NameRef, lifetime: Lifetime, key: &PKeyRef<Public>) -> Result<X509Builder, ErrorStack> {
    let mut serial = BigNum::new()?;
    // 127 bits: positive and within RFC 5280's 20 octets.
    serial.rand(127, MsbOption::ONE, false)?;
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*Asn1Integer::from_bn(&serial)?)?;
    builder.set_subject_name(subject)?;
    builder.set_not_before(&*at(lifetime.not_before)?)?;
    builder.set_not_after(&*at(lifetime.not_after)?)?;
    builder.set_pubkey(key)?;
    Ok(builder)
}

fn append_ca(builder: &mut X509Builder, path_len: Option<u32>, issuer: Option<&X509Ref>) -> Result<(), ErrorStack> {
    let mut constraints = BasicConstraints::new();
    constraints.critical().ca();
    if let Some(path_len) = path_len {
        constraints.pathlen(path_len);
    }
    builder.append_extension(constraints.build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    append_key_identifiers(builder, issuer)
}

fn append_leaf(builder: &mut X509Builder, leaf: &Leaf, issuer: &X509Ref) -> Result<(), ErrorStack> {
    let (mut constraints, mut usage) = (BasicConstraints::new(), KeyUsage::new());
    constraints.critical();
    usage.critical().key_encipherment();
    if !leaf.key_encipherment_only {
        usage.digital_signature();
    }
    if leaf.ca {
        constraints.ca();
        usage.key_cert_sign();
    }
    if !leaf.unconstrained {
        builder.append_extension(constraints.build()?)?;
    }
    builder.append_extension(usage.build()?)?;
    let mut extended = ExtendedKeyUsage::new();
    if leaf.server_auth {
        extended.server_auth();
    }
    if leaf.client_auth {
        extended.client_auth();
    }
    if leaf.server_auth || leaf.client_auth {
        builder.append_extension(extended.build()?)?;
    }
    append_key_identifiers(builder, Some(issuer))?;
    append_names(builder, leaf)
}

fn append_key_identifiers(builder: &mut X509Builder, issuer: Option<&X509Ref>) -> Result<(), ErrorStack> {
    let own = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    builder.append_extension(own)?;
    if let Some(issuer) = issuer {
        let theirs = AuthorityKeyIdentifier::new().keyid(true).build(&builder.x509v3_context(Some(issuer), None))?;
        builder.append_extension(theirs)?;
    }
    Ok(())
}

fn append_names(builder: &mut X509Builder, leaf: &Leaf) -> Result<(), ErrorStack> {
    if leaf.dns.is_empty() && leaf.ip.is_empty() && leaf.uri.is_empty() {
        return Ok(());
    }
    let mut names = SubjectAlternativeName::new();
    // The subject is empty, so RFC 5280 section 4.2.1.6 wants the extension critical.
    names.critical();
    for name in &leaf.dns {
        names.dns(name);
    }
    for address in &leaf.ip {
        names.ip(&address.to_string());
    }
    for uri in &leaf.uri {
        names.uri(uri);
    }
    let extension = names.build(&builder.x509v3_context(None, None))?;
    builder.append_extension(extension)
}

fn subject(common_name: Option<&str>) -> Result<X509Name, ErrorStack> {
    let mut name = X509Name::builder()?;
    if let Some(common_name) = common_name {
        name.append_entry_by_nid(Nid::ORGANIZATIONNAME, "development CA, not for production")?;
        name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    }
    Ok(name.build())
}

fn at(from_now: i64) -> Result<Asn1Time, ErrorStack> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Asn1Time::from_unix(i64::try_from(now).unwrap_or(i64::MAX).saturating_add(from_now))
}

pub(crate) fn p256() -> Result<PKey<Private>, ErrorStack> {
    PKey::from_ec_key(EcKey::generate(&*EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?)?)
}

pub(crate) fn public(key: &PKeyRef<Private>) -> Result<PKey<Public>, ErrorStack> {
    PKey::public_key_from_der(&key.public_key_to_der()?)
}

pub(crate) fn pem(certificate: &X509Ref) -> String {
    let pem = certificate.to_pem().expect("OpenSSL writes a certificate as PEM");
    String::from_utf8(pem).expect("PEM is ASCII")
}

pub(crate) fn key_pem(key: &PKeyRef<Private>) -> Result<String, ErrorStack> {
    Ok(String::from_utf8(key.private_key_to_pem_pkcs8()?).expect("PEM is ASCII"))
}
