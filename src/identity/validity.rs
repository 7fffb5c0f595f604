use std::sync::OnceLock;

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
    let since_epoch = epoch()?.diff(time)?;
    Ok(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs))
}

/// What Unix seconds count from, made once: OpenSSL prints each time that it makes into a text and reads that.
fn epoch() -> Result<&'static Asn1Time, ErrorStack> {
    static EPOCH: OnceLock<Asn1Time> = OnceLock::new();
    if let Some(epoch) = EPOCH.get() {
        return Ok(epoch);
    }
    let made = Asn1Time::from_unix(0)?;
    Ok(EPOCH.get_or_init(|| made))
}

/// DER that is not as we expect it.
pub(super) struct Unreadable;

/// The value of the extension with this identifier, if the certificate has it.
pub(super) fn extension<'a>(certificate: &'a [u8], identifier: &[u8]) -> Result<Option<&'a [u8]>, Unreadable> {
    const SEQUENCE: u8 = 0x30;
    const EXTENSIONS: u8 = 0xa3;
    let inside = |(tag, value, _): (u8, _, _), wanted| if tag == wanted { Ok(value) } else { Err(Unreadable) };
    let certificate = inside(element(certificate)?, SEQUENCE)?;
    let mut fields = inside(element(certificate)?, SEQUENCE)?;
    while !fields.is_empty() {
        let (tag, value, rest) = element(fields)?;
        fields = rest;
        if tag != EXTENSIONS {
            continue;
        }
        let mut extensions = inside(element(value)?, SEQUENCE)?;
        while !extensions.is_empty() {
            let (tag, extension, rest) = element(extensions)?;
            extensions = rest;
            let (_, oid, mut after) = element(inside((tag, extension, rest), SEQUENCE)?)?;
            if oid != identifier {
                continue;
            }
            // Whether it is critical may stand in between.
            loop {
                let (tag, value, rest) = element(after)?;
                if tag == 0x04 {
                    return Ok(Some(value));
                }
                after = rest;
            }
        }
    }
    Ok(None)
}

/// Tag and value of the first element, and what follows it.
pub(super) fn element(der: &[u8]) -> Result<(u8, &[u8], &[u8]), Unreadable> {
    let (&tag, rest) = der.split_first().ok_or(Unreadable)?;
    let (&first, mut rest) = rest.split_first().ok_or(Unreadable)?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        // Longer lengths than of three bytes are of no certificate that is taken.
        let count = usize::from(first & 0x7f);
        let bytes = rest.get(..count).filter(|bytes| (1..=3).contains(&bytes.len())).ok_or(Unreadable)?;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = &rest[count..];
    }
    let value = rest.get(..length).ok_or(Unreadable)?;
    Ok((tag, value, &rest[length..]))
}
