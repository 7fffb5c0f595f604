use std::collections::HashMap;

use openssl::{
    base64::{decode_block, encode_block},
    pkey::{PKey, Private},
};

use crate::{Failure, OrFail};

/// Eight bytes of a key stand nowhere by chance.
const WINDOW: usize = 8;

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
    /// The private numbers of the key `pem`, in both byte orders, which every DER form and every word of a number in
    /// memory holds as it is; and as base64 in each of its three alignments, and where they stand in this PEM with its
    /// newlines.
    pub fn add(&mut self, key: usize, pem: &str) -> crate::Result {
        let private = PKey::private_key_from_pem(pem.as_bytes()).or_fail("parse the key")?;
        let lines: Vec<_> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = decode_block(&lines.concat()).or_fail("decode the key")?;
        for number in numbers(&private)? {
            self.insert(key, &number);
            self.insert(key, &number.iter().rev().copied().collect::<Vec<_>>());
            for alignment in 0..3 {
                let text = encode_block(&[&vec![0; alignment][..], &number].concat());
                let (from, to) = digits(alignment, number.len());
                self.insert(key, &text.as_bytes()[from..to]);
            }
            let at = der.windows(number.len()).position(|window| window == number);
            let at = at.ok_or_else(|| Failure::new("the PEM form does not hold a private number"))?;
            let (from, to) = digits(at, number.len());
            let newlines = |digit: usize| digit / 64;
            self.insert(key, &lines.join("\n").as_bytes()[from + newlines(from)..to + newlines(to)]);
        }
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

/// The base64 digits that a number of so many bytes at this offset decides alone.
fn digits(offset: usize, len: usize) -> (usize, usize) {
    ((offset * 8).div_ceil(6), (offset + len) * 8 / 6)
}

/// What nobody else may know of a key: an EC key's scalar, as long as its curve has it; of an RSA key the private exponent,
/// the primes, and what follows from them.
fn numbers(key: &PKey<Private>) -> Result<Vec<Vec<u8>>, Failure> {
    if let Ok(ec) = key.ec_key() {
        let len = (key.bits() as i32 + 7) / 8;
        return Ok(vec![ec.private_key().to_vec_padded(len).or_fail("read the private number")?]);
    }
    let rsa = key.rsa().or_fail("use another key than an EC or RSA one")?;
    let numbers = [Some(rsa.d()), rsa.p(), rsa.q(), rsa.dmp1(), rsa.dmq1(), rsa.iqmp()];
    Ok(numbers.into_iter().flatten().map(|number| number.to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use openssl::{
        ec::{EcGroup, EcKey},
        nid::Nid,
        rsa::Rsa,
    };

    use super::*;

    #[test]
    fn finds_a_key_in_every_form_and_no_other_key() {
        for curve in [Nid::X9_62_PRIME256V1, Nid::SECP384R1] {
            let group = EcGroup::from_curve_name(curve).unwrap();
            let [one, other] = [(); 2].map(|()| PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap());
            finds_one(&one, &other);
        }
        let [one, other] = [(); 2].map(|()| PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap());
        finds_one(&one, &other);
    }

    fn finds_one(one: &PKey<Private>, other: &PKey<Private>) {
        let mut needles = Needles::default();
        needles.add(7, &String::from_utf8(one.private_key_to_pem_pkcs8().unwrap()).unwrap()).unwrap();
        let found = |bytes: &[u8]| {
            let mut found = HashMap::new();
            needles.count(bytes, &mut found);
            found
        };
        let traditional = match one.ec_key() {
            Ok(key) => [key.private_key_to_der().unwrap(), key.private_key_to_pem().unwrap()],
            Err(_) => {
                let key = one.rsa().unwrap();
                [key.private_key_to_der().unwrap(), key.private_key_to_pem().unwrap()]
            }
        };
        let backwards: Vec<_> = numbers(one).unwrap()[0].iter().rev().copied().collect();
        let [der, pem] = traditional;
        for bytes in [one.private_key_to_pkcs8().unwrap(), one.private_key_to_pem_pkcs8().unwrap(), der, pem, backwards]
        {
            assert!(found(&bytes).get(&7).is_some_and(|windows| *windows >= 20), "{:?}", found(&bytes));
        }
        assert!(found(&one.public_key_to_der().unwrap()).is_empty());
        assert!(found(&other.private_key_to_pem_pkcs8().unwrap()).is_empty());
    }
}
