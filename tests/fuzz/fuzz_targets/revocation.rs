//! Files with revocation lists: whatever they hold, what is read of them is what OpenSSL reads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use openssl::x509::X509Crl;
use sds_shim::identity::{RevocationList, unix_seconds};

fuzz_target!(|data: &[u8]| {
    let Ok(lists) = RevocationList::all(data) else { return };
    for list in &lists {
        let mut pem = Vec::new();
        list.pem(&mut pem);
        assert_eq!(pem.len(), list.pem_len());
        let again = RevocationList::all(&pem).expect("it reads what it wrote");
        assert_eq!(again.iter().map(|list| *list.digest()).collect::<Vec<_>>(), [*list.digest()]);
        let Ok(other) = X509Crl::from_pem(&pem) else { continue };
        assert_eq!(unix_seconds(other.last_update()).ok(), Some(list.this_update()));
        assert_eq!(other.get_revoked().map_or(0, |entries| entries.len()), list.entries());
    }
});
