use std::{
    path::{self, Path, PathBuf},
    time::Duration,
};

use super::{CaRoots, SourceConfig, reader::Reader, variables};
use crate::identity::TrustDomain;

/// Trust anchors beside those of the CA's answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RootsConfig {
    /// PEM files. They are watched.
    pub files: Vec<PathBuf>,
    /// The file with revocation lists.
    pub crl: Option<PathBuf>,
    /// Whether it must be there.
    pub crl_required: bool,
    /// Whether no list is served once one of them cannot be used.
    pub crl_fail_open: bool,
    /// Whether only leaves are looked for in the lists.
    pub crl_leaf_only: bool,
    /// Our own trust domain, unless the file tells another one.
    pub trust_domain: TrustDomain,
    /// Whether it may become another one.
    pub moves: bool,
    /// The file that tells our own trust domain. It is watched.
    pub trust_domain_file: Option<PathBuf>,
    /// Other trust domains, each with the PEM file of its anchors.
    pub domains: Vec<(TrustDomain, PathBuf)>,
    /// The file with a SPIFFE bundle map of other trust domains. It is watched.
    pub bundle_map: Option<PathBuf>,
    /// PEM texts.
    pub inline: Vec<String>,
    /// How long an anchor that all its sources have dropped is still served; `None` until the last leaf seen under
    /// it would have expired.
    pub grace: Option<Duration>,
}

impl RootsConfig {
    /// Whether trust domains are told apart.
    pub fn tells_apart(&self) -> bool {
        !self.domains.is_empty() || self.bundle_map.is_some()
    }
}

/// What peers are verified with beside what the CA answers.
pub(super) fn read(
    reader: &mut Reader<'_>,
    trust_domain: &TrustDomain,
    source: &SourceConfig,
    ca_roots: &CaRoots,
    inline: Vec<String>,
) -> RootsConfig {
    let extra = reader.text(&variables::SDS_SHIM_EXTRA_ROOTS).unwrap_or_default();
    let extra = extra.split(',').map(str::trim).filter(|file| !file.is_empty()).map(PathBuf::from);
    let trust_domain_file = reader.text(&variables::SDS_SHIM_TRUST_DOMAIN_FILE).map(PathBuf::from);
    if trust_domain_file.is_some() && source.spiffe.is_some() {
        reader.mistake(
            &variables::SDS_SHIM_TRUST_DOMAIN_FILE,
            "unset it: with SDS_SHIM_SOURCE=spiffe the trust domain is that of the identity",
        );
    }
    // Who may move to another trust domain names where peers are before and after.
    let is_fixed = trust_domain_file.is_none() && source.spiffe.is_none();
    let fixed = Some(trust_domain).filter(|_| is_fixed);
    let domains = reader.parse_with(&variables::SDS_SHIM_BUNDLES, |text| match text.trim().strip_prefix('@') {
        Some("") => Err("expected a file after @, as in @/bundles/spiffe-bundle-map.json"),
        Some(map) => Ok((Vec::new(), Some(PathBuf::from(map)))),
        None => bundles(text, fixed).map(|domains| (domains, None)),
    });
    let (domains, bundle_map) = domains.unwrap_or_default();
    let mounted = source.files.as_ref().map(|files| files.roots.clone());
    let output = reader.text(&variables::OUTPUT_CERTS).and_then(|directory| path::absolute(directory).ok());
    // What we have written there comes from the other sources: taken for one, it would keep alive what they drop.
    let is_ours = |file: &PathBuf| {
        output.is_some() && path::absolute(file).ok().as_deref().and_then(Path::parent) == output.as_deref()
    };
    let own = match ca_roots {
        CaRoots::File(file) if source.ca => Some(file.clone()).filter(|file| !is_ours(file)),
        // Who may vouch for the CA's server may not all vouch for workloads.
        _ => None,
    };
    RootsConfig {
        files: mounted.into_iter().chain(own).chain(extra).collect(),
        crl_required: reader.is_set(&variables::SDS_SHIM_CRL),
        crl: reader.text(&variables::SDS_SHIM_CRL).map(PathBuf::from),
        crl_fail_open: reader.boolean(&variables::SDS_SHIM_CRL_FAIL_OPEN).unwrap_or_default(),
        crl_leaf_only: reader.boolean(&variables::SDS_SHIM_CRL_LEAF_ONLY).unwrap_or_default(),
        trust_domain: trust_domain.clone(),
        moves: !is_fixed,
        trust_domain_file,
        domains,
        bundle_map,
        inline,
        grace: reader.duration(&variables::SDS_SHIM_ROOT_GRACE),
    }
}

/// Trust domains other than our own, where that is fixed, and the files of their anchors.
fn bundles(text: &str, own: Option<&TrustDomain>) -> Result<Vec<(TrustDomain, PathBuf)>, &'static str> {
    const EXPECTED: &str = "expected trust-domain=file, or several, comma separated, each with a different trust \
                            domain";
    let mut found: Vec<(TrustDomain, PathBuf)> = Vec::new();
    for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
        let (domain, file) = one.split_once('=').ok_or(EXPECTED)?;
        let domain: TrustDomain = domain.trim().parse().map_err(|_| EXPECTED)?;
        if Some(&domain) == own {
            return Err("it lists our own trust domain: add its anchors with SDS_SHIM_EXTRA_ROOTS instead");
        }
        if file.trim().is_empty() || found.iter().any(|(known, _)| *known == domain) {
            return Err(EXPECTED);
        }
        found.push((domain, file.trim().into()));
    }
    Ok(found)
}
