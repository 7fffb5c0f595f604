//! Who the workload is and how it proves it: SPIFFE IDs, service-account tokens, keys, X.509-SVIDs, trust bundles.

mod bundle;
mod key;
mod pem;
mod spiffe;
mod svid;
mod token;

pub use bundle::TrustBundle;
pub use key::{CertificateRequest, KeyAlgorithm, KeyEncoding, KeySpec};
pub use pem::{PemError, certificates};
pub use spiffe::{NameError, SpiffeId, TrustDomain};
pub use svid::{SvidError, X509Svid, unix_seconds};
pub use token::{BearerToken, ServiceAccount, TokenDigest, TokenError};
