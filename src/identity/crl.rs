use std::{fmt, fs, io::ErrorKind, path::Path, sync::Arc};

use openssl::{
    error::ErrorStack,
    sha::sha256,
    x509::{X509Name, X509Ref},
};

use super::{
    der::{CERTIFICATE, Weight},
    facts::{CertificateFacts, name, pem_len, push_pem},
    pem::{cut, decode_lines},
};
use crate::{bounded, budget, clock::rfc3339};

mod parse;
mod signer;

pub(super) use parse::Scope;
pub use signer::CrlSigner;

const LABEL: &str = "X509 CRL";
const BEGIN: &str = "-----BEGIN X509 CRL-----";
const END: &str = "-----END X509 CRL-----";

/// Bytes of a file with revocation lists. Long before that, room is what is missing.
const MOST: usize = 64 * 1024 * 1024;
/// Bytes of an issuer's name, and elements in it.
const MOST_NAME: usize = 4 * 1024;
const MOST_NAME_ELEMENTS: usize = 128;

/// RFC 5280's time for what has no end, 9999-12-31T23:59:59Z.
const NEVER: i64 = 253_402_300_799;

/// A certificate revocation list: what it says and who says it.
#[derive(Debug)]
pub struct RevocationList {
    der: Vec<u8>,
    parts: parse::Parts,
    issuer: String,
    name: [u8; 32],
    digest: [u8; 32],
}

/// Why there is no list where one should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CrlTrouble {
    /// Its class, as metrics have it.
    pub reason: &'static str,
    /// In words that name the file.
    pub text: String,
}

/// Whether Envoy can use a list, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrlState {
    /// It can.
    Good,
    /// Not since then (Unix seconds).
    Expired(i64),
    /// Not before then (Unix seconds).
    Ahead(i64),
    /// Never, for this reason.
    Flawed(&'static str),
}

impl fmt::Display for CrlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => write!(f, "can be used"),
            Self::Expired(since) => write!(f, "has expired at {}", rfc3339(*since)),
            Self::Ahead(begin) => write!(f, "begins at {}", rfc3339(*begin)),
            Self::Flawed(flaw) => write!(f, "{flaw}"),
        }
    }
}

impl PartialEq for RevocationList {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl RevocationList {
    /// Reads a file: one list as DER, or any number of them as PEM. None, if it has no bytes at all.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn read(file: &Path, several: bool) -> Result<Vec<Self>, CrlTrouble> {
        let trouble = |reason, text| CrlTrouble { reason, text };
        let has_room = |size| budget::has_room_for_revocation_lists(size, several);
        let read = bounded::open(file, MOST).and_then(|opened| {
            let size = opened.size();
            Ok((size, if has_room(opened.most()) { opened.read().map(Some) } else { Ok(None) }?))
        });
        match read {
            Ok((_, Some(content))) => {
                Self::all(&content).map_err(|error| trouble("malformed", format!("{}: {error}", file.display())))
            }
            Ok((size, None)) => {
                let kib = budget::arena_for_revocation_lists(size, several);
                let text = format!(
                    "{}: no room for {size} bytes of revocation lists; set SDS_SHIM_ARENA_KIB={kib} or more",
                    file.display()
                );
                Err(trouble("too_large", text))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(trouble("missing", bounded::describe(file, &error)))
            }
            Err(error) => Err(trouble("unreadable", bounded::describe(file, &error))),
        }
    }

    /// Whether there is room to serve these now.
    pub fn have_room(lists: &[Arc<Self>], several: bool) -> bool {
        let size = lists.iter().map(|list| list.pem_len()).sum();
        budget::has_room_to_serve_revocation_lists(size, several)
    }

    /// Whether the file has no bytes, which takes back all lists: Istio does that with the lists of a mesh.
    pub fn is_withdrawn(file: &Path) -> bool {
        fs::metadata(file).is_ok_and(|found| found.is_file() && found.len() == 0)
    }

    /// Reads a file's content: one list as DER, or every list of a PEM text. Of no bytes, there is none.
    ///
    /// # Errors
    /// What is wrong with it, in words that go with the name of the file.
    pub fn all(content: &[u8]) -> Result<Vec<Self>, String> {
        // A sequence: no text begins with a zero.
        if content.first() == Some(&b'0') && std::str::from_utf8(content).is_err() {
            if !budget::has_room_for_list(std::iter::once(content.len())) {
                return Err(no_room(1));
            }
            return Ok(vec![Self::new(content.to_vec(), 1)?.ok_or("it is neither a DER CRL nor PEM")?]);
        }
        let text = std::str::from_utf8(content).map_err(|error| {
            format!("it is neither a DER CRL nor text: byte {} is not valid UTF-8", error.valid_up_to() + 1)
        })?;
        let mut found = Vec::new();
        for (index, block) in cut(text, BEGIN, END).enumerate() {
            let position = index + 1;
            let unparsable = || format!("CRL {position} cannot be parsed");
            let block = block.ok_or_else(|| format!("CRL {position} is cut off: it has no {END}"))?;
            if !budget::has_room_for_list(std::iter::once(block.len())) {
                return Err(no_room(position));
            }
            let der = decode_lines(block, BEGIN, END).ok_or_else(unparsable)?;
            found.push(Self::new(der, position)?.ok_or_else(unparsable)?);
        }
        if found.is_empty() && !content.is_empty() { Err("it holds no PEM CRL".to_owned()) } else { Ok(found) }
    }

    /// Nothing, when it is none.
    fn new(der: Vec<u8>, position: usize) -> Result<Option<Self>, String> {
        let Some(parts) = parse::parse(&der) else { return Ok(None) };
        let issuer = der.get(parts.issuer.clone()).filter(|issuer| issuer.len() <= MOST_NAME).unwrap_or_default();
        match Weight::of(issuer) {
            Some(weight) if weight.elements > MOST_NAME_ELEMENTS => return Ok(None),
            Some(weight) if !budget::has_room_for_list(weight.pieces(CERTIFICATE)) => return Err(no_room(position)),
            Some(_) => {}
            None => return Ok(None),
        }
        let parsed = X509Name::from_der(issuer);
        // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
        drop(ErrorStack::get());
        let Ok(parsed) = parsed else { return Ok(None) };
        let (issuer, name) = (name(&parsed), signer::canonical(&parsed));
        Ok(Some(Self { digest: sha256(&der), der, parts, issuer, name }))
    }

    /// As PEM, ending with a newline.
    pub fn pem(&self, to: &mut Vec<u8>) {
        push_pem(&self.der, LABEL, to);
    }

    /// Bytes of its PEM.
    pub fn pem_len(&self) -> usize {
        pem_len(&self.der, LABEL)
    }

    /// SHA-256 of its DER.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The distinguished name of who issued it, cut and made fit for one line.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// From when on (Unix seconds) it holds.
    pub fn this_update(&self) -> i64 {
        self.parts.this_update
    }

    /// From when on (Unix seconds) it is too old to be used. Without NextUpdate it never gets too old.
    pub fn next_update(&self) -> i64 {
        self.parts.next_update.unwrap_or(NEVER)
    }

    /// How many certificates it names.
    pub fn entries(&self) -> usize {
        self.parts.entries
    }

    /// Whether the one could be used in the place of the other.
    pub fn is_like(&self, other: &Self) -> bool {
        let (one, two) = (&self.parts, &other.parts);
        let same_key = one.key_id == two.key_id || one.key_id.is_none() || two.key_id.is_none();
        self.name == other.name && same_key && one.scope == two.scope
    }

    /// Why it is of no use to Envoy at any time, given the CAs that are known; of others nothing is.
    fn flaw(&self, signers: &[CrlSigner]) -> Option<&'static str> {
        if self.parts.flaw.is_some() {
            return self.parts.flaw;
        }
        let mut refusals = signers.iter().filter(|signer| self.is_of(signer)).map(|signer| signer.refuses(self));
        let first = refusals.next()?;
        // A CA may have several keys under its name.
        if refusals.any(|refusal| refusal.is_none()) { None } else { first }
    }

    /// Whether Envoy can use it at `now` (Unix seconds), given the CAs that are known.
    pub fn state(&self, signers: &[CrlSigner], now: i64) -> CrlState {
        match self.flaw(signers) {
            Some(flaw) => CrlState::Flawed(flaw),
            None if self.this_update() > now => CrlState::Ahead(self.this_update()),
            None if self.next_update() <= now => CrlState::Expired(self.next_update()),
            None => CrlState::Good,
        }
    }

    /// Whether it tells of certificates such as this one, that of a CA or a leaf's: its issuer has written it.
    pub(super) fn is_for(&self, certificate: &X509Ref, is_ca: bool) -> bool {
        let other = if is_ca { Scope::Leaves } else { Scope::Authorities };
        self.parts.scope != other && self.name == signer::canonical(certificate.issuer_name())
    }

    /// Whether it names this certificate.
    pub(super) fn names(&self, certificate: &X509Ref) -> bool {
        let serial = certificate.serial_number().to_bn().map(|number| number.to_vec());
        // Where it cannot be read, nobody knows.
        let listed = self.der.get(self.parts.listed.clone());
        listed.zip(serial.ok()).and_then(|(listed, serial)| parse::names(listed, &serial)).unwrap_or(true)
    }

    /// Whether it bears this CA's name.
    pub fn is_of(&self, signer: &CrlSigner) -> bool {
        signer.is_named(&self.name)
    }

    /// What everybody may know of it.
    pub fn facts(&self) -> CertificateFacts {
        CertificateFacts {
            serial: String::new(),
            subject: self.issuer.clone(),
            issuer: self.issuer.clone(),
            not_before: self.this_update(),
            not_after: self.next_update(),
            fingerprint: self.digest,
            is_crl: true,
        }
    }
}

fn no_room(position: usize) -> String {
    format!("not enough arena memory for CRL {position}; raise SDS_SHIM_ARENA_KIB")
}

#[cfg(test)]
mod tests;
