use std::{
    fmt,
    io::{self, Read},
    path::Path,
};

use openssl::pkey::{PKey, Private};

use crate::{
    bounded::{self, Opened},
    budget,
};

/// Bytes of a private key's PEM block: one of RSA with 8,192 bits has 6,400.
const MAX_KEY: usize = 8 * 1024;
/// Bytes that are read at a time: they may be a key's, so they lie where keys do.
const CHUNK: usize = 1024;
/// Bytes of the words between the dashes of a marker.
const MAX_LABEL: usize = 40;

/// The PEM text of a private key. It lies in secret memory, cannot be printed, and is wiped when it is dropped.
#[derive(Default)]
pub struct KeyText(Vec<u8>);

/// Why a text is no private key that we can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no block of that kind.
    #[error("it holds no PEM private key")]
    Missing,
    /// Nobody is there to be asked for a passphrase, and the rounds of its derivation are whatever the file says.
    #[error("its private key is encrypted; remove the passphrase (openssl pkey -in FILE)")]
    Encrypted,
    /// It was copied out of JSON or YAML.
    #[error("the line breaks of its private key are written as \\n; write real ones (printf '%b')")]
    Escaped,
    /// It has more bytes than a key has.
    #[error("its private key has more than {MAX_KEY} bytes")]
    TooLarge,
    /// Something stands in the block, and it is no key that is known.
    #[error("its private key cannot be parsed")]
    Malformed,
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyText({} bytes)", self.0.len())
    }
}

impl KeyText {
    /// Reads PEM, and keeps what belongs to private keys apart from all else, of which at most `limit` bytes are
    /// returned. Of several keys only the first counts.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] when there is more of all else, and what `from` says.
    pub fn split(mut from: impl Read, expected: usize, limit: usize) -> io::Result<(Vec<u8>, Self)> {
        let mut public = Vec::with_capacity(expected.min(limit));
        let mut splitter = Splitter::default();
        let mut chunk = locked::secretly(|| vec![0; CHUNK]);
        loop {
            let read = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if public.len() + splitter.key.len() + read > limit {
                return Err(bounded::too_large(limit));
            }
            // Grown out here, so that it stays in memory that is not secret.
            public.reserve(read + MAX_LABEL + BEGIN.len());
            locked::secretly(|| chunk[..read].iter().for_each(|byte| splitter.step(*byte, &mut public)));
        }
        splitter.end(&mut public);
        Ok((public, Self(splitter.key)))
    }

    /// Opens and reads a file that may hold a key, of at most `limit` bytes.
    ///
    /// # Errors
    /// As for [`bounded::open`], [`Opened::if_room`] and [`KeyText::read`].
    pub fn open(path: &Path, limit: usize) -> io::Result<(String, Self)> {
        // The text is in memory as it is, and again as what is made from it.
        Self::read(bounded::open(path, limit)?.if_room(|size| budget::has_room_for_file(size, 2))?)
    }

    /// Reads a file that may hold a key, and the text beside it.
    ///
    /// # Errors
    /// As for [`KeyText::split`], [`io::ErrorKind::InvalidData`] when what is no key is not UTF-8, and what the kernel
    /// says.
    pub fn read(opened: Opened) -> io::Result<(String, Self)> {
        let most = opened.most();
        let (public, key) = Self::split(opened.into_reader(), most, most)?;
        Ok((bounded::text(public)?, key))
    }

    /// The key.
    ///
    /// # Errors
    /// Why there is none that can be used.
    pub fn parse(&self) -> Result<PKey<Private>, KeyError> {
        let text = &self.0;
        let has = |what: &[u8]| text.windows(what.len()).any(|window| window == what);
        match text {
            _ if text.is_empty() => Err(KeyError::Missing),
            _ if text.len() > MAX_KEY => Err(KeyError::TooLarge),
            _ if has(b"ENCRYPTED") => Err(KeyError::Encrypted),
            _ if has(b"KEY-----\\n") => Err(KeyError::Escaped),
            _ => locked::read_private_key(text).map_err(|_| KeyError::Malformed),
        }
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// Tells private keys from all else, byte by byte.
#[derive(Default)]
struct Splitter {
    state: State,
    /// How much of the marker that is looked for was seen.
    seen: usize,
    /// The words between the dashes of a marker, and the dashes behind them.
    label: Vec<u8>,
    key: Vec<u8>,
    /// Whether a line of a key has just begun.
    begins: bool,
    /// Whether a key was seen to its end: what comes later does not count.
    whole: bool,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// Outside of a private key.
    #[default]
    Public,
    /// In the words of a marker that begins something.
    Label,
    /// In a private key.
    Key,
    /// In the words of the marker that ends it.
    Last,
}

impl Splitter {
    fn step(&mut self, byte: u8, public: &mut Vec<u8>) {
        match self.state {
            State::Public => {
                let (given, dashes) = self.seek(BEGIN, byte, State::Label);
                public.extend_from_slice(&BEGIN[..given]);
                if !dashes {
                    public.push(byte);
                }
            }
            State::Label => {
                self.label.push(byte);
                if self.label.ends_with(b"PRIVATE KEY-----") {
                    BEGIN.iter().for_each(|byte| self.keep(*byte));
                    std::mem::take(&mut self.label).into_iter().for_each(|byte| self.keep(byte));
                    self.state = State::Key;
                } else if self.label.ends_with(DASHES) || self.label.len() > MAX_LABEL {
                    public.extend_from_slice(BEGIN);
                    public.append(&mut self.label);
                    self.state = State::Public;
                }
            }
            // What stands in YAML is often indented, which OpenSSL does not take.
            State::Key if matches!(byte, b' ' | b'\t') && self.begins => {}
            State::Key => {
                self.keep(byte);
                self.begins = byte == b'\n';
                self.seek(END, byte, State::Last);
            }
            State::Last => {
                self.keep(byte);
                self.label.push(byte);
                if self.label.ends_with(DASHES) || self.label.len() > MAX_LABEL {
                    self.keep(b'\n');
                    self.label.clear();
                    self.whole = true;
                    self.state = State::Public;
                }
            }
        }
    }

    /// Follows a marker that begins with five dashes. Answers how many of its bytes were no part of one after all, and
    /// whether this one may be.
    fn seek(&mut self, marker: &[u8], byte: u8, then: State) -> (usize, bool) {
        if byte == marker[self.seen] {
            self.seen += 1;
            if self.seen == marker.len() {
                (self.seen, self.state) = (0, then);
            }
            return (0, true);
        }
        match (byte, self.seen) {
            // One dash more.
            (b'-', seen) if seen == DASHES.len() => (1, true),
            (b'-', seen) => {
                self.seen = 1;
                (seen, true)
            }
            (_, seen) => {
                self.seen = 0;
                (seen, false)
            }
        }
    }

    fn keep(&mut self, byte: u8) {
        // One more than a key may have shows that it is too large.
        if !self.whole && self.key.len() <= MAX_KEY {
            self.key.push(byte);
        }
    }

    /// What stands at the end and began like a marker.
    fn end(&mut self, public: &mut Vec<u8>) {
        match self.state {
            State::Public => public.extend_from_slice(&BEGIN[..self.seen]),
            State::Label => {
                public.extend_from_slice(BEGIN);
                public.append(&mut self.label);
            }
            State::Key | State::Last => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str) -> (String, KeyText) {
        let (public, key) = KeyText::split(text.as_bytes(), text.len(), 1 << 20).unwrap();
        (String::from_utf8(public).unwrap(), key)
    }

    fn key() -> String {
        let key = locked::generate_ec_key(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
        String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap()
    }

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_key_is_extracted_wherever_it_is_in_the_file() {
        let key = key();
        for (before, after) in [("", ""), (CERTIFICATE, ""), ("", CERTIFICATE), (CERTIFICATE, CERTIFICATE)] {
            let (public, found) = split(&format!("{before}{key}{after}"));
            assert_eq!(public.replace("\n\n", "\n").trim(), format!("{before}{after}").trim());
            assert_eq!(found.parse().map(|key| key.bits()), Ok(256));
        }
        // Glued together, with words and dashes around.
        let glued = format!("--- ------text--{}{}----", CERTIFICATE.trim(), key.trim());
        let (public, found) = split(&glued);
        assert_eq!(public, format!("--- ------text--{}----", CERTIFICATE.trim()));
        assert!(found.parse().is_ok());
    }

    #[test]
    fn the_first_of_several_keys_is_used_and_none_leaks() {
        let (one, other) = (key(), key());
        let (public, found) = split(&format!("{one}{other}{CERTIFICATE}{other}"));
        assert_eq!(public.trim(), CERTIFICATE.trim());
        let first = PKey::private_key_from_pem(one.as_bytes()).unwrap();
        assert!(found.parse().unwrap().public_eq(&first));
    }

    #[test]
    fn unusable_keys_are_reported() {
        let told = |text: &str| split(text).1.parse().map(|_| ()).unwrap_err();
        assert_eq!(told(CERTIFICATE), KeyError::Missing);
        assert_eq!(told("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"), KeyError::Malformed);
        assert_eq!(told("-----BEGIN PRIVATE KEY-----\nAAAA"), KeyError::Malformed);
        for (label, headers) in [("ENCRYPTED PRIVATE KEY", ""), ("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\n")] {
            let text = format!("-----BEGIN {label}-----\n{headers}AAAA\n-----END {label}-----\n");
            assert_eq!(told(&text), KeyError::Encrypted);
        }
        let large = format!("-----BEGIN PRIVATE KEY-----\n{}", "A".repeat(9000));
        assert_eq!(told(&large), KeyError::TooLarge);
        assert!(KeyText::split(&[b'A'; 100][..], 0, 99).is_err());
    }

    proptest! {
        #[test]
        fn without_a_key_all_is_public(text in "[-BEGINPRVATKY a\n]{0,80}") {
            prop_assume!(!text.contains("PRIVATE KEY-----"));
            prop_assert_eq!(split(&text).0, text);
        }
    }
}
