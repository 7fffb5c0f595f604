//! `sds-shim check`: the environment and the files that it names, looked at without serving anything.

mod files;

use std::fmt::Write as _;

use locked::{Level, Need};

use crate::{
    bounded::foreign_text,
    config::{Config, Env, Mistake, MutualTls, RootsConfig, Schedule, SdsConfig, ServerName, VARIABLES, WINDOW},
    identity::{KeyAlgorithm, KeyEncoding, KeySpec, SpiffeId},
    memory,
};

/// Characters of a value that are shown.
const SHOWN: usize = 120;

/// What it means that who started the program could read it, if so.
pub fn attachable() -> Option<String> {
    const WHAT: &str =
        "another process of the same user could have attached to this one before it closed itself to others";
    const REMEDY: &str = ": install the binary with mode 0111, owned by another user, and have it started without \
                          CAP_DAC_OVERRIDE (containers: drop ALL)";
    // gVisor starts no program that its user may not read.
    let remedy = if locked::on_gvisor() { "" } else { REMEDY };
    locked::was_open_to_others().then(|| format!("{WHAT}{remedy}"))
}

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
            found.line("errors:");
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
        let Config { output, sds, workload_api, admin, .. } = config;
        match &config.source.spiffe {
            Some(api) => {
                let id = api.id.as_ref().map_or("the first one that the Workload API returns", |id| id.as_str());
                self.line(&format!("  identity {id}"));
                self.line(&format!("  source   the SPIFFE Workload API at {}", api.socket.display()));
                self.line(&format!("  ROOTCA   from the same source{}", further_roots(&config.rotation.roots)));
            }
            None => self.own_certificate(config),
        }
        match output {
            Some(output) => self.line(&format!(
                "  output   {}, the key with mode {:04o} and group {}",
                output.directory.display(),
                output.mode,
                output.gid.map_or("our own".to_owned(), |gid| gid.to_string())
            )),
            None => self.line("  output   none: no key is written to a file"),
        }
        let told = |socket: &SdsConfig| {
            let uids: Vec<_> = socket.allowed_uids.iter().map(|uid| format!(", {uid}")).collect();
            format!("{}, for our own user{}", socket.socket.display(), uids.concat())
        };
        self.line(&format!("  socket   {}", told(sds)));
        if let Some(api) = workload_api {
            self.line(&format!("  API      {}: each of them gets the private key", told(api)));
        }
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

    /// How one is had from the CA, or from files.
    fn own_certificate(&mut self, config: &Config) {
        let Config { key, token, ca, rotation, .. } = config;
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
    }

    /// Who is asked for, in the trust domain that counts now.
    fn identity(&mut self, config: &Config) {
        let file = config.rotation.roots.trust_domain_file.as_deref();
        let own = file.and_then(|file| files::trust_domain(file).ok());
        let asked_for = |id: &SpiffeId| own.as_ref().map_or_else(|| id.clone(), |own| id.in_domain(own)).to_string();
        let identity =
            config.identity.spiffe_id.as_ref().map_or("from the token of each SDS request".to_owned(), asked_for);
        self.line(&format!("  identity {identity}"));
        if let Some(file) = file {
            let of = if own.is_some() { "from" } else { "of TRUST_DOMAIN until there is one in" };
            self.line(&format!("           in the trust domain {of} {}", file.display()));
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
        if let Some(note) = attachable() {
            self.line(&format!("  note     {note}"));
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
        None => {
            let [from, to] = [WINDOW.start, WINDOW.end].map(|share| share * 100.0);
            format!("renewed after {from} % to {to} % of its remaining life")
        }
    };
    when + &early.unwrap_or_default()
}

fn further_roots(roots: &RootsConfig) -> String {
    let files: String = roots.files.iter().map(|file| format!(", {}", file.display())).collect();
    match roots.inline.len() {
        0 => files,
        count => format!("{files}, caCertificatesPem of PROXY_CONFIG ({count})"),
    }
}
