//! What is odd about leaves alone.

use super::{
    EXTENDED_KEY_USAGE, FEATURE, KEY_USAGE, NAMES, Odd, Parts, SEQUENCE, UTF8, element, extension, list, name, purpose,
};

/// Of this leaf.
pub(crate) fn all(good: &Parts) -> Vec<Odd> {
    let usages: [&[u8]; 6] =
        [&[3, 2, 7, 0x80], &[3, 2, 5, 0x20], &[3, 2, 5, 0xa0], &[3, 2, 0, 0], &[3, 1, 0], &[3, 2, 7, 0xff]];
    let purposes = [vec![1], vec![2], vec![1, 2], vec![3], Vec::new()];
    let names: [(&str, Vec<u8>); 7] = [
        ("a DNS name", element(0x82, b"example.org")),
        ("an IP address of three bytes", element(0x87, &[1, 2, 3])),
        ("a URI of no text", element(0x86, b"")),
        ("a URI with a NUL", element(0x86, b"spiffe://a\0b")),
        ("an e-mail address", element(0x81, b"a@example.org")),
        ("a registered name", element(0x88, &[0x2a, 3])),
        ("no names", Vec::new()),
    ];
    let bare = Parts { extensions: Vec::new(), ..good.clone() };
    let of = |extensions: &[Vec<u8>]| Parts { extensions: list(&extensions.concat()), ..good.clone() };
    let san = |names: &[u8]| extension(NAMES, false, &element(SEQUENCE, names));
    let uri = san(&element(0x86, b"spiffe://cluster.local/ns/foo/sa/odd"));
    let mut odd = vec![("no extensions at all".to_owned(), bare.clone())];
    odd.push(("no name of any kind".to_owned(), Parts { subject: element(SEQUENCE, b""), ..bare.clone() }));
    odd.push(("a common name alone".to_owned(), Parts { subject: name(UTF8, b"odd"), ..bare }));
    for usage in usages {
        odd.push((format!("key usage {usage:02x?}"), of(&[extension(KEY_USAGE, true, usage), uri.clone()])));
        let one = Parts { subject: name(UTF8, b"odd"), ..of(&[extension(KEY_USAGE, false, usage)]) };
        odd.push((format!("key usage {usage:02x?} alone"), one));
    }
    for numbers in purposes {
        let list: Vec<_> = numbers.iter().flat_map(|number| purpose(*number)).collect();
        let extended = extension(EXTENDED_KEY_USAGE, false, &element(SEQUENCE, &list));
        let told: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        odd.push((format!("extended key usage of {}", told.join(" and ")), of(&[extended, uri.clone()])));
    }
    for (what, names) in names {
        odd.push((format!("{what} in place of the URI"), of(&[san(&names)])));
        odd.push((format!("{what} beside the URI"), good.with_name(&names)));
    }
    for value in [&[0x30, 3, 2, 1, 5][..], &[0x30, 3, 2, 1, 6], &[0x30, 0], &[0x30, 6, 2, 1, 5, 2, 1, 17]] {
        for critical in [false, true] {
            odd.push((
                format!("TLS feature {value:02x?}, {critical}"),
                good.with(&[extension(FEATURE, critical, value)]),
            ));
        }
    }
    odd
}
