use openssl::{error::ErrorStack, x509::X509Crl};

use super::{
    der::{CRL, Weight},
    facts::{CertificateFacts, name},
    pem::{cut, decode},
    validity::unix_seconds,
};
use crate::budget;

const BEGIN: &str = "-----BEGIN X509 CRL-----";
const END: &str = "-----END X509 CRL-----";

/// RFC 5280's time for what has no end, 9999-12-31T23:59:59Z.
const NEVER: i64 = 253_402_300_799;

/// A certificate revocation list: what it says and who says it. Whether its signature holds is for those to look at
/// who verify with it.
#[derive(Debug, PartialEq, Eq)]
pub struct RevocationList {
    pem: Vec<u8>,
    issuer: String,
    this_update: i64,
    next_update: i64,
}

impl RevocationList {
    /// Reads every list of a PEM text.
    ///
    /// # Errors
    /// What is wrong with it, in words that go with the name of the file.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, String> {
        let mut found = Vec::new();
        for (index, block) in cut(text, BEGIN, END).enumerate() {
            let position = index + 1;
            let unparsable = || format!("CRL {position} cannot be parsed");
            let block = block.ok_or_else(unparsable)?;
            // Twice as text, twice as DER.
            if !budget::has_room_for_list([2 * block.len(), block.len()].into_iter()) {
                return Err(no_room(position));
            }
            let der = decode(block, BEGIN, END).ok_or_else(unparsable)?;
            let weight = Weight::of(&der).ok_or_else(unparsable)?;
            if !budget::has_room_for_list(weight.pieces(CRL).chain([block.len()])) {
                return Err(no_room(position));
            }
            found.push(Self::new(&der).ok_or_else(unparsable)?);
            // OpenSSL leaves the reasons of a "no" in a queue that the next TLS operation would take for its own.
            drop(ErrorStack::get());
        }
        if found.is_empty() { Err("it holds no PEM CRL".to_owned()) } else { Ok(found) }
    }

    fn new(der: &[u8]) -> Option<Self> {
        let crl = X509Crl::from_der(der).ok()?;
        Some(Self {
            pem: crl.to_pem().ok()?,
            issuer: name(crl.issuer_name()),
            this_update: unix_seconds(crl.last_update()).ok()?,
            // Without NextUpdate it never gets too old.
            next_update: crl.next_update().map_or(Ok(NEVER), unix_seconds).ok()?,
        })
    }

    /// As PEM, ending with a newline.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// The distinguished name of who issued it, cut and made fit for one line.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// From when on (Unix seconds) it is too old to be used.
    pub fn next_update(&self) -> i64 {
        self.next_update
    }

    /// What everybody may know of the lists in a PEM text.
    pub fn facts(text: &str) -> Vec<CertificateFacts> {
        let lists = Self::from_pem(text).unwrap_or_default().into_iter();
        lists
            .map(|list| CertificateFacts {
                serial: String::new(),
                subject: list.issuer.clone(),
                issuer: list.issuer,
                not_before: list.this_update,
                not_after: list.next_update,
                fingerprint: openssl::sha::sha256(&list.pem),
                is_crl: true,
            })
            .collect()
    }
}

fn no_room(position: usize) -> String {
    format!("there is no room for CRL {position}; SDS_SHIM_ARENA_KIB makes more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::development_ca::Pki;

    #[test]
    fn lists_are_read_from_one_text() {
        let (one, two) = (Pki::new("one"), Pki::new("two"));
        let text = format!("noise{}{}", one.crl(&[], 600), two.root_crl(&[], -5));
        let lists = RevocationList::from_pem(&text).unwrap();
        assert_eq!(
            lists.iter().map(RevocationList::pem).collect::<Vec<_>>().concat(),
            &text.as_bytes()["noise".len()..]
        );
        assert!(lists[0].issuer().contains("one intermediate") && lists[1].issuer().ends_with("CN=two"));
        assert!(lists[0].next_update() > lists[1].next_update() + 600);
        assert!(RevocationList::facts(&text).iter().all(|facts| facts.is_crl));
    }

    #[test]
    fn what_is_none_is_named() {
        let error = |text: &str| RevocationList::from_pem(text).unwrap_err();
        assert_eq!(error(&Pki::new("x").root_pem()), "it holds no PEM CRL");
        assert_eq!(error(&format!("{BEGIN}\nAAAA\n{END}")), "CRL 1 cannot be parsed");
        assert_eq!(error(&format!("{BEGIN}\nAAAA")), "CRL 1 cannot be parsed");
    }
}
