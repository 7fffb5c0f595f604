//! Who a peer is that presents a certificate, and whether that still holds.

use openssl::x509::X509Ref;

use super::{crl::RevocationList, spiffe::SpiffeId};

/// The SPIFFE ID of a leaf that a peer presents (X509-SVID, sections 2 and 4.1).
///
/// # Errors
/// Why it is nobody's.
pub fn spiffe_id_of(leaf: &X509Ref) -> Result<SpiffeId, &'static str> {
    let names = leaf.subject_alt_names();
    let mut uris = names.iter().flatten().filter_map(|name| name.uri());
    let id = uris.next().and_then(SpiffeId::parse).ok_or("its certificate carries no SPIFFE ID")?;
    if uris.next().is_some() {
        return Err("its certificate carries more than one URI");
    }
    if locked::is_ca(leaf) { Err("its certificate is that of a CA") } else { Ok(id) }
}

/// Why one of these certificates, the leaf first and each before its issuer, does not hold at `now` (Unix seconds) as
/// these lists have it.
pub fn revoked(chain: &[&X509Ref], lists: &[std::sync::Arc<RevocationList>], whole: bool, now: i64) -> Option<String> {
    let looked_at = if whole { chain.len() } else { 1 };
    // The last one is an anchor, which nobody revokes.
    let below = chain.len().saturating_sub(1).min(looked_at);
    for (at, certificate) in chain.iter().take(below).enumerate() {
        let mut of_issuer = lists.iter().filter(|list| list.is_for(certificate, at > 0)).peekable();
        if of_issuer.peek().is_some() && !of_issuer.clone().any(|list| list.next_update() > now) {
            return Some("the revocation list of its issuer has expired".to_owned());
        }
        if of_issuer.any(|list| list.names(certificate)) {
            return Some("its certificate, or that of its CA, has been revoked".to_owned());
        }
    }
    None
}
