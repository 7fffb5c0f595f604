//! `SDS_SHIM_SOURCE=spiffe`: the identity comes from a SPIFFE Workload API, as SPIRE's agent serves one.

mod answers;
mod life;
mod scene;
mod spire;
mod trust;
