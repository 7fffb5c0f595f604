//! What a nameserver sends, and what stands in `/etc/hosts` and `/etc/resolv.conf`.

use super::{
    files::{ResolverConfig, hosts},
    message::{Kind, MOST_ADDRESSES, Name, answer, query},
};

/// The first byte says what the rest is: a message as it came, records of an answer to our question, or a file.
pub fn names(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let kind = if first & 1 == 0 { Kind::A } else { Kind::Aaaa };
    let Some(name) = Name::new("ca.test") else { panic!("a good name is refused") };
    match first >> 1 & 3 {
        0 => {
            let id = rest.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
            check(rest, id, &name, kind);
        }
        1 => {
            let Some((count, records)) = rest.split_first() else { return };
            let mut message = query(7, &name, kind, false);
            (message[2], message[7]) = (0x81, *count);
            message.extend_from_slice(records);
            assert!(check(&message, 7, &name, kind), "an answer to our question is not taken");
            assert!(!check(&message, 8, &name, kind), "an answer with another id is taken");
        }
        2 => {
            let text = String::from_utf8_lossy(rest);
            assert!(hosts(&text, "ca.test").len() <= MOST_ADDRESSES);
            for line in text.lines() {
                assert!(hosts(line, "ca.test").len() <= 1, "more than one address in a line");
            }
        }
        _ => {
            let config = ResolverConfig::parse(&String::from_utf8_lossy(rest));
            assert!((1..=3).contains(&config.servers.len()));
            assert!((1..=5).contains(&config.attempts) && (1..=30).contains(&config.timeout.as_secs()));
            let candidates = config.candidates("ca");
            assert_eq!(candidates.iter().filter(|name| *name == "ca").count(), 1, "not once as it is");
            assert!(candidates.len() <= 33);
            assert_eq!(config.candidates("ca."), ["ca"]);
        }
    }
}

fn check(message: &[u8], id: u16, name: &Name, kind: Kind) -> bool {
    let Some(answer) = answer(message, id, name, kind) else { return false };
    assert!(answer.addresses.len() <= MOST_ADDRESSES && answer.code < 16);
    assert!(answer.addresses.iter().all(|address| address.is_ipv4() == (kind == Kind::A)));
    true
}
