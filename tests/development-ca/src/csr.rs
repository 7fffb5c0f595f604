//! Reads a CSR with the strictness of istio-csr: it may ask for one SPIFFE ID and for nothing else.

use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::x509::{X509, X509Req};
use tonic::Status;

use crate::identity::Identity;

/// A CSR whose signature is good and which asks for one identity.
pub(crate) struct Csr {
    pub(crate) key: PKey<Public>,
    pub(crate) uri: String,
}

/// DER of the object identifier 2.5.29.17, subjectAltName, as an extension begins with it.
const SAN_OID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];

impl Csr {
    /// Everything wrong with the CSR itself is `INVALID_ARGUMENT`.
    pub(crate) fn parse(pem: &str) -> Result<Csr, Status> {
        let request = X509Req::from_pem(pem.as_bytes()).map_err(|_| invalid("not a PEM certificate request"))?;
        let key = request.public_key().map_err(|_| invalid("unreadable public key"))?;
        if !request.verify(&key).unwrap_or(false) {
            return Err(invalid("the signature is not by the key inside"));
        }
        check_key(&key)?;
        if request.subject_name().entries_by_nid(Nid::COMMONNAME).next().is_some() {
            return Err(invalid("a common name is not allowed"));
        }
        Ok(Csr { key, uri: only_uri(&request)? })
    }

    /// Asking for another identity than one's own is `PERMISSION_DENIED`.
    pub(crate) fn check_identity(&self, caller: &Identity) -> Result<(), Status> {
        if self.uri == caller.to_string() {
            Ok(())
        } else {
            Err(Status::permission_denied(format!("CSR asks for {}, the caller is {caller}", self.uri)))
        }
    }
}

fn check_key(key: &PKey<Public>) -> Result<(), Status> {
    let curve = || key.ec_key().ok().and_then(|key| key.group().curve_name());
    match key.id() {
        Id::RSA if (2048..=8192).contains(&key.bits()) => Ok(()),
        Id::EC if matches!(curve(), Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1 | Nid::SECP521R1)) => Ok(()),
        _ => Err(invalid("key must be RSA of 2048 bits or more, or ECDSA P-256, P-384 or P-521")),
    }
}

/// The URIs among the SANs that a CSR asks for, whatever else it has.
pub(crate) fn uris(pem: &str) -> Result<Vec<String>, ErrorStack> {
    let mut carrier = X509::builder()?;
    for extension in &X509Req::from_pem(pem.as_bytes())?.extensions()? {
        carrier.append_extension2(extension)?;
    }
    let names = carrier.build().subject_alt_names();
    Ok(names.iter().flatten().filter_map(|name| name.uri()).map(str::to_owned).collect())
}

fn only_uri(request: &X509Req) -> Result<String, Status> {
    let unreadable = |_| invalid("unreadable extensions");
    let extensions = request.extensions().map_err(unreadable)?;
    // A certificate is the one place where OpenSSL's binding decodes a SAN, so the extension is moved into one.
    let mut carrier = X509::builder().map_err(unreadable)?;
    for extension in &extensions {
        let der = extension.to_der().map_err(unreadable)?;
        if !der.windows(SAN_OID.len()).take(5).any(|window| window == SAN_OID) {
            return Err(invalid("an extension other than subjectAltName is not allowed"));
        }
        carrier.append_extension2(extension).map_err(unreadable)?;
    }
    let names = carrier.build().subject_alt_names().ok_or_else(|| invalid("no single subjectAltName extension"))?;
    if names.len() != 1 {
        return Err(invalid("exactly one subjectAltName is allowed"));
    }
    let uri = names.iter().next().and_then(|name| name.uri());
    uri.map(str::to_owned).ok_or_else(|| invalid("the subjectAltName must be a URI"))
}

fn invalid(reason: &str) -> Status {
    Status::invalid_argument(format!("CSR: {reason}"))
}
