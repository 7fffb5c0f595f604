use std::path::PathBuf;

use super::{env::Env, reader::Reader, variables};

/// Where the reason of a fatal end is written for Kubernetes.
pub fn termination_log(env: &dyn Env) -> PathBuf {
    let variable = &variables::SDS_SHIM_TERMINATION_LOG;
    // A mistake in it must be told somewhere.
    Reader::new(env).text(variable).as_deref().or(variable.value).unwrap_or_default().into()
}
