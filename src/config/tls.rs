use super::{reader::Reader, variables};

/// Which TLS is spoken with the CA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaTls {
    /// Whether TLS 1.2 is refused.
    pub only_1_3: bool,
    /// The groups for the key exchange in the order of preference, as OpenSSL lists them; `None` for its own.
    pub groups: Option<String>,
}

/// A group for the key exchange: its name, another one, the number that OpenSSL has for it, and whether that came with
/// OpenSSL 3.5.
struct Group {
    name: &'static str,
    other: &'static str,
    number: i64,
    is_new: bool,
}

/// What OpenSSL adds to the number of a group that it knows by a provider alone (`TLSEXT_nid_unknown`).
const BY_PROVIDER: i64 = 0x0100_0000;

const GROUPS: &[Group] = &[
    Group { name: "X25519MLKEM768", other: "", number: BY_PROVIDER + 0x11ec, is_new: true },
    Group { name: "SecP256r1MLKEM768", other: "", number: BY_PROVIDER + 0x11eb, is_new: true },
    Group { name: "SecP384r1MLKEM1024", other: "", number: BY_PROVIDER + 0x11ed, is_new: true },
    Group { name: "X25519", other: "", number: 1034, is_new: false },
    Group { name: "X448", other: "", number: 1035, is_new: false },
    Group { name: "P-256", other: "secp256r1", number: 415, is_new: false },
    Group { name: "P-384", other: "secp384r1", number: 715, is_new: false },
    Group { name: "P-521", other: "secp521r1", number: 716, is_new: false },
];

const UNKNOWN: &str = "is unknown; known are X25519MLKEM768, SecP256r1MLKEM768, SecP384r1MLKEM1024, X25519, X448, P-256, \
                       P-384 and P-521";

/// What OpenSSL 3.5 has for its number.
const NEW: i64 = 0x3050_0000;

/// The name of the group that has this number with OpenSSL, as `SDS_SHIM_CA_TLS_GROUPS` takes it.
pub fn group_name(number: i64) -> &'static str {
    match GROUPS.iter().find(|group| group.number == number) {
        Some(group) => group.name,
        // The key of the server's certificate encrypts the secret, as TLS 1.2 allows with RSA.
        None if number == 0 => "none",
        None => "other",
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> CaTls {
    let only_1_3 = reader.choice(&variables::SDS_SHIM_CA_TLS_MIN, [false, true]);
    let number = openssl::version::number();
    let groups = reader.parse_with(&variables::SDS_SHIM_CA_TLS_GROUPS, |text| groups(text, number));
    CaTls { only_1_3, groups }
}

/// The list as OpenSSL with this number takes it.
fn groups(text: &str, openssl: i64) -> Result<String, String> {
    let mut found = String::new();
    for (at, one) in text.split([',', ':']).enumerate() {
        match GROUPS.iter().find(|group| group.is(one.trim())) {
            Some(group) if !group.is_new || openssl >= NEW => {
                // OpenSSL takes none twice.
                if !found.split(':').any(|name| name == group.name) {
                    found.push_str(if found.is_empty() { "" } else { ":" });
                    found.push_str(group.name);
                }
            }
            other => {
                let wrong = other.map_or(UNKNOWN, |_| "requires OpenSSL 3.5");
                return Err(format!("group {} of the list {wrong}", at + 1));
            }
        }
    }
    Ok(found)
}

impl Group {
    /// Whether it is called so, in any case, with or without dashes.
    fn is(&self, text: &str) -> bool {
        [self.name, self.other].iter().any(|name| plain(name).eq(plain(text)) && !text.is_empty())
    }
}

fn plain(name: &str) -> impl Iterator<Item = u8> + '_ {
    name.bytes().filter(|byte| !b"-_".contains(byte)).map(|byte| byte.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use openssl::ssl::{SslContext, SslMethod};

    use super::*;

    #[test]
    fn groups_are_known_by_their_usual_names() {
        for (text, expected) in [
            ("X25519MLKEM768", "X25519MLKEM768"),
            ("x25519_mlkem768, x25519 ,P-256", "X25519MLKEM768:X25519:P-256"),
            ("secp256r1:P256:p-384:secp521r1", "P-256:P-384:P-521"),
            ("SecP384r1MLKEM1024,X448", "SecP384r1MLKEM1024:X448"),
        ] {
            assert_eq!(groups(text, NEW).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn an_unknown_group_is_reported_with_the_known_ones() {
        for (text, at) in [("P-256,P-255", 2), ("", 1), ("X25519,,P-256", 2), ("secret", 1), ("?X25519", 1)] {
            let error = groups(text, NEW).unwrap_err();
            assert!(
                error.starts_with(&format!("group {at} of the list is unknown; known are X25519MLKEM768, ")),
                "{error}"
            );
            assert!(error.ends_with(" P-521") && !error.contains("secret"), "{error}");
        }
        let error = groups("X25519,X25519MLKEM768", NEW - 1).unwrap_err();
        assert_eq!(error, "group 2 of the list requires OpenSSL 3.5");
    }

    #[test]
    fn openssl_has_every_group() {
        for group in GROUPS {
            let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
            assert!(context.set_groups_list(group.name).is_ok(), "{}", group.name);
            assert_eq!(group_name(group.number), group.name);
            assert!(UNKNOWN.contains(group.name));
        }
        assert_eq!((group_name(0), group_name(1)), ("none", "other"));
    }
}
