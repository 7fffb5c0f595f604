use std::thread;

use locked::Structure;
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, PKeyRef, Private},
    stack::Stack,
    x509::{X509ReqBuilder, extension::SubjectAlternativeName},
};
use tokio::sync::oneshot;

use super::spiffe::SpiffeId;

/// Bytes of the stack of a thread that makes a key; the work itself is done on the one in secret memory.
const MAKERS_STACK: usize = 64 * 1024;

/// Algorithm and size of a workload's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// RSA.
    Rsa {
        /// Size of the modulus.
        bits: u32,
    },
}

/// How the private key is written for Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEncoding {
    /// PKCS#8 (RFC 5958), for every algorithm.
    Pkcs8,
    /// SEC 1 (RFC 5915) for ECDSA, PKCS#1 (RFC 8017) for RSA.
    Traditional,
}

/// What keys are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// Algorithm and size.
    pub algorithm: KeyAlgorithm,
    /// Form in which Envoy gets it.
    pub encoding: KeyEncoding,
}

impl KeySpec {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory or randomness.
    pub fn generate(&self) -> Result<PKey<Private>, ErrorStack> {
        match self.algorithm {
            KeyAlgorithm::P256 => locked::generate_ec_key(Nid::X9_62_PRIME256V1),
            KeyAlgorithm::P384 => locked::generate_ec_key(Nid::SECP384R1),
            KeyAlgorithm::Rsa { bits } => locked::generate_rsa_key(bits),
        }
    }

    /// The same without stopping everybody else: an RSA key of 4,096 bits takes seconds, so it is made by a thread that
    /// ends with it. Where a limit allows no thread, it is made here after all.
    async fn generate_aside(&self) -> Result<PKey<Private>, ErrorStack> {
        if !matches!(self.algorithm, KeyAlgorithm::Rsa { .. }) {
            return self.generate();
        }
        let _turn = key_work().lock().await;
        let (tell, made) = oneshot::channel();
        let spec = *self;
        let make = move || drop(tell.send(spec.generate()));
        match thread::Builder::new().stack_size(MAKERS_STACK).spawn(make) {
            Ok(_) => made.await.unwrap_or_else(|_| self.generate()),
            Err(_) => self.generate(),
        }
    }

    /// The key as PEM, for the one place that serves it.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn to_pem(&self, key: &PKeyRef<Private>) -> Result<Vec<u8>, ErrorStack> {
        let structure = match self.encoding {
            KeyEncoding::Pkcs8 => Structure::Pkcs8,
            KeyEncoding::Traditional => Structure::Traditional,
        };
        locked::write_private_key(key, structure)
    }
}

/// Work with RSA keys, one at a time: secret memory has room to make one, or to sign with one.
pub fn key_work() -> &'static tokio::sync::Mutex<()> {
    static WORK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    &WORK
}

/// A fresh key and the CSR (PKCS#10, RFC 2986) for it.
///
/// One is made for each certificate and kept over the retries of one renewal, so that a CA can recognise a repetition.
pub struct CertificateRequest {
    key: PKey<Private>,
    csr_pem: String,
}

impl CertificateRequest {
    /// Makes the key and a CSR that carries the SPIFFE ID as its only SAN and an empty subject: istio-csr refuses
    /// a CSR that asks for anything more.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory or randomness.
    pub async fn make(spec: &KeySpec, id: &SpiffeId) -> Result<Self, ErrorStack> {
        Self::with_key(spec.generate_aside().await?, spec, id)
    }

    fn with_key(key: PKey<Private>, spec: &KeySpec, id: &SpiffeId) -> Result<Self, ErrorStack> {
        let mut builder = X509ReqBuilder::new()?;
        builder.set_version(0)?;
        let public = locked::public_half(&key)?;
        builder.set_pubkey(&public)?;
        let mut extensions = Stack::new()?;
        // Critical, because the subject is empty (RFC 5280, section 4.2.1.6).
        let san = SubjectAlternativeName::new().critical().uri(id.as_str()).build(&builder.x509v3_context(None))?;
        extensions.push(san)?;
        builder.add_extensions(&extensions)?;
        let digest = match spec.algorithm {
            KeyAlgorithm::P384 => MessageDigest::sha384(),
            KeyAlgorithm::P256 | KeyAlgorithm::Rsa { .. } => MessageDigest::sha256(),
        };
        builder.sign(&key, digest)?;
        let csr_pem = String::from_utf8_lossy(&builder.build().to_pem()?).into_owned();
        // After its first signature an RSA key keeps some 10 KiB more.
        let key = if matches!(spec.algorithm, KeyAlgorithm::Rsa { .. }) { locked::as_if_new(key)? } else { key };
        Ok(Self { key, csr_pem })
    }

    /// The CSR as the CA gets it.
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// The key that the CSR is signed with.
    pub fn key(&self) -> &PKey<Private> {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::x509::X509Req;

    fn id() -> SpiffeId {
        SpiffeId::for_service_account(&"cluster.local".parse().unwrap(), "foo", "sleep").unwrap()
    }

    #[tokio::test]
    async fn the_csr_asks_for_the_spiffe_id_and_nothing_else() {
        for algorithm in [KeyAlgorithm::P256, KeyAlgorithm::P384, KeyAlgorithm::Rsa { bits: 2048 }] {
            let spec = KeySpec { algorithm, encoding: KeyEncoding::Pkcs8 };
            let request = CertificateRequest::make(&spec, &id()).await.unwrap();
            let csr = X509Req::from_pem(request.csr_pem().as_bytes()).unwrap();
            assert!(csr.verify(request.key()).unwrap());
            assert!(csr.public_key().unwrap().public_eq(request.key()));
            assert_eq!(csr.subject_name().entries().count(), 0);
            assert_eq!(csr.extensions().unwrap().len(), 1);
        }
    }

    #[test]
    fn keys_are_written_in_the_asked_encoding() {
        for (algorithm, encoding, label) in [
            (KeyAlgorithm::P256, KeyEncoding::Pkcs8, "-----BEGIN PRIVATE KEY-----"),
            (KeyAlgorithm::P384, KeyEncoding::Traditional, "-----BEGIN EC PRIVATE KEY-----"),
            (KeyAlgorithm::Rsa { bits: 2048 }, KeyEncoding::Pkcs8, "-----BEGIN PRIVATE KEY-----"),
            (KeyAlgorithm::Rsa { bits: 2048 }, KeyEncoding::Traditional, "-----BEGIN RSA PRIVATE KEY-----"),
        ] {
            let spec = KeySpec { algorithm, encoding };
            let pem = spec.to_pem(&spec.generate().unwrap()).unwrap();
            assert!(pem.starts_with(label.as_bytes()), "{algorithm:?} {encoding:?}");
        }
    }

    #[tokio::test]
    async fn each_request_has_a_key_of_its_own() {
        let spec = KeySpec { algorithm: KeyAlgorithm::P256, encoding: KeyEncoding::Pkcs8 };
        let [a, b] = [
            CertificateRequest::make(&spec, &id()).await.unwrap(),
            CertificateRequest::make(&spec, &id()).await.unwrap(),
        ];
        assert!(!a.key().public_eq(b.key()));
    }
}
