use std::collections::HashMap;

use openssl::{base64::encode_block, pkey::PKey};

use crate::{Failure, OrFail};

/// Eight bytes of a key stand nowhere by chance.
const WINDOW: usize = 8;
/// Bytes of a P-256 scalar.
const SCALAR: usize = 32;

/// Bits of a window's place among the marks.
const MARK_BITS: u32 = 20;

/// What to look for: windows of each key, and which key they are of.
pub struct Needles {
    keys: HashMap<u64, usize>,
    /// Where a window may be one of them: hashing each byte of megabytes in full is slow.
    marks: Vec<bool>,
}

impl Default for Needles {
    fn default() -> Self {
        Self { keys: HashMap::new(), marks: vec![false; 1 << MARK_BITS] }
    }
}

impl Needles {
    /// The private number of the P-256 key `pem`, in both byte orders, which every DER form holds as it is; and as
    /// base64 in each of its three alignments, and where it stands in this PEM with its newline.
    pub fn add(&mut self, key: usize, pem: &str) -> Result<(), Failure> {
        let private = PKey::private_key_from_pem(pem.as_bytes()).or_fail("parse the key")?;
        let scalar = private.ec_key().or_fail("use another key than an EC one")?;
        let scalar = scalar.private_key().to_vec_padded(SCALAR as i32).or_fail("read the private number")?;
        self.insert(key, &scalar);
        self.insert(key, &scalar.iter().rev().copied().collect::<Vec<_>>());
        for alignment in 0..3 {
            let text = encode_block(&[&vec![0; alignment][..], &scalar].concat());
            let (from, to) = digits(alignment);
            self.insert(key, &text.as_bytes()[from..to]);
        }
        let der = private.private_key_to_pkcs8().or_fail("encode the key")?;
        let at = der.windows(SCALAR).position(|window| window == scalar);
        let (from, to) = digits(at.ok_or_else(|| Failure::new("the PKCS#8 form does not hold the private number"))?);
        let lines: Vec<_> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let newlines = |digit: usize| digit / 64;
        self.insert(key, &lines.join("\n").as_bytes()[from + newlines(from)..to + newlines(to)]);
        Ok(())
    }

    fn insert(&mut self, key: usize, bytes: &[u8]) {
        for window in bytes.windows(WINDOW).map(number) {
            self.keys.insert(window, key);
            self.marks[mark(window)] = true;
        }
    }

    /// Adds to `found` how many windows of each key stand in these bytes.
    pub fn count(&self, bytes: &[u8], found: &mut HashMap<usize, usize>) {
        for window in bytes.windows(WINDOW).map(number) {
            if self.marks[mark(window)]
                && let Some(key) = self.keys.get(&window)
            {
                *found.entry(*key).or_default() += 1;
            }
        }
    }
}

fn number(window: &[u8]) -> u64 {
    u64::from_ne_bytes(window.try_into().expect("of that size"))
}

/// Spread by multiplication with the golden ratio, as Knuth has it.
fn mark(window: u64) -> usize {
    (window.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - MARK_BITS)) as usize
}

/// The base64 digits that a number at this offset decides alone.
fn digits(offset: usize) -> (usize, usize) {
    ((offset * 8).div_ceil(6), (offset + SCALAR) * 8 / 6)
}

#[cfg(test)]
mod tests {
    use openssl::{
        ec::{EcGroup, EcKey},
        nid::Nid,
    };

    use super::*;

    #[test]
    fn finds_a_key_in_every_form_and_no_other_key() {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let [one, other] = [(); 2].map(|()| PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap());
        let mut needles = Needles::default();
        needles.add(7, &String::from_utf8(one.private_key_to_pem_pkcs8().unwrap()).unwrap()).unwrap();
        let found = |bytes: &[u8]| {
            let mut found = HashMap::new();
            needles.count(bytes, &mut found);
            found
        };
        let sec1 = |key: &PKey<_>| key.ec_key().unwrap();
        let backwards: Vec<_> = sec1(&one).private_key().to_vec().into_iter().rev().collect();
        for bytes in [
            one.private_key_to_pkcs8().unwrap(),
            one.private_key_to_pem_pkcs8().unwrap(),
            sec1(&one).private_key_to_der().unwrap(),
            sec1(&one).private_key_to_pem().unwrap(),
            backwards,
        ] {
            assert!(found(&bytes).get(&7).is_some_and(|windows| *windows >= 20), "{:?}", found(&bytes));
        }
        assert!(found(&one.public_key_to_der().unwrap()).is_empty());
        assert!(found(&other.private_key_to_pem_pkcs8().unwrap()).is_empty());
    }
}
