//! The files that the environment names.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use super::Findings;
use crate::{
    bounded::{self, Opened},
    budget, clock,
    config::{CaRoots, Config, FileResource, RootsConfig},
    identity::{
        AnchorNames, BearerToken, BundleMap, Credential, CrlState, Flaw, KeyText, RevocationList, TOO_MANY_NAMES,
        TrustBundle, TrustDomain,
    },
    memory,
};

/// Bytes of one file with certificates.
const MAX_FILE: usize = 384 * 1024;
/// Bytes of one with a bundle map, as they are read while serving.
const MAX_MAP: usize = 128 * 1024;

fn bundle_map(file: &Path, now: i64) -> Result<String, String> {
    let opened =
        bounded::open(file, MAX_MAP).and_then(Opened::text).map_err(|error| bounded::describe(file, &error))?;
    let map = BundleMap::read(&opened, now, |_| true).map_err(|error| format!("{}: {error}", file.display()))?;
    match map.bad.is_empty() {
        true => Ok(format!("{}: trust anchors of {} trust domains", file.display(), map.domains.len())),
        false => Err(format!("{}: left out: {}", file.display(), map.bad.join("; "))),
    }
}

fn token(file: &Path, audience: Option<&str>, now: i64) -> Result<String, String> {
    let token = BearerToken::read(file).and_then(|token| {
        token.check(audience, now)?;
        Ok(format!("{}: {}", file.display(), token.describe(now)))
    });
    token.map_err(|error| format!("{}: {error}", file.display()))
}

impl Findings {
    pub(super) fn files(&mut self, config: &Config) {
        let now = clock::now();
        // As much room as the process will have.
        let enlarged = memory::enlarge(&config.memory);
        let served = served(config, now);
        if let Some(files) = &config.source.files {
            let (found, flaws) = certificate(&files.chain, &files.key, now, Some((&files.roots, &served)));
            self.verdict(found);
            flaws.into_iter().for_each(|flaw| self.verdict(Err(format!("{}: {flaw}", files.chain.display()))));
        }
        if let Some(api) = &config.source.spiffe {
            self.verdict(connectable(&api.socket));
        }
        if let Some(file) = config.token.file.as_ref().filter(|_| config.source.ca) {
            self.verdict(token(file, config.token.audience.as_deref(), now));
        }
        if let Err(error) = enlarged {
            self.verdict(Err(format!("the arena cannot be extended to SDS_SHIM_ARENA_KIB: {error}")));
        }
        let own = config.ca.roots_file();
        // An operating system's are many, and some of them may have expired without doing harm.
        let lenient = matches!(config.ca.roots, CaRoots::System(_));
        if config.source.ca {
            self.verdict(anchors(&own, now, lenient));
        }
        for file in config.rotation.roots.files.iter().filter(|file| !config.source.ca || **file != own) {
            self.verdict(anchors(file, now, false));
        }
        for (_, file) in &config.rotation.roots.domains {
            self.verdict(anchors(file, now, false));
        }
        if let Some(file) = &config.rotation.roots.bundle_map {
            self.verdict(bundle_map(file, now));
        }
        for files in config.sds.names.values() {
            self.verdict(match files {
                FileResource::Certificate { chain, key } => certificate(chain, key, now, None).0,
                FileResource::Token(file) => token(file, None, now),
                FileResource::Roots(file) => anchors(file, now, false),
            });
        }
        self.revocation(&config.rotation.roots, &served, now);
        self.all_anchors(&served);
        if let Some(file) = &config.rotation.roots.trust_domain_file {
            match trust_domain(file) {
                Err(bad) if fs::metadata(file).is_err_and(|error| error.kind() == ErrorKind::NotFound) => {
                    self.line(&format!("  note     {bad}; TRUST_DOMAIN applies until the file exists"));
                }
                found => self.verdict(found.map(|domain| format!("{}: the trust domain {domain}", file.display()))),
            }
        }
        if let Some(directory) = &config.ca.provisioned {
            self.verdict(certificate(&directory.join("cert-chain.pem"), &directory.join("key.pem"), now, None).0);
        }
        for socket in config.workload_api.iter().chain([&config.sds]) {
            self.verdict(writable(socket.socket.parent().unwrap_or(Path::new("."))));
        }
        self.places(config);
    }

    /// Files whose changes come late, or not at all.
    fn places(&mut self, config: &Config) {
        let roots = &config.rotation.roots;
        let mounted = config.source.files.iter().flat_map(|files| [&files.chain, &files.key, &files.roots]);
        let others = roots.files.iter().chain(roots.domains.iter().map(|(_, file)| file)).chain(&roots.bundle_map);
        let token = config.token.file.iter().filter(|_| config.source.ca);
        let all = token.chain(mounted).chain(others).chain(&roots.crl).chain(&roots.trust_domain_file);
        for file in all.collect::<BTreeSet<_>>() {
            if bounded::is_mounted_alone(file) {
                self.line(&format!("  note     {}: {}", file.display(), bounded::MOUNTED_ALONE));
            }
            if let Some(kind) = bounded::silent_file_system(file) {
                self.line(&format!(
                    "  note     {}: it is on {kind}, which does not report changes (SDS_SHIM_FILE_CHECK)",
                    file.display()
                ));
            }
        }
    }

    /// The lists of revoked certificates, as they are read while serving.
    fn revocation(&mut self, roots: &RootsConfig, anchors: &TrustBundle, now: i64) {
        let Some(file) = &roots.crl else { return };
        let lists = match RevocationList::read(file, roots.tells_apart()) {
            Ok(lists) if lists.is_empty() => {
                return self
                    .line(&format!("  note     {}: it is empty, so no revocation lists are served", file.display()));
            }
            Ok(lists) => lists,
            // Few have one.
            Err(trouble) if trouble.reason == "missing" && !roots.crl_required => return,
            Err(trouble) => return self.verdict(Err(trouble.text)),
        };
        let signers = anchors.signers();
        let unusable = |list: &RevocationList| Some(list.state(&signers, now)).filter(|state| *state != CrlState::Good);
        for (list, why) in lists.iter().filter_map(|list| Some((list, unusable(list)?))) {
            let is_superseded = |other: &RevocationList| other.is_like(list) && unusable(other).is_none();
            let told = format!("{}: the CRL of {} {why}", file.display(), list.issuer());
            match lists.iter().any(is_superseded) {
                true => self.line(&format!("  note     {told}; another one of this issuer is used instead")),
                false => self.verdict(Err(told)),
            }
        }
        if lists.iter().all(|list| unusable(list).is_none()) {
            let end = lists.iter().map(RevocationList::next_update).min().unwrap_or(i64::MAX);
            let count =
                if lists.len() == 1 { "1 revocation list" } else { &format!("{} revocation lists", lists.len()) };
            self.verdict(Ok(format!("{}: {count}, the first is good until {}", file.display(), clock::rfc3339(end))));
        }
    }

    /// Whether there is room for these together.
    fn all_anchors(&mut self, all: &TrustBundle) {
        let most = budget::for_anchors();
        let size: usize = all.anchors().iter().map(|anchor| anchor.size()).sum();
        if size > most {
            self.verdict(Err(format!(
                "the {} trust anchors of all files take {} KiB; the limit is {} KiB, half of the arena, so some would be \
                 left out: raise SDS_SHIM_ARENA_KIB",
                all.anchors().len(),
                size / 1024,
                most / 1024
            )));
        }
        let (_, left_out) = AnchorNames::default().take_all(all);
        if left_out > 0 {
            self.verdict(Err(format!("{left_out} trust anchors of all files would be left out: {TOO_MANY_NAMES}")));
        }
    }
}

fn read(file: &Path) -> Result<String, String> {
    let opened =
        bounded::open(file, MAX_FILE).and_then(|opened| opened.if_room(|size| budget::has_room_for_file(size, 2)));
    opened.and_then(Opened::text).map_err(|error| bounded::describe(file, &error))
}

pub(super) fn trust_domain(file: &Path) -> Result<TrustDomain, String> {
    read(file)?.trim().parse().map_err(|error| format!("{}: {error}", file.display()))
}

/// The anchors of all files that are served.
fn served(config: &Config, now: i64) -> TrustBundle {
    let read = |file: &PathBuf| TrustBundle::from_file(file, now, budget::has_room_for_anchor).ok();
    let bundles = config.rotation.roots.files.iter().filter_map(read);
    TrustBundle::new(bundles.flat_map(|(bundle, _)| bundle.anchors().to_vec()).collect())
}

/// What is to be said of the anchors of a file.
fn anchors(file: &Path, now: i64, lenient: bool) -> Result<String, String> {
    let (bundle, bad) = TrustBundle::from_file(file, now, budget::has_room_for_anchor)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    if let Some(bad) = bad.told().first().filter(|_| !lenient) {
        return Err(format!("{}: {bad}", file.display()));
    }
    let end = bundle.anchors().iter().map(|anchor| anchor.not_after()).min().unwrap_or(i64::MAX);
    Ok(format!(
        "{}: {} trust anchors, the first expires at {}",
        file.display(),
        bundle.anchors().len(),
        clock::rfc3339(end)
    ))
}

/// What is to be said of a key and its chain, and what peers will not like about it, who have the anchors of this file or
/// of this bundle.
fn certificate(
    chain: &Path,
    key: &Path,
    now: i64,
    peers: Option<(&Path, &TrustBundle)>,
) -> (Result<String, String>, Vec<Flaw>) {
    let read = |path: &Path| KeyText::open(path, MAX_FILE).map_err(|error| bounded::describe(path, &error));
    let credential = read(chain).and_then(|text| {
        let credential = Credential::from_pem(&text.0, &read(key)?.1);
        credential.map_err(|error| format!("{}: {error}", bounded::both(chain, key)))
    });
    let credential = match credential {
        Ok(credential) => credential,
        Err(error) => return (Err(error), Vec::new()),
    };
    let end = credential.not_after();
    let told = match end > now {
        true => Ok(format!("{}: a certificate and its key, valid until {}", chain.display(), clock::rfc3339(end))),
        false => Err(format!("{}: the certificate expired at {}", chain.display(), clock::rfc3339(end))),
    };
    let flaws = peers.map(|(file, anchors)| credential.flaws(file, anchors, now));
    (told, flaws.unwrap_or_default())
}

/// Whether a socket could be made there; nothing is left behind.
fn writable(directory: &Path) -> Result<String, String> {
    let probe = directory.join(format!(".check.{}", std::process::id()));
    match fs::File::create_new(&probe) {
        Ok(_) => {
            let _ = fs::remove_file(&probe);
            Ok(format!("{}: writable", directory.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(format!("{}: will be created at the start", directory.display()))
        }
        Err(error) => Err(bounded::describe(directory, &error)),
    }
}

/// Whether we may connect to this socket.
fn connectable(socket: &Path) -> Result<String, String> {
    let describe = |error: &io::Error| bounded::describe(socket, error);
    if !fs::metadata(socket).map_err(|error| describe(&error))?.file_type().is_socket() {
        return Err(format!("{}: it is not a socket", socket.display()));
    }
    access(socket, AccessFlags::W_OK).map_err(|error| describe(&error.into()))?;
    Ok(format!("{}: a socket that we may connect to", socket.display()))
}
