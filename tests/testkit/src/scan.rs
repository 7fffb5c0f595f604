//! Looks for private keys and certificates in files, by content.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use openssl::{pkey::PKey, x509::X509};

/// The shortest private key in DER that is worth the name: an Ed25519 one in PKCS#8.
const SHORTEST_KEY: usize = 46;

/// A private key or certificate in a file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What it holds, in words.
    pub what: &'static str,
}

/// What a search went through and met.
#[derive(Debug, Default)]
pub struct Scan {
    /// Regular files read, links to files among them.
    pub files: usize,
    /// Keys and certificates.
    pub findings: Vec<Finding>,
}

/// Reads every file below `directory`, wherever and whatever it is called.
pub fn scan(directory: &Path) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
                continue;
            }
            // Follows links, as a program does that looks for its certificate; one that leads nowhere holds nothing.
            // Sockets and pipes hold nothing either.
            if fs::metadata(entry.path()).is_ok_and(|target| target.is_file()) {
                scan.files += 1;
                let content = fs::read(entry.path())?;
                scan.findings.extend(inspect(&content).map(|what| Finding { path: entry.path(), what }));
            }
        }
    }
    scan.findings.sort();
    Ok(scan)
}

/// The worst thing that the bytes contain, at any offset.
pub fn inspect(content: &[u8]) -> Option<&'static str> {
    let labels: Vec<&[u8]> = pem_labels(content).collect();
    if labels.iter().any(|label| label.ends_with(b"PRIVATE KEY")) {
        return Some("private key (PEM)");
    }
    let structures = || (0..content.len()).filter_map(|offset| sequence(&content[offset..]));
    if structures().any(|der| der.len() >= SHORTEST_KEY && PKey::private_key_from_der(der).is_ok()) {
        return Some("private key (DER)");
    }
    if labels.iter().any(|label| label.ends_with(b"CERTIFICATE")) {
        return Some("certificate (PEM)");
    }
    structures().any(|der| X509::from_der(der).is_ok()).then_some("certificate (DER)")
}

fn pem_labels(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let starts = content.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN);
    starts.filter_map(|(start, _)| {
        let label = &content[start + BEGIN.len()..];
        let end = label.windows(5).take(64).position(|window| window == b"-----")?;
        Some(&label[..end])
    })
}

/// The DER SEQUENCE that begins here: keys and certificates are one that begins with an INTEGER or a SEQUENCE.
fn sequence(bytes: &[u8]) -> Option<&[u8]> {
    let (header, length) = match *bytes {
        [0x30, length @ 0..=0x7f, 0x02, ..] => (2, usize::from(length)),
        [0x30, 0x81, length, 0x02 | 0x30, ..] => (3, usize::from(length)),
        [0x30, 0x82, high, low, 0x02 | 0x30, ..] => (4, usize::from(high) << 8 | usize::from(low)),
        _ => return None,
    };
    bytes.get(..header + length)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use development_ca::{Issued, Leaf, Pki};
    use openssl::{ec::EcKey, rsa::Rsa};

    use super::*;

    fn issued() -> Issued {
        Pki::new("test").issue(&Leaf::workload("spiffe://cluster.local/ns/foo/sa/sleep", Duration::from_secs(60)))
    }

    fn buried(content: &[u8]) -> Vec<u8> {
        [&b"log line 0 of 10\n\x30\x82\x30"[..], content, b"\nmore"].concat()
    }

    #[test]
    fn finds_keys_in_every_form() {
        let key = PKey::private_key_from_pem(issued().key_pem.as_bytes()).unwrap();
        let pkcs8 = key.private_key_to_pkcs8().unwrap();
        let sec1 = EcKey::private_key_from_der(&key.private_key_to_der().unwrap()).unwrap();
        let rsa = Rsa::generate(2048).unwrap();
        for der in [pkcs8, sec1.private_key_to_der().unwrap(), rsa.private_key_to_der().unwrap()] {
            assert_eq!(inspect(&buried(&der)), Some("private key (DER)"));
        }
        let ed25519 = PKey::generate_ed25519().unwrap().private_key_to_pkcs8().unwrap();
        assert_eq!(inspect(&buried(&ed25519)), Some("private key (DER)"));
        for pem in [key.private_key_to_pem_pkcs8().unwrap(), sec1.private_key_to_pem().unwrap()] {
            assert_eq!(inspect(&buried(&pem)), Some("private key (PEM)"));
        }
    }

    #[test]
    fn finds_certificates_and_tells_them_from_the_rest() {
        let chain = issued().chain_pem;
        let leaf = X509::from_pem(chain.as_bytes()).unwrap();
        assert_eq!(inspect(&buried(chain.as_bytes())), Some("certificate (PEM)"));
        assert_eq!(inspect(&buried(&leaf.to_der().unwrap())), Some("certificate (DER)"));
        assert_eq!(inspect(&buried(&leaf.public_key().unwrap().public_key_to_der().unwrap())), None);
        assert_eq!(inspect(b"-----BEGIN CERTIFICATE REQUEST-----\n-----BEGIN "), None);
    }
}
