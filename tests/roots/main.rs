//! What peers are verified with: trust anchors, revocation lists, trust domains.

mod bundle_map;
mod bundles;
mod crl;
mod crl_kinds;
mod crl_unusable;
mod odd;
mod odd_certificates;
mod on_change;
mod root_rotation;
mod sources;
mod trust_domain_change;
mod trust_domain_mesh;
mod trust_domain_refused;
mod trust_domains;
