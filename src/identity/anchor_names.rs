use std::collections::BTreeSet;

use super::{TrustAnchor, TrustBundle};

/// Bytes of names that a request for a certificate has room for: its list of authorities counts them in two bytes, and
/// in TLS 1.3 shares that with the other extensions (RFC 8446, section 4.3.2; RFC 5246, section 7.4.4).
const MOST: usize = 65_000;
/// How each name's length is written.
const LENGTH: usize = 2;

/// Why an anchor is left out whose name has no room.
pub const TOO_MANY_NAMES: &str = "Envoy lists the names of all anchors whenever it asks a client for its certificate, and TLS has room for 64 KiB \
     of them; with more, each of these handshakes would fail. Remove anchors that no peer needs";

/// The names of anchors, each once, as Envoy lists them for its clients.
#[derive(Default)]
pub struct AnchorNames<'a> {
    seen: BTreeSet<&'a [u8]>,
    bytes: usize,
}

impl<'a> AnchorNames<'a> {
    /// Takes one more, if there is room for it.
    pub fn take(&mut self, anchor: &'a TrustAnchor) -> bool {
        let name = anchor.name();
        if self.seen.contains(name) {
            return true;
        }
        let bytes = self.bytes + LENGTH + name.len();
        if bytes > MOST {
            return false;
        }
        self.bytes = bytes;
        self.seen.insert(name)
    }

    /// Those of a bundle that there is room for, and how many there is none for.
    pub fn take_all(&mut self, bundle: &'a TrustBundle) -> (TrustBundle, usize) {
        let kept: Vec<_> = bundle.anchors().iter().filter(|anchor| self.take(anchor)).cloned().collect();
        let left_out = bundle.anchors().len() - kept.len();
        (TrustBundle::new(kept), left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use testkit::{anchors::with_long_names, development_ca::Pki};

    fn anchors(text: &[String]) -> TrustBundle {
        TrustBundle::from_pem(&text.concat(), clock::now()).unwrap().0
    }

    #[test]
    fn as_many_are_taken_as_tls_has_room_for() {
        let many = anchors(&with_long_names(300).unwrap());
        let (mut names, each) = (AnchorNames::default(), LENGTH + many.anchors()[0].name().len());
        assert!(many.anchors()[0].name().ends_with(format!("{:064}", 0).as_bytes()));
        let taken = many.anchors().iter().filter(|anchor| names.take(anchor)).count();
        assert_eq!(taken, MOST / each);
        assert!(names.take(&many.anchors()[0]), "it is there already");
        let short = anchors(&[Pki::new("a").root_pem()]);
        assert!(names.take(&short.anchors()[0]), "there is still room for a shorter one");
    }

    #[test]
    fn a_name_that_several_have_counts_once() {
        let same: Vec<_> = (0..3).flat_map(|_| with_long_names(200).unwrap()).collect();
        let same = anchors(&same);
        let mut names = AnchorNames::default();
        assert!(same.anchors().len() == 600 && same.anchors().iter().all(|anchor| names.take(anchor)));
    }
}
