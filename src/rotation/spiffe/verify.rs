use crate::{
    clock,
    identity::{Answer, Issued, SpiffeId, SvidError, X509Svid},
    rotation::{federation::in_der, renewal::check_start},
    spiffe::Svid,
};

/// The certificate and its anchors, if they hold what the Workload API says of them.
///
/// # Errors
/// The first thing that does not hold.
pub(super) fn verify(svid: Svid, holds: bool) -> Result<(Issued, SpiffeId), String> {
    let Svid { id, chain, key, bundle } = svid;
    let id =
        str::from_utf8(&id).ok().and_then(SpiffeId::parse).ok_or("its spiffe_id is not a SPIFFE ID with a path")?;
    for (what, content) in [("x509_svid", &*chain), ("x509_svid_key", key.bytes()), ("bundle", &*bundle)] {
        if content.is_empty() {
            return Err(format!("its {what} is empty"));
        }
    }
    let parsed = locked::read_pkcs8(key.bytes()).map_err(|_| "its private key cannot be parsed")?;
    drop(key);
    let answer = Answer::of_der(&chain, &bundle);
    drop((chain, bundle));
    let issued = X509Svid::verify(answer, &parsed, &id, clock::now()).map_err(|error| match error {
        SvidError::ForeignKey => "the private key does not belong to the certificate".to_owned(),
        SvidError::Element { position: 1, cause } => format!("its certificate chain: {}", in_der(&cause)),
        SvidError::Element { cause, .. } => format!("its bundle: {}", in_der(&cause)),
        error => error.to_string(),
    })?;
    check_start(&issued.svid, holds).map_err(|error| error.to_string())?;
    Ok((issued, id))
}

/// Why there is no certificate among what is told.
pub(super) fn nobody(ids: &[String]) -> String {
    match ids.len() {
        0 => "it has no identity".to_owned(),
        _ => format!("SDS_SHIM_SPIFFE_ID is not among its identities: {}", ids.join(", ")),
    }
}
