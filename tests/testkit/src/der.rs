//! Certificates and revocation lists that no library would make: small, and full of what takes memory once parsed.

/// An element.
pub fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    match length {
        0..0x80 => [&[tag, length as u8], content].concat(),
        0x80..0x1_0000 => [&[tag, 0x82, (length >> 8) as u8, length as u8], content].concat(),
        _ => [&[tag, 0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8], content].concat(),
    }
}

/// The smallest certificate that OpenSSL parses.
pub fn tiny() -> Vec<u8> {
    certificate(&der(0x30, b""), b"")
}

fn algorithm() -> Vec<u8> {
    der(0x30, &der(0x06, &[42]))
}

fn time() -> Vec<u8> {
    der(0x17, b"260101000000Z")
}

fn certificate(subject: &[u8], extensions: &[u8]) -> Vec<u8> {
    let bits = der(0x03, &[0]);
    let version = if extensions.is_empty() { Vec::new() } else { der(0xa0, &der(0x02, &[2])) };
    let validity = [time(), der(0x17, b"490101000000Z")].concat();
    let key = der(0x30, &[algorithm(), bits.clone()].concat());
    let fields = [
        version,
        der(0x02, &[1]),
        algorithm(),
        der(0x30, b""),
        der(0x30, &validity),
        subject.to_vec(),
        key,
        if extensions.is_empty() { Vec::new() } else { der(0xa3, &der(0x30, extensions)) },
    ];
    der(0x30, &[der(0x30, &fields.concat()), algorithm(), bits].concat())
}

fn extension(identifier: &[u8], content: &[u8]) -> Vec<u8> {
    der(0x30, &[der(0x06, identifier), der(0x04, content)].concat())
}

/// basicConstraints of a CA.
fn authority() -> Vec<u8> {
    extension(&[0x55, 0x1d, 0x13], &der(0x30, &der(0x01, &[0xff])))
}

/// One with so many SANs of no content.
pub fn names(count: usize) -> Vec<u8> {
    let names = extension(&[0x55, 0x1d, 0x11], &der(0x30, &der(0x86, b"").repeat(count)));
    certificate(&der(0x30, b""), &[authority(), names].concat())
}

/// One with so many parts of its subject's name.
pub fn parts(count: usize) -> Vec<u8> {
    let part = der(0x31, &der(0x30, &[der(0x06, &[42]), der(0x0c, b"")].concat()));
    certificate(&der(0x30, &part.repeat(count)), &authority())
}

/// One with so many purposes.
pub fn purposes(count: usize) -> Vec<u8> {
    let purposes = extension(&[0x55, 0x1d, 0x25], &der(0x30, &der(0x06, &[42]).repeat(count)));
    certificate(&der(0x30, b""), &[authority(), purposes].concat())
}

/// One with so many extensions.
pub fn extensions(count: usize) -> Vec<u8> {
    let many: Vec<u8> =
        (0..count).flat_map(|number| extension(&[42, (number >> 7) as u8 & 1, number as u8 & 0x7f], b"")).collect();
    certificate(&der(0x30, b""), &[authority(), many].concat())
}

/// A revocation list with so many entries, of as few bytes as they can have.
pub fn revocations(count: usize) -> Vec<u8> {
    let entry = |number: usize| {
        let serial = der(0x02, &(number as u32 | 1 << 24).to_be_bytes());
        der(0x30, &[serial, time()].concat())
    };
    let entries: Vec<u8> = (0..count).flat_map(entry).collect();
    let issuer = der(0x30, &der(0x31, &der(0x30, &[der(0x06, &[0x55, 4, 3]), der(0x0c, b"CA")].concat())));
    let next = der(0x17, b"490101000000Z");
    let fields = [algorithm(), issuer, time(), next, der(0x30, &entries)].concat();
    der(0x30, &[der(0x30, &fields), algorithm(), der(0x03, &[0])].concat())
}

/// As text.
pub fn pem(kind: &str, der: &[u8]) -> String {
    let base64 = openssl::base64::encode_block(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}
