//! `sds-shim check`: the environment and the files that it names, looked at without serving anything.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path};

use locked::Level;

use crate::{
    bounded::{self, foreign_text},
    clock,
    config::{CaRoots, Config, Env, Mistake, VARIABLES},
    identity::{BearerToken, Credential, TrustBundle},
    memory,
};

/// Bytes of one file with certificates.
const MAX_FILE: usize = 128 * 1024;
/// Characters of a value that are shown.
const SHOWN: usize = 120;

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
    found.line("variables, each with where its value comes from:");
    found.variables(env);
    let required = match Config::from_env(env) {
        Ok(config) => {
            found.line("what follows from them:");
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
        0 => "no mistakes".to_owned(),
        1 => "1 mistake".to_owned(),
        _ => format!("{count} mistakes"),
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
                self.line(&format!("  MISTAKE  {bad}"));
            }
        }
    }

    fn variables(&mut self, env: &dyn Env) {
        for variable in VARIABLES {
            let Some(prefix) = variable.name.strip_suffix('*') else {
                let set = env.value(variable.name).filter(|value| !value.is_empty());
                self.line(&match set {
                    Some(value) => format!("  {} = {}  (environment)", variable.name, foreign_text(&value, SHOWN)),
                    None => format!("  {} = {}  (default)", variable.name, variable.default),
                });
                continue;
            };
            // Their values may be credentials.
            for name in env.names().into_iter().filter(|name| name.starts_with(prefix)) {
                self.line(&format!("  {name} is set and not shown  (environment)"));
            }
        }
    }

    fn effective(&mut self, config: &Config) {
        match &config.identity.spiffe_id {
            Some(id) => self.line(&format!("  identity {id}")),
            None => self.line("  identity that of the token of each SDS request"),
        }
        for address in &config.ca.addresses {
            let how = if address.is_plaintext() { "WITHOUT TLS" } else { "with TLS" };
            self.line(&format!("  CA       {address} {how}, as {:?}", address.server_name));
        }
        self.line(&format!("  key      {:?}", config.key));
        self.line(&format!("  lifetime {} s", config.ca.ttl.as_secs()));
        self.line(&format!("  socket   {}", config.sds.socket.display()));
        match &config.admin.listen {
            Some(address) => self.line(&format!("  admin    {address}")),
            None => self.line("  admin    off"),
        }
    }

    fn files(&mut self, config: &Config) {
        let now = clock::now();
        if let Some(file) = &config.token.file {
            let token = BearerToken::read(file).and_then(|token| {
                token.check(config.token.audience.as_deref(), now)?;
                Ok(format!("{}: {}", file.display(), token.describe(now)))
            });
            self.verdict(token.map_err(|error| format!("{}: {error}", file.display())));
        }
        let own = match &config.ca.roots {
            CaRoots::File(file) => vec![file],
            CaRoots::System(_) => Vec::new(),
        };
        let mut seen = Vec::new();
        for file in own.into_iter().chain(&config.rotation.roots.files) {
            if !seen.contains(&file) {
                self.verdict(anchors(file, now));
                seen.push(file);
            }
        }
        if let Some(directory) = &config.ca.provisioned {
            self.verdict(provisioned(directory, now));
        }
        if let Some(directory) = config.sds.socket.parent() {
            self.verdict(writable(directory));
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
    }
}

fn read(file: &Path) -> Result<String, String> {
    let content = bounded::read(file, MAX_FILE).map_err(|error| bounded::describe(file, &error))?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn anchors(file: &Path, now: i64) -> Result<String, String> {
    let (bundle, bad) =
        TrustBundle::from_pem(&read(file)?, now).map_err(|error| format!("{}: {error}", file.display()))?;
    if let Some(bad) = bad.first() {
        return Err(format!("{}: {bad}", file.display()));
    }
    let end = bundle.anchors().iter().map(|anchor| anchor.not_after()).min().unwrap_or(i64::MAX);
    Ok(format!(
        "{}: {} trust anchors, the first ends at {}",
        file.display(),
        bundle.anchors().len(),
        clock::rfc3339(end)
    ))
}

fn provisioned(directory: &Path, now: i64) -> Result<String, String> {
    let (chain, key) = (read(&directory.join("cert-chain.pem"))?, read(&directory.join("key.pem"))?);
    let credential = Credential::from_pem(&chain, key.as_bytes());
    let end = credential.map_err(|error| format!("{}: {error}", directory.display()))?.not_after();
    match end > now {
        true => {
            Ok(format!("{}: a key and its certificate, which ends at {}", directory.display(), clock::rfc3339(end)))
        }
        false => Err(format!("{}: the certificate expired at {}", directory.display(), clock::rfc3339(end))),
    }
}

/// Whether a socket could be made there; nothing is left behind.
fn writable(directory: &Path) -> Result<String, String> {
    let probe = directory.join(format!(".check.{}", std::process::id()));
    match fs::File::create_new(&probe) {
        Ok(_) => {
            let _ = fs::remove_file(&probe);
            Ok(format!("{}: can be written to", directory.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(format!("{}: is made at the start", directory.display()))
        }
        Err(error) => Err(bounded::describe(directory, &error)),
    }
}
