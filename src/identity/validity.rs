use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    error::ErrorStack,
    x509::X509Ref,
};

/// NotBefore and NotAfter in Unix seconds.
pub(super) fn validity(certificate: &X509Ref) -> (i64, i64) {
    // A time that cannot be read is in the past, so that the certificate is refused.
    let seconds = |time| unix_seconds(time).unwrap_or(i64::MIN);
    (unix_seconds(certificate.not_before()).unwrap_or(i64::MAX), seconds(certificate.not_after()))
}

/// An ASN.1 time in Unix seconds.
///
/// # Errors
/// When OpenSSL cannot read it.
pub fn unix_seconds(time: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let since_epoch = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs))
}

/// Whether basicConstraints says CA:TRUE (RFC 5280, section 4.2.1.9), found by its encoding: the OpenSSL binding has
/// no accessor for it, and its own check for servers and clients lets a CA certificate pass as a leaf.
pub(super) fn is_ca(certificate: &X509Ref) -> Result<bool, ErrorStack> {
    const OID: [u8; 4] = [0x03, 0x55, 0x1d, 0x13];
    let der = certificate.to_der()?;
    Ok(der.windows(OID.len()).enumerate().filter(|(_, window)| *window == OID).any(|(at, _)| {
        let value = &der[at + OID.len()..];
        let value = match value {
            [0x01, 0x01, _critical, value @ ..] => value,
            value => value,
        };
        // OCTET STRING { SEQUENCE { BOOLEAN OPTIONAL, INTEGER OPTIONAL } }, each with a length of one byte. OpenSSL
        // takes more than DER allows, and any value but zero for TRUE: only what is plainly no CA counts as none.
        !matches!(
            value,
            [0x04, ..=0x7f, 0x30, 0x00, ..]
                | [0x04, ..=0x7f, 0x30, ..=0x7f, 0x01, 0x01, 0x00, ..]
                | [0x04, ..=0x7f, 0x30, ..=0x7f, 0x02, ..]
        )
    }))
}
