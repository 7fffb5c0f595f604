use std::path::{Path, PathBuf};

/// Where operating systems keep their trust anchors, in the order in which Istio's agent looks for them.
const FILES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file with the operating system's trust anchors: the first that is there, else the most usual one.
pub fn system_roots() -> PathBuf {
    let found = FILES.iter().find(|file| Path::new(file).exists());
    PathBuf::from(found.unwrap_or(&FILES[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_roots_are_one_file() {
        assert!(FILES.iter().any(|known| Path::new(known) == system_roots()));
    }
}
