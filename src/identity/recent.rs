//! The CA certificates that were parsed last. The same few come again with each renewal, and OpenSSL takes longer to read
//! a public key than all the rest of a certificate.

use std::sync::{Mutex, PoisonError};

use openssl::x509::X509;

use super::{der::Weight, pem};

/// An anchor and an issuer.
const MOST: usize = 2;
/// What is kept must be small: bytes of DER, with which an RSA 4096 key is no reason to leave one out, and elements, of
/// which an ordinary certificate has some hundred and thirty.
const MOST_BYTES: usize = 2048;
const MOST_ELEMENTS: usize = 160;

struct Parsed {
    der: Vec<u8>,
    certificate: X509,
}

/// The latest first.
static RECENT: Mutex<Vec<Parsed>> = Mutex::new(Vec::new());

/// The certificate with this DER in its parsed form; `None` when it is none.
pub(super) fn parsed(der: &[u8]) -> Option<X509> {
    if !is_small(der) {
        return pem::parsed(der);
    }
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = recent.iter().position(|one| one.der == der) {
        recent[..=at].rotate_right(1);
    } else {
        let certificate = pem::parsed(der)?;
        recent.truncate(MOST - 1);
        recent.insert(0, Parsed { der: der.to_vec(), certificate });
    }
    recent.first().map(|one| one.certificate.clone())
}

fn is_small(der: &[u8]) -> bool {
    der.len() <= MOST_BYTES && Weight::of(der).is_some_and(|weight| weight.elements <= MOST_ELEMENTS)
}

#[cfg(test)]
mod tests {
    use testkit::development_ca::Pki;

    use super::*;

    fn is_kept(der: &[u8]) -> bool {
        RECENT.lock().unwrap().iter().any(|one| one.der == der)
    }

    #[test]
    fn the_last_few_are_kept_and_what_is_large_is_not() {
        let roots: Vec<_> = (0..=MOST).map(|_| Pki::new("one").root_pem()).collect();
        let roots: Vec<_> = roots.iter().map(|pem| X509::from_pem(pem.as_bytes()).unwrap().to_der().unwrap()).collect();
        assert_eq!(parsed(&roots[0]).unwrap().to_der().unwrap(), roots[0]);
        // Other tests of this process parse theirs meanwhile: what has been pushed out is all that can be said.
        for root in &roots {
            assert_eq!(parsed(root).unwrap().to_der().unwrap(), *root);
        }
        assert!(RECENT.lock().unwrap().len() <= MOST);
        assert!(!is_kept(&roots[0]), "the oldest is kept for ever");
        assert_eq!(parsed(b"no certificate"), None);
        let large = [&roots[0][..], &[0; MOST_BYTES]].concat();
        assert!(parsed(&large).is_some() && !is_kept(&large), "trailing bytes make none larger for OpenSSL");
    }
}
