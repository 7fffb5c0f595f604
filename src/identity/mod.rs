//! Who the workload is and how it proves it: SPIFFE IDs, service-account tokens, keys, X.509-SVIDs, trust bundles.

mod anchors;
mod bundle;
mod bundle_map;
mod credential;
mod crl;
mod der;
mod facts;
mod key;
mod leaf;
mod peer;
mod peers;
mod pem;
mod private_key;
mod reader;
mod recent;
mod sides;
mod spiffe;
mod strict;
mod svid;
mod token;
mod validity;

pub use anchors::Answer;
pub use bundle::{BadAnchor, BadAnchors, TrustAnchor, TrustBundle, may_have_issued};
pub use bundle_map::{BundleMap, write as write_bundle_map};
pub use credential::{Credential, CredentialError, Flaw};
pub use crl::{CrlSigner, CrlState, CrlTrouble, RevocationList};
pub use facts::{CertificateFacts, Certificates};
pub use key::{CertificateRequest, KeyAlgorithm, KeyEncoding, KeySpec, key_work};
pub use peer::{revoked, spiffe_id_of};
pub use peers::{PeerTrust, Revocation, same_domains};
pub use pem::{PemError, certificates};
pub use private_key::{KeyError, KeyText};
pub use spiffe::{NameError, SpiffeId, SpiffePattern, TrustDomain};
pub use svid::{Issued, SvidError, X509Svid};
pub use token::{BearerToken, ServiceAccount, TokenDigest, TokenError};
pub use validity::unix_seconds;
