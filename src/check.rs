//! `sds-shim check`: the environment and the files that it names, looked at without serving anything.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use locked::{Level, Need};

use crate::{
    bounded::{self, Opened, foreign_text},
    budget, clock,
    config::{CaRoots, Config, Env, Mistake, MutualTls, RootsConfig, Schedule, ServerName, VARIABLES},
    identity::{
        BearerToken, Credential, CrlState, Flaw, KeyAlgorithm, KeyEncoding, KeySpec, KeyText, RevocationList, SpiffeId,
        TrustBundle, TrustDomain,
    },
    memory,
};

/// Bytes of one file with certificates.
const MAX_FILE: usize = 384 * 1024;
/// Characters of a value that are shown.
const SHOWN: usize = 120;

/// What it means that who started the program could read it.
pub const ATTACHABLE: &str = "another process of the same user could have attached to this one before it closed itself \
                              to others: install the binary with mode 0111, owned by another user, and have it \
                              started without CAP_DAC_OVERRIDE (containers: drop ALL)";

/// What was found, for people.
pub struct Findings {
    /// All of it, in lines.
    pub text: String,
    /// How many mistakes are in it.
    pub mistakes: usize,
}

/// Looks at everything.
pub fn check(env: &dyn Env) -> Findings {
    let mut found = Findings { text: String::new(), mistakes: 0 };
    let config = Config::from_env(env);
    // Before keys are read from files.
    locked::fill_openssl_tables();
    locked::open_secret_memory(config.as_ref().map_or(Need::Usual, Config::secret_memory));
    found.line("variables and where their values come from:");
    found.variables(env, config.as_ref().ok());
    let required = match config {
        Ok(config) => {
            found.line("resulting configuration:");
            found.effective(&config);
            found.line("files:");
            found.files(&config);
            config.memory.require
        }
        Err(mistakes) => {
            found.line("mistakes:");
            mistakes.iter().for_each(|mistake: &Mistake| found.verdict(Err(mistake.to_string())));
            Level::None
        }
    };
    found.memory(required);
    let count = found.mistakes;
    found.line(&match count {
        0 => "the configuration is valid".to_owned(),
        1 => "1 error".to_owned(),
        _ => format!("{count} errors"),
    });
    found
}

impl Findings {
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "{line}");
    }

    fn verdict(&mut self, verdict: Result<String, String>) {
        match verdict {
            Ok(good) => self.line(&format!("  ok       {good}")),
            Err(bad) => {
                self.mistakes += 1;
                self.line(&format!("  ERROR    {bad}"));
            }
        }
    }

    fn variables(&mut self, env: &dyn Env, config: Option<&Config>) {
        for variable in VARIABLES {
            let Some(prefix) = variable.name.strip_suffix('*') else {
                let set = env.value(variable.name).filter(|value| !value.is_empty());
                let derived = || config.and_then(|config| derived(variable.name, env, config));
                let (value, origin) = match set {
                    Some(value) => (foreign_text(&value, SHOWN), "environment"),
                    None => derived().unwrap_or_else(|| (variable.default.to_owned(), "default")),
                };
                self.line(&format!("  {} = {value}  ({origin})", variable.name));
                continue;
            };
            // Their values may be credentials.
            for name in env.names().into_iter().filter(|name| name.starts_with(prefix)) {
                self.line(&format!("  {name} is set, not shown  (environment)"));
            }
        }
    }

    fn effective(&mut self, config: &Config) {
        let Config { key, token, ca, rotation, output, sds, admin, .. } = config;
        self.identity(config);
        match &token.file {
            Some(file) => self.line(&format!("  token    {}", file.display())),
            None => self.line("  token    from each SDS request"),
        }
        if let Some(files) = &config.source.files {
            let (chain, key, roots) = (files.chain.display(), files.key.display(), files.roots.display());
            self.line(&format!("  mounted  {chain}, {key}, {roots}"));
        }
        self.line(&format!("  audience {}", token.audience.as_deref().unwrap_or("any")));
        for address in ca.addresses.iter().filter(|_| config.source.ca) {
            let how = if address.is_plaintext() { "WITHOUT TLS" } else { "with TLS" };
            let ServerName::Dns(name) = &address.server_name else {
                self.line(&format!("  CA       {address} {how}, verified by its address"));
                continue;
            };
            self.line(&format!("  CA       {address} {how}, verified as {name}"));
        }
        self.line(&format!("  verified with the anchors in {}", ca.roots_file().display()));
        let client = match (ca.mutual_tls, &ca.provisioned) {
            (MutualTls::Never, _) => "never presented".to_owned(),
            (MutualTls::Always, _) => "from PROV_CERT, in every call".to_owned(),
            (MutualTls::Auto, Some(_)) => "from PROV_CERT, else our own once issued".to_owned(),
            (MutualTls::Auto, None) => "our own once issued".to_owned(),
        };
        self.line(&format!("  client certificate: {client}"));
        self.line(&format!("  key      {}", key_in_words(key)));
        self.line(&format!("  lifetime {} s requested, {}", ca.ttl.as_secs(), schedule(&rotation.schedule)));
        self.line(&format!("  ROOTCA   the CA's answer{}", further_roots(&rotation.roots)));
        match output {
            Some(output) => self.line(&format!(
                "  output   {}, the key with mode {:04o} and group {}",
                output.directory.display(),
                output.mode,
                output.gid.map_or("our own".to_owned(), |gid| gid.to_string())
            )),
            None => self.line("  output   none: no key is written to a file"),
        }
        let uids: Vec<_> = sds.allowed_uids.iter().map(|uid| format!(", {uid}")).collect();
        self.line(&format!("  socket   {}, for our own user{}", sds.socket.display(), uids.concat()));
        if !sds.allowed_uids.is_empty() {
            let directories: Vec<_> = sds.file_directories.iter().map(|path| path.display().to_string()).collect();
            let theirs = match directories.is_empty() {
                true => "none for the others".to_owned(),
                false => format!("for the others below {}", directories.join(", ")),
            };
            self.line(&format!("           files by name: any for our own, {theirs}"));
        }
        match &admin.listen {
            Some(address) => self.line(&format!("  admin    {address}")),
            None => self.line("  admin    off"),
        }
        self.line(&format!(
            "  memory   an arena of {} KiB, at least {} required",
            config.memory.arena_bytes / 1024,
            config.memory.require
        ));
        config.notes.iter().for_each(|note| self.line(&format!("  note     {note}")));
    }

    /// Who is asked for, in the trust domain that counts now.
    fn identity(&mut self, config: &Config) {
        let file = config.rotation.roots.trust_domain_file.as_deref();
        let own = file.and_then(|file| trust_domain(file).ok());
        let asked_for = |id: &SpiffeId| own.as_ref().map_or_else(|| id.clone(), |own| id.in_domain(own)).to_string();
        let identity =
            config.identity.spiffe_id.as_ref().map_or("from the token of each SDS request".to_owned(), asked_for);
        self.line(&format!("  identity {identity}"));
        if let Some(file) = file {
            let (of, one) = if own.is_some() { ("that", "") } else { ("of TRUST_DOMAIN until", " one") };
            self.line(&format!("           in the trust domain {of} {} tells{one}", file.display()));
        }
    }

    fn files(&mut self, config: &Config) {
        let now = clock::now();
        if let Some(files) = &config.source.files {
            let (found, flaws) = certificate(&files.chain, &files.key, now, Some(config));
            self.verdict(found);
            flaws.into_iter().for_each(|flaw| self.verdict(Err(format!("{}: {flaw}", files.chain.display()))));
        }
        if let Some(file) = config.token.file.as_ref().filter(|_| config.source.ca) {
            let token = BearerToken::read(file).and_then(|token| {
                token.check(config.token.audience.as_deref(), now)?;
                Ok(format!("{}: {}", file.display(), token.describe(now)))
            });
            self.verdict(token.map_err(|error| format!("{}: {error}", file.display())));
        }
        // As much room as the process will have.
        if let Err(error) = memory::enlarge(&config.memory) {
            self.verdict(Err(format!("the arena cannot be extended to SDS_SHIM_ARENA_KIB: {error}")));
        }
        let mut served = Vec::new();
        let own = config.ca.roots_file();
        // An operating system's are many, and some of them may have expired without doing harm.
        let lenient = matches!(config.ca.roots, CaRoots::System(_));
        if config.source.ca {
            let is_served = config.rotation.roots.files.contains(&own);
            let bundle = self.anchors(&own, now, lenient);
            served.extend(bundle.filter(|_| is_served));
        }
        for file in config.rotation.roots.files.iter().filter(|file| !config.source.ca || **file != own) {
            served.extend(self.anchors(file, now, false));
        }
        for (_, file) in &config.rotation.roots.domains {
            self.anchors(file, now, false);
        }
        self.revocation(&config.rotation.roots, now);
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
        if let Some(directory) = config.sds.socket.parent() {
            self.verdict(writable(directory));
        }
        self.places(config);
    }

    /// Files whose changes come late, or not at all.
    fn places(&mut self, config: &Config) {
        let roots = &config.rotation.roots;
        let mounted = config.source.files.iter().flat_map(|files| [&files.chain, &files.key, &files.roots]);
        let others = roots.files.iter().chain(roots.domains.iter().map(|(_, file)| file));
        let token = config.token.file.iter().filter(|_| config.source.ca);
        let all = token.chain(mounted).chain(others).chain(&roots.crl).chain(&roots.trust_domain_file);
        for file in all.collect::<BTreeSet<_>>() {
            if bounded::is_mounted_alone(file) {
                self.line(&format!("  note     {}: {}", file.display(), bounded::MOUNTED_ALONE));
            }
            if let Some(kind) = bounded::silent_file_system(file) {
                self.line(&format!(
                    "  note     {}: it lies on {kind}, which does not tell of changes (SDS_SHIM_FILE_CHECK)",
                    file.display()
                ));
            }
        }
    }

    /// The lists of revoked certificates, as they are read while serving.
    fn revocation(&mut self, roots: &RootsConfig, now: i64) {
        let Some(file) = &roots.crl else { return };
        let lists = match RevocationList::read(file, !roots.domains.is_empty()) {
            Ok(lists) if lists.is_empty() => {
                return self
                    .line(&format!("  note     {}: it is empty, so no revocation lists are served", file.display()));
            }
            Ok(lists) => lists,
            // Few have one.
            Err(trouble) if trouble.reason == "missing" && !roots.crl_required => return,
            Err(trouble) => return self.verdict(Err(trouble.text)),
        };
        let read = |file: &PathBuf| Some(TrustBundle::from_pem(&read(file).ok()?, now).ok()?.0.signers());
        let signers: Vec<_> = roots.files.iter().filter_map(read).flatten().collect();
        let unusable = |list: &RevocationList| Some(list.state(&signers, now)).filter(|state| *state != CrlState::Good);
        for (list, why) in lists.iter().filter_map(|list| Some((list, unusable(list)?))) {
            let is_superseded = |other: &RevocationList| other.is_like(list) && unusable(other).is_none();
            let told = format!("{}: the CRL of {} {why}", file.display(), list.issuer());
            match lists.iter().any(is_superseded) {
                true => self.line(&format!("  note     {told}; another one of this issuer counts")),
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

    /// Looks at a file of trust anchors.
    fn anchors(&mut self, file: &Path, now: i64, lenient: bool) -> Option<TrustBundle> {
        let (bundle, told) = match anchors(file, now, lenient) {
            Ok((bundle, told)) => (Some(bundle), told),
            Err(error) => (None, Err(error)),
        };
        self.verdict(told);
        bundle
    }

    /// Whether there is room for these together.
    fn all_anchors(&mut self, bundles: &[TrustBundle]) {
        let all = bundles.iter().flat_map(TrustBundle::anchors).cloned().collect();
        let (all, most) = (TrustBundle::new(all), budget::for_anchors());
        let size: usize = all.anchors().iter().map(|anchor| anchor.size()).sum();
        if size > most {
            self.verdict(Err(format!(
                "the {} trust anchors of all files take {} KiB, and {} KiB, half of the arena, are the most: some would be \
                 left out; raise SDS_SHIM_ARENA_KIB",
                all.anchors().len(),
                size / 1024,
                most / 1024
            )));
        }
    }

    fn memory(&mut self, required: Level) {
        self.line("memory:");
        locked::lock_process();
        let report = locked::report();
        let summary = memory::describe(&report);
        self.verdict(match report.level() {
            held if held < required => Err(format!("{summary}; SDS_SHIM_REQUIRE_LOCKED={required} is not met")),
            _ => Ok(summary),
        });
        report.missing.iter().for_each(|missing| self.line(&format!("  missing  {missing}")));
        if locked::was_open_to_others() {
            self.line(&format!("  note     {ATTACHABLE}"));
        }
    }
}

/// What an unset variable is when it follows from others, and from which.
fn derived(name: &str, env: &dyn Env, config: &Config) -> Option<(String, &'static str)> {
    let is_set = |name: &str| env.value(name).is_some_and(|value| !value.is_empty());
    let compat = is_set("SDS_SHIM_COMPAT");
    let grace = config.rotation.schedule.grace_period.filter(|_| compat);
    let value = match name {
        "CA_ADDR" if is_set("PROXY_CONFIG") => {
            let all: Vec<_> = config.ca.addresses.iter().map(ToString::to_string).collect();
            return Some((all.join(","), "PROXY_CONFIG, else default"));
        }
        "CA_ROOT_CA" if is_set("PROV_CERT") || is_set("PILOT_CERT_PROVIDER") => {
            return Some((config.ca.roots_file().display().to_string(), "PILOT_CERT_PROVIDER or PROV_CERT"));
        }
        "WORKLOAD_RSA_KEY_SIZE" if compat => match config.key.algorithm {
            KeyAlgorithm::Rsa { bits } => bits.to_string(),
            _ => return None,
        },
        "PKCS8_KEY" if compat => (config.key.encoding == KeyEncoding::Pkcs8).to_string(),
        "SECRET_GRACE_PERIOD_RATIO" => grace?.ratio.to_string(),
        "SECRET_GRACE_PERIOD_RATIO_JITTER" => grace?.jitter.to_string(),
        _ => return None,
    };
    Some((value, "SDS_SHIM_COMPAT"))
}

fn key_in_words(key: &KeySpec) -> String {
    let algorithm = match key.algorithm {
        KeyAlgorithm::P256 => "ECDSA P-256".to_owned(),
        KeyAlgorithm::P384 => "ECDSA P-384".to_owned(),
        KeyAlgorithm::Rsa { bits } => format!("RSA with {bits} bits"),
    };
    let encoding = match (key.encoding, key.algorithm) {
        (KeyEncoding::Pkcs8, _) => "PKCS#8",
        (KeyEncoding::Traditional, KeyAlgorithm::Rsa { .. }) => "PKCS#1",
        (KeyEncoding::Traditional, _) => "SEC 1",
    };
    format!("{algorithm} as {encoding}")
}

fn schedule(schedule: &Schedule) -> String {
    let early = schedule.availability_target.map(|left| format!(", and {} s before its end", left.as_secs()));
    let when = match schedule.grace_period {
        Some(grace) => format!("renewed when {} (± {}) of its life is left", grace.ratio, grace.jitter),
        None => "renewed after 45 % to 65 % of its remaining life".to_owned(),
    };
    when + &early.unwrap_or_default()
}

fn further_roots(roots: &RootsConfig) -> String {
    let files: String = roots.files.iter().map(|file| format!(", {}", file.display())).collect();
    match roots.inline.len() {
        0 => files,
        count => format!("{files}, {count} texts of PROXY_CONFIG"),
    }
}

fn read(file: &Path) -> Result<String, String> {
    let opened =
        bounded::open(file, MAX_FILE).and_then(|opened| opened.if_room(|size| budget::has_room_for_file(size, 2)));
    opened.and_then(Opened::text).map_err(|error| bounded::describe(file, &error))
}

fn trust_domain(file: &Path) -> Result<TrustDomain, String> {
    read(file)?.trim().parse().map_err(|error| format!("{}: {error}", file.display()))
}

/// The anchors of a file, and what is to be said of them.
fn anchors(file: &Path, now: i64, lenient: bool) -> Result<(TrustBundle, Result<String, String>), String> {
    let (bundle, bad) = TrustBundle::from_file(file, now, budget::has_room_for_anchor)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    if let Some(bad) = bad.told().first().filter(|_| !lenient) {
        return Ok((bundle, Err(format!("{}: {bad}", file.display()))));
    }
    let end = bundle.anchors().iter().map(|anchor| anchor.not_after()).min().unwrap_or(i64::MAX);
    let told = format!(
        "{}: {} trust anchors, the first expires at {}",
        file.display(),
        bundle.anchors().len(),
        clock::rfc3339(end)
    );
    Ok((bundle, Ok(told)))
}

/// What is to be said of a key and its chain, and what peers will not like about it, who have the anchors of these files.
fn certificate(chain: &Path, key: &Path, now: i64, peers: Option<&Config>) -> (Result<String, String>, Vec<Flaw>) {
    let read = |path: &Path| KeyText::open(path, MAX_FILE).map_err(|error| bounded::describe(path, &error));
    let credential = read(chain).and_then(|text| {
        let credential = Credential::from_pem(&text.0, &read(key)?.1);
        credential.map_err(|error| format!("{}: {error}", chain.display()))
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
    let flaws = peers.and_then(|config| {
        let files = config.source.files.as_ref()?;
        let others = config.rotation.roots.files.iter().filter_map(|file| {
            TrustBundle::from_file(file, now, budget::has_room_for_anchor).ok().map(|(bundle, _)| bundle)
        });
        let all = others.flat_map(|bundle| bundle.anchors().to_vec()).collect();
        Some(credential.flaws(&files.roots, &TrustBundle::new(all), now))
    });
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
