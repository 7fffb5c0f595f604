use tracing::warn;

use crate::{
    identity::{certificates, spiffe_id_of},
    sds::{encode_length, ending_in_key},
    store::{Encoded, Svid},
};

/// Field numbers of `X509SVID`.
const SPIFFE_ID: u32 = 1;
const CHAIN: u32 = 2;
const KEY: u32 = 3;

/// Up to so many bytes a certificate with its key is one piece, since each is a frame of its own.
const ONE_PIECE: usize = 2 * 1024;

/// Writes a chain and its key, both in PEM, as the fields of an `X509SVID` but for its trust bundle: in DER, the key as
/// PKCS#8, however it was written before. It is done once for each certificate; all streams share it.
///
/// # Errors
/// Why there is none, in words that go on after "it".
pub fn encode(chain: &[u8], key: &[u8]) -> Result<Svid, String> {
    let text = str::from_utf8(chain).map_err(|error| error.to_string())?;
    let parsed = certificates(text).map_err(|error| format!("its chain cannot be read: {error}"))?;
    let leaf = parsed.first().ok_or("it has no certificate")?;
    let id = spiffe_id_of(leaf)?;
    if !locked::has_basic_constraints(leaf) {
        warn!(
            "the certificate has no basicConstraints, without which py-spiffe and the Rust crate spiffe take none from the \
             Workload API: have the CA issue it with CA:FALSE (X.509-SVID, section 4.1)"
        );
    }
    let mut der = Vec::new();
    for certificate in &parsed {
        der.extend(certificate.to_der().map_err(|error| error.to_string())?);
    }
    drop(parsed);
    let key = locked::pkcs8(key).map_err(|error| format!("its key cannot be written as PKCS#8: {error}"))?;
    Ok(Svid { encoded: fields(id.as_str(), &der, &key), id })
}

/// The fields, of which the end lies in secret memory.
fn fields(id: &str, chain: &[u8], key: &[u8]) -> Encoded {
    let mut public = Vec::with_capacity(id.len() + chain.len() + 16);
    encode_length(SPIFFE_ID, id.len(), &mut public);
    public.extend_from_slice(id.as_bytes());
    encode_length(CHAIN, chain.len(), &mut public);
    public.extend_from_slice(chain);
    let mut head = Vec::new();
    encode_length(KEY, key.len(), &mut head);
    ending_in_key(&public, 0..0, &head, key, public.len() + key.len() <= ONE_PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use sds_shim_proto::spiffe::X509svid;

    /// Less than 256 bytes are copied by HTTP/2, which does not know of secret memory.
    const LEAST_SECRET: usize = 1024;

    #[test]
    fn fields_are_what_prost_would_read_and_their_end_is_secret() {
        for (chain_len, key_len) in [(700, 138), (3000, 138), (20_000, 2374), (1, 1)] {
            let (chain, key) = (vec![b'c'; chain_len], vec![b'k'; key_len]);
            let encoded = fields("spiffe://domain/path", &chain, &key);
            let bytes: Vec<Vec<u8>> =
                encoded.pieces().map(|mut piece| piece.take().unwrap_or_default().to_vec()).collect();
            let read = X509svid::decode(bytes.concat().as_slice()).unwrap();
            assert_eq!(read.spiffe_id, "spiffe://domain/path");
            assert!(read.x509_svid == chain && read.x509_svid_key == key && encoded.key() == key);
            let secret = bytes.last().unwrap();
            assert!(secret.ends_with(&key) && secret.len() >= LEAST_SECRET.min(bytes.concat().len()));
        }
    }

    #[test]
    fn unservable_certificates_are_reported() {
        let pki = testkit::development_ca::Pki::new("svid");
        let issued = pki.issue(&testkit::development_ca::Leaf::workload("spiffe://a/b", testkit::PATIENCE));
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        assert_eq!(encode(chain, key).unwrap_or_else(|why| panic!("{why}")).id.as_str(), "spiffe://a/b");
        let told = |chain: &[u8], key: &[u8]| encode(chain, key).err().unwrap();
        assert_eq!(told(pki.root_pem().as_bytes(), key), "its certificate carries no SPIFFE ID");
        assert!(told(b"", key).starts_with("its chain cannot be read"));
        assert!(told(chain, b"").starts_with("its key cannot be written"));
    }
}
