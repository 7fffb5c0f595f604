use super::{reader::Reader, variables};
use crate::identity::{SpiffeId, TrustDomain};

/// Who the workload is.
#[derive(Debug)]
pub struct IdentityConfig {
    /// The trust domain of every identity that is asked for, unless a file tells another one.
    pub trust_domain: TrustDomain,
    /// The workload's own SPIFFE ID; `None` when each request brings the token that tells it, or nobody asks for a
    /// certificate and it is not told.
    pub spiffe_id: Option<SpiffeId>,
}

pub(super) fn read(reader: &mut Reader<'_>, from_request: bool, ca: bool) -> IdentityConfig {
    let trust_domain = reader.parsed(&variables::TRUST_DOMAIN).unwrap_or_default();
    let mut part = |variable| {
        let value = reader.parse_with(variable, |text| SpiffeId::check_segment(text).map(|()| text.to_owned()));
        if value.is_none() && !from_request && ca && !reader.is_set(variable) {
            reader.mistake(variable, "it is required: set it from the pod's own fields (downward API)");
        }
        value
    };
    let (namespace, service_account) = (part(&variables::POD_NAMESPACE), part(&variables::SERVICE_ACCOUNT));
    let spiffe_id = namespace
        .zip(service_account)
        .filter(|_| !from_request)
        .and_then(|(namespace, account)| SpiffeId::for_service_account(&trust_domain, &namespace, &account).ok());
    IdentityConfig { trust_domain, spiffe_id }
}
