//! Contents of certificates: what every encoder writes, and what some have written.

pub(crate) mod leaves;

use super::{element, long};

pub(crate) const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const UTC: u8 = 0x17;
const GENERALIZED: u8 = 0x18;

const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const POLICIES: &[u8] = &[0x55, 0x1d, 0x20];
/// TLS feature (RFC 7633), which says "must staple".
const FEATURE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 0x18];
/// Of nobody.
const UNKNOWN: &[u8] = &[0x2a, 0x03, 0x04];

/// The fields of a certificate, each in DER.
#[derive(Clone)]
pub(crate) struct Parts {
    version: Vec<u8>,
    serial: Vec<u8>,
    algorithm: Vec<u8>,
    issuer: Vec<u8>,
    validity: Vec<u8>,
    subject: Vec<u8>,
    key: Vec<u8>,
    identifiers: Vec<u8>,
    extensions: Vec<u8>,
}

impl Parts {
    /// A root with this public key (a SubjectPublicKeyInfo).
    pub(crate) fn root(key: &[u8]) -> Self {
        let name = name(UTF8, b"odd root");
        let extensions = [
            extension(BASIC_CONSTRAINTS, true, &element(SEQUENCE, &[1, 1, 0xff])),
            extension(KEY_USAGE, true, &[3, 2, 1, 6]),
        ];
        Self {
            version: version(2),
            serial: element(2, &[1]),
            algorithm: ECDSA_SHA256.to_vec(),
            issuer: name.clone(),
            validity: validity((UTC, b"250101000000Z"), (UTC, b"490101000000Z")),
            subject: name,
            key: key.to_vec(),
            identifiers: Vec::new(),
            extensions: list(&extensions.concat()),
        }
    }

    /// A CA below it, for these purposes (1 is a server's, 2 a client's).
    pub(crate) fn subordinate(&self, key: &[u8], purposes: &[u8]) -> Self {
        let list: Vec<_> = purposes.iter().flat_map(|number| purpose(*number)).collect();
        let extended = extension(EXTENDED_KEY_USAGE, false, &element(SEQUENCE, &list));
        let name = name(UTF8, b"odd intermediate");
        Self { subject: name, issuer: self.subject.clone(), key: key.to_vec(), ..self.with(&[extended]) }
    }

    /// Whose it is, in DER.
    pub(crate) fn subject(&self) -> &[u8] {
        &self.subject
    }

    /// Another root, with a number in its name and so many bytes more.
    pub(crate) fn numbered(&self, number: usize, more: usize) -> Self {
        let name = name(UTF8, format!("root {number} of a large bundle").as_bytes());
        let padded = self.with(&[extension(UNKNOWN, false, &element(4, &vec![0xa5; more]))]);
        Self { issuer: name.clone(), subject: name, ..padded }
    }

    /// A workload's certificate, of an issuer with this name (in DER).
    pub(crate) fn leaf(key: &[u8], issuer: &[u8], id: &str) -> Self {
        let extensions = [
            extension(KEY_USAGE, true, &[3, 2, 7, 0x80]),
            extension(EXTENDED_KEY_USAGE, false, &element(SEQUENCE, &[purpose(1), purpose(2)].concat())),
            extension(NAMES, true, &element(SEQUENCE, &element(0x86, id.as_bytes()))),
        ];
        Self {
            issuer: issuer.to_vec(),
            validity: validity((UTC, b"250101000000Z"), (UTC, b"490101000000Z")),
            subject: element(SEQUENCE, b""),
            extensions: list(&extensions.concat()),
            ..Self::root(key)
        }
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        let Self { version, serial, algorithm, issuer, validity, subject, key, identifiers, extensions } = self;
        let fields = [version, serial, algorithm, issuer, validity, subject, key, identifiers, extensions];
        element(SEQUENCE, &fields.map(Vec::as_slice).concat())
    }

    /// With this one beside its own URI.
    fn with_name(&self, name: &[u8]) -> Self {
        let names = [element(0x86, b"spiffe://cluster.local/ns/foo/sa/odd"), name.to_vec()].concat();
        Self { extensions: list(&extension(NAMES, true, &element(SEQUENCE, &names))), ..self.clone() }
    }

    fn with(&self, more: &[Vec<u8>]) -> Self {
        // The list lies in a sequence in an explicit tag, both with lengths of one or two bytes.
        let all = super::Node::parse(&self.extensions).inner().contents();
        Self { extensions: list(&[all, more.concat()].concat()), ..self.clone() }
    }
}

fn version(number: u8) -> Vec<u8> {
    element(0xa0, &element(2, &[number]))
}

fn list(extensions: &[u8]) -> Vec<u8> {
    element(0xa3, &element(SEQUENCE, extensions))
}

fn extension(identifier: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { vec![1, 1, 0xff] } else { Vec::new() };
    element(SEQUENCE, &[element(6, identifier), critical, element(4, value)].concat())
}

/// serverAuth is 1 and clientAuth is 2.
fn purpose(number: u8) -> Vec<u8> {
    element(6, &[0x2b, 6, 1, 5, 5, 7, 3, number])
}

fn name(tag: u8, text: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &part(&entry(&[0x55, 4, 3], tag, text)))
}

fn part(entries: &[u8]) -> Vec<u8> {
    element(SET, entries)
}

fn entry(kind: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[element(6, kind), element(tag, text)].concat())
}

fn validity(from: (u8, &[u8]), to: (u8, &[u8])) -> Vec<u8> {
    element(SEQUENCE, &[element(from.0, from.1), element(to.0, to.1)].concat())
}

/// What is odd about it, and the certificate's content.
pub(crate) type Odd = (String, Parts);

/// Of this certificate, everything that is not about a root or a leaf alone.
pub(crate) fn all(good: &Parts) -> Vec<Odd> {
    [versions(good), serials(good), times(good), names(good), keys(good), extensions(good)].concat()
}

fn versions(good: &Parts) -> Vec<Odd> {
    let mut odd = Vec::new();
    for number in [0, 1, 2, 3, 4, 0x7f, 0x80, 0xff] {
        odd.push((format!("version {number}"), Parts { version: version(number), ..good.clone() }));
        let bare = Parts { version: version(number), extensions: Vec::new(), ..good.clone() };
        odd.push((format!("version {number}, no extensions"), bare));
    }
    let none = Parts { version: Vec::new(), ..good.clone() };
    odd.push(("version 1 with extensions".to_owned(), none.clone()));
    odd.push(("version 1".to_owned(), Parts { extensions: Vec::new(), ..none.clone() }));
    for (what, tag) in [("issuer's", 0x81), ("subject's", 0x82)] {
        let identifiers = element(tag, &[0, 0xaa]);
        let with = |parts: &Parts| Parts { identifiers: identifiers.clone(), ..parts.clone() };
        odd.push((format!("{what} unique identifier"), with(good)));
        odd.push((format!("{what} unique identifier in version 1"), with(&none)));
        let second = Parts { version: version(1), extensions: Vec::new(), ..with(good) };
        odd.push((format!("{what} unique identifier in version 2"), second));
        let bits = Parts { identifiers: element(tag, &[3, 0xaf]), ..good.clone() };
        odd.push((format!("{what} unique identifier with set unused bits"), bits));
    }
    let padded = Parts { version: element(0xa0, &element(2, &[0, 2])), ..good.clone() };
    odd.push(("version of two bytes".to_owned(), padded));
    odd
}

fn serials(good: &Parts) -> Vec<Odd> {
    let serials: [&[u8]; 13] = [
        &[],
        &[0],
        &[0x7f],
        &[0x80],
        &[0xff],
        &[0, 1],
        &[0, 0x80],
        &[0xff, 0x7f],
        &[0xff, 0x80],
        &[0x80, 0],
        &[0x7f; 20],
        &[0x7f; 21],
        &[0x7f; 64],
    ];
    let odd = serials
        .map(|serial| (format!("serial number {serial:02x?}"), Parts { serial: element(2, serial), ..good.clone() }));
    let enumerated = Parts { serial: element(0x0a, &[1]), ..good.clone() };
    odd.into_iter().chain([("serial number that is an enumeration".to_owned(), enumerated)]).collect()
}

fn times(good: &Parts) -> Vec<Odd> {
    let ends: [(u8, &[u8]); 22] = [
        (UTC, b"491231235959Z"),
        (UTC, b"4912312359Z"),
        (UTC, b"490101000000+0000"),
        (UTC, b"490101000000-0130"),
        (UTC, b"490101000000+2400"),
        (UTC, b"490101000060Z"),
        (UTC, b"490101240000Z"),
        (UTC, b"490229000000Z"),
        (UTC, b"480229000000Z"),
        (UTC, b"490001000000Z"),
        (UTC, b"491301000000Z"),
        (UTC, b"490101000000z"),
        (UTC, b"490101000000"),
        (UTC, b"490101000000.5Z"),
        (UTC, b"20490101000000Z"),
        (UTC, b""),
        (GENERALIZED, b"20490101000000Z"),
        (GENERALIZED, b"99991231235959Z"),
        (GENERALIZED, b"20490101000000.5Z"),
        (GENERALIZED, b"20490101000000+0000"),
        (GENERALIZED, b"204901010000Z"),
        (PRINTABLE, b"490101000000Z"),
    ];
    let mut odd = Vec::new();
    for (tag, text) in ends {
        let told = String::from_utf8_lossy(text);
        let parts = Parts { validity: validity((UTC, b"250101000000Z"), (tag, text)), ..good.clone() };
        odd.push((format!("ends at {told} (type {tag})"), parts));
        // The same form, in the past.
        let early = String::from_utf8_lossy(text).replacen("49", "24", 1).replacen("9999", "2024", 1).into_bytes();
        let parts = Parts { validity: validity((tag, &early), (UTC, b"490101000000Z")), ..good.clone() };
        odd.push((format!("begins at {} (type {tag})", String::from_utf8_lossy(&early)), parts));
    }
    odd
}

fn names(good: &Parts) -> Vec<Odd> {
    let texts: [(&str, u8, &[u8]); 24] = [
        ("UTF-8 cut off", UTF8, &[0xc3]),
        ("UTF-8 overlong", UTF8, &[0xc0, 0x80]),
        ("Latin-1 as UTF-8", UTF8, b"M\xfcller"),
        ("a surrogate in UTF-8", UTF8, &[0xed, 0xa0, 0x80]),
        ("a noncharacter", UTF8, &[0xef, 0xbf, 0xbe]),
        ("another noncharacter", UTF8, &[0xef, 0xb7, 0x90]),
        ("beyond Unicode", UTF8, &[0xf5, 0x80, 0x80, 0x80]),
        ("a NUL", UTF8, b"a\0b"),
        ("no text", UTF8, b""),
        ("Latin-1 as T61", 0x14, b"M\xfcller"),
        ("an @ as printable", PRINTABLE, b"a@b"),
        ("Latin-1 as printable", PRINTABLE, b"M\xfcller"),
        ("letters as numeric", 0x12, b"abc"),
        ("Latin-1 as IA5", 0x16, b"M\xfcller"),
        ("BMP", 0x1e, &[0, 65, 0, 66]),
        ("BMP of odd length", 0x1e, &[0, 65, 0]),
        ("a surrogate in BMP", 0x1e, &[0xd8, 0]),
        ("a noncharacter in BMP", 0x1e, &[0xff, 0xfe]),
        ("universal", 0x1c, &[0, 0, 0, 65]),
        ("universal cut off", 0x1c, &[0, 0, 0]),
        ("universal beyond Unicode", 0x1c, &[0, 0x11, 0, 0]),
        ("visible", 0x1a, b"abc"),
        ("general", 0x1b, b"abc"),
        ("bits", 0x03, &[0, 65]),
    ];
    let mut odd = Vec::new();
    for (what, tag, text) in texts {
        let name = name(tag, text);
        odd.push((format!("subject with {what}"), Parts { subject: name.clone(), ..good.clone() }));
        odd.push((format!("issuer with {what}"), Parts { issuer: name, ..good.clone() }));
    }
    let good_entry = entry(&[0x55, 4, 3], UTF8, b"odd");
    let other = entry(&[0x55, 4, 10], UTF8, b"a");
    let shapes: [(&str, Vec<u8>); 8] = [
        ("no parts", Vec::new()),
        ("an empty part", part(b"")),
        ("two entries in a part", part(&[other.clone(), good_entry.clone()].concat())),
        ("two entries in a part in the wrong order", part(&[good_entry.clone(), other].concat())),
        ("a part that is a sequence", element(SEQUENCE, &good_entry)),
        ("an entry of three", part(&element(SEQUENCE, &[element(6, &[0x55, 4, 3]), vec![5, 0, 5, 0]].concat()))),
        ("an entry without text", part(&element(SEQUENCE, &element(6, &[0x55, 4, 3])))),
        ("a kind that nobody knows", part(&entry(UNKNOWN, UTF8, b"a"))),
    ];
    for (what, parts) in shapes {
        odd.push((format!("subject with {what}"), Parts { subject: element(SEQUENCE, &parts), ..good.clone() }));
    }
    odd
}

fn keys(good: &Parts) -> Vec<Odd> {
    let algorithm =
        |identifier: &[u8], more: &[u8]| element(SEQUENCE, &[element(6, identifier), more.to_vec()].concat());
    let key = |algorithm: Vec<u8>, bits: &[u8]| element(SEQUENCE, &[algorithm, element(3, bits)].concat());
    let elliptic: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let rsa: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    let keys: [(&str, Vec<u8>); 9] = [
        ("of no known kind", key(algorithm(UNKNOWN, b""), &[0, 1, 2, 3])),
        ("of no known curve", key(algorithm(elliptic, &element(6, UNKNOWN)), &[0, 4, 1, 1])),
        (
            "of secp256k1",
            key(algorithm(elliptic, &element(6, &[0x2b, 0x81, 4, 0, 0x0a])), &[&[0, 4][..], &[7; 64]].concat()),
        ),
        (
            "that is not on its curve",
            key(
                algorithm(elliptic, &element(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7])),
                &[&[0, 4][..], &[7; 64]].concat(),
            ),
        ),
        ("of RSA that is no sequence", key(algorithm(rsa, &[5, 0]), &[0, 1, 2, 3])),
        ("without any bits", key(algorithm(elliptic, b""), &[0])),
        ("with unused bits", key(algorithm(UNKNOWN, b""), &[3, 0xa8])),
        ("with set unused bits", key(algorithm(UNKNOWN, b""), &[3, 0xaf])),
        ("with a parameter that is a bad boolean", key(algorithm(UNKNOWN, &[1, 1, 1]), &[0, 1])),
    ];
    let mut odd: Vec<_> = keys.map(|(what, key)| (format!("a key {what}"), Parts { key, ..good.clone() })).into();
    let algorithms: [(&str, Vec<u8>); 6] = [
        ("of RSA", algorithm(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b], &[5, 0])),
        ("of no known kind", algorithm(UNKNOWN, b"")),
        ("with NULL", algorithm(&ECDSA_SHA256[4..], &[5, 0])),
        ("with a NULL that is not empty", algorithm(UNKNOWN, &[5, 1, 0])),
        ("with an object that ends too early", algorithm(&[0x2a, 0x86], b"")),
        ("with an object with leading zeros", algorithm(&[0x2a, 0x80, 1], b"")),
    ];
    odd.extend(
        algorithms.map(|(what, algorithm)| (format!("an algorithm {what}"), Parts { algorithm, ..good.clone() })),
    );
    odd
}

fn extensions(good: &Parts) -> Vec<Odd> {
    let raw = |critical: &[u8]| element(SEQUENCE, &[element(6, UNKNOWN), critical.to_vec(), element(4, b"x")].concat());
    let usage = |bits: &[u8]| extension(UNKNOWN, false, &element(3, bits));
    let more: [(&str, Vec<u8>); 20] = [
        ("unknown", extension(UNKNOWN, false, b"x")),
        ("unknown and critical", extension(UNKNOWN, true, b"x")),
        ("unknown and empty", extension(UNKNOWN, false, b"")),
        ("twice", extension(UNKNOWN, false, b"x").repeat(2)),
        ("of basic constraints twice", extension(BASIC_CONSTRAINTS, true, &element(SEQUENCE, b"")).repeat(2)),
        ("that says FALSE", raw(&[1, 1, 0])),
        ("with a boolean of 1", raw(&[1, 1, 1])),
        ("with a boolean of two bytes", raw(&[1, 2, 0xff, 0xff])),
        ("with a boolean of none", raw(&[1, 0])),
        ("with an integer in place of the boolean", raw(&[2, 1, 1])),
        ("without value", element(SEQUENCE, &element(6, UNKNOWN))),
        ("with a value that is a sequence", element(SEQUENCE, &[element(6, UNKNOWN), element(SEQUENCE, b"")].concat())),
        ("with an object that is empty", element(SEQUENCE, &[element(6, b""), element(4, b"x")].concat())),
        ("with a value of too long a length", element(SEQUENCE, &[element(6, UNKNOWN), long(4, b"x", 1)].concat())),
        ("of bits", usage(&[0, 0x80])),
        ("of must-staple", extension(FEATURE, false, &[0x30, 3, 2, 1, 5])),
        ("of name constraints that are odd", extension(CONSTRAINTS, true, &element(SEQUENCE, &element(0xa0, b"x")))),
        ("of policies that are empty", extension(POLICIES, false, &element(SEQUENCE, b""))),
        ("of 9,000 bytes", extension(UNKNOWN, false, &[b'x'; 9000])),
        ("that is no sequence", element(SET, &[element(6, UNKNOWN), element(4, b"x")].concat())),
    ];
    let mut odd: Vec<_> = more.map(|(what, more)| (format!("an extension {what}"), good.with(&[more]))).into();
    odd.push(("an empty list of extensions".to_owned(), Parts { extensions: list(b""), ..good.clone() }));
    let bare = Parts { extensions: element(0xa3, b""), ..good.clone() };
    odd.push(("no list of extensions in its tag".to_owned(), bare));
    odd
}
