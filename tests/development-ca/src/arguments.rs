//! The command line, read by hand: two commands, a dozen flags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use development_ca::{Algorithm, CaOptions, ClientCertificates, Kubernetes, Method, TokenRequest};

/// Shown for `--help` and after a mistake.
pub(crate) const USAGE: &str = "\
development-ca: a Citadel-style CA for development and tests, never for production

  development-ca serve --dir DIR [--listen 127.0.0.1:15012] [--trust-domain cluster.local] [--audience istio-ca]
                       [--issuer URL] [--max-ttl 24h] [--client-certificates accept|require|off] [--plaintext]
                       [--verify own|jwks|token-review] [--api-server https://kubernetes.default.svc]
                       [--api-server-ca FILE] [--api-server-token FILE]
  development-ca token --dir DIR --namespace NS --service-account SA [--ttl 1h] [--audience istio-ca]
                       [--issuer URL] [--algorithm ES256|RS256] [--output PROJECTED_DIR]

DIR holds keys, certificates and jwks.json; `serve` makes them when it is missing or empty. `token` prints the token,
or writes it as `istio-token` into a projected volume.
--verify says whose tokens are believed: our own, or a cluster's, which `jwks` verifies by the keys that its API server
publishes, and `token-review` has the API server verify. FILE is by default what a pod finds in
/var/run/secrets/kubernetes.io/serviceaccount.
";

/// What to do.
pub(crate) enum Command {
    Help,
    Serve { dir: PathBuf, options: Box<CaOptions> },
    Token { dir: PathBuf, request: TokenRequest, output: Option<PathBuf> },
}

impl Command {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
        let mut arguments = arguments.peekable();
        match arguments.next().as_deref() {
            Some("serve") => serve(Flags::parse(arguments)?),
            Some("token") => token(Flags::parse(arguments)?),
            Some("help" | "--help" | "-h") => Ok(Command::Help),
            Some(other) => Err(format!("unknown command {other:?}")),
            None => Err("a command is missing: serve or token".to_owned()),
        }
    }
}

fn serve(mut flags: Flags) -> Result<Command, String> {
    let defaults = CaOptions::default();
    let listen = flags.take("listen").unwrap_or_else(|| "127.0.0.1:15012".to_owned());
    let max_ttl = flags.take("max-ttl").map(|text| duration("max-ttl", &text)).transpose()?;
    let client_certificates = match flags.take("client-certificates").as_deref() {
        None | Some("accept") => ClientCertificates::Accept,
        Some("require") => ClientCertificates::Require,
        Some("off") => ClientCertificates::Off,
        Some(other) => return Err(format!("--client-certificates: {other:?} is not accept, require or off")),
    };
    let kubernetes = kubernetes(&mut flags)?;
    let options = CaOptions {
        kubernetes,
        listen: listen.parse().map_err(|_| format!("--listen: {listen:?} is not ADDRESS:PORT"))?,
        trust_domain: flags.take("trust-domain").unwrap_or(defaults.trust_domain),
        audience: flags.take("audience").unwrap_or(defaults.audience),
        issuer: flags.take("issuer").unwrap_or(defaults.issuer),
        max_ttl: max_ttl.unwrap_or(defaults.max_ttl),
        plaintext: flags.take("plaintext").is_some(),
        client_certificates,
        ..CaOptions::default()
    };
    let dir = flags.require("dir")?.into();
    flags.finish()?;
    Ok(Command::Serve { dir, options: Box::new(options) })
}

/// The cluster whose tokens are believed.
fn kubernetes(flags: &mut Flags) -> Result<Option<Kubernetes>, String> {
    let method = match flags.take("verify").as_deref() {
        // A flag of the API server that is left over is unknown then, and named as such.
        None | Some("own") => return Ok(None),
        Some("jwks") => Method::Jwks,
        Some("token-review") => Method::TokenReview,
        Some(other) => return Err(format!("--verify: {other:?} is not own, jwks or token-review")),
    };
    let mut cluster = Kubernetes::in_cluster(method);
    if let Some(server) = flags.take("api-server") {
        if !server.starts_with("https://") {
            return Err(format!("--api-server: {server:?} does not begin with https://"));
        }
        cluster.api_server = server;
    }
    if let Some(file) = flags.take("api-server-ca") {
        cluster.ca_file = file.into();
    }
    if let Some(file) = flags.take("api-server-token") {
        cluster.token_file = file.into();
    }
    Ok(Some(cluster))
}

fn token(mut flags: Flags) -> Result<Command, String> {
    let mut request = TokenRequest::new(&flags.require("namespace")?, &flags.require("service-account")?);
    if let Some(text) = flags.take("ttl") {
        request.lifetime = i64::try_from(duration("ttl", &text)?.as_secs()).unwrap_or(i64::MAX);
    }
    if let Some(audience) = flags.take("audience") {
        request.audiences = vec![audience];
    }
    if let Some(issuer) = flags.take("issuer") {
        request.issuer = issuer;
    }
    request.algorithm = match flags.take("algorithm").as_deref() {
        None | Some("ES256") => Algorithm::Es256,
        Some("RS256") => Algorithm::Rs256,
        Some(other) => return Err(format!("--algorithm: {other:?} is not ES256 or RS256")),
    };
    let (dir, output) = (flags.require("dir")?.into(), flags.take("output").map(PathBuf::from));
    flags.finish()?;
    Ok(Command::Token { dir, request, output })
}

/// `--name value` and `--name=value`.
struct Flags(BTreeMap<String, String>);

/// Flags without a value.
const SWITCHES: [&str; 1] = ["plaintext"];

impl Flags {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Flags, String> {
        let mut flags = BTreeMap::new();
        while let Some(argument) = arguments.next() {
            let flag = argument.strip_prefix("--").ok_or_else(|| format!("unexpected argument {argument:?}"))?;
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None if SWITCHES.contains(&flag) => (flag, String::new()),
                None => (flag, arguments.next().ok_or_else(|| format!("--{flag} needs a value"))?),
            };
            if flags.insert(name.to_owned(), value).is_some() {
                return Err(format!("--{name} is given twice"));
            }
        }
        Ok(Flags(flags))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn require(&mut self, name: &str) -> Result<String, String> {
        self.take(name).ok_or_else(|| format!("--{name} is missing"))
    }

    fn finish(self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("unknown flag --{name}")),
            None => Ok(()),
        }
    }
}

/// `1h30m`, `90s`: whole numbers with units.
fn duration(flag: &str, text: &str) -> Result<Duration, String> {
    let bad = || format!("--{flag}: {text:?} is not a duration such as 90s or 1h30m");
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.as_bytes() {
            [b'h', ..] => 3600,
            [b'm', ..] => 60,
            [b's', ..] => 1,
            _ => return Err(bad()),
        };
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        seconds = part.and_then(|part| seconds.checked_add(part)).ok_or_else(bad)?;
        rest = &tail[1..];
    }
    if seconds == 0 { Err(bad()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn durations_are_numbers_with_units() {
        assert_eq!(duration("ttl", "1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("ttl", "24h0m0s"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "0s", "1", "h", "1d", "-1s", "1h30", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration("ttl", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn serve_and_token_read_their_flags() {
        let Ok(Command::Serve { dir, options }) = parse("serve --dir d --listen=127.0.0.1:0 --plaintext --max-ttl 1m")
        else {
            panic!("serve is not understood")
        };
        assert_eq!((dir, options.plaintext, options.max_ttl), ("d".into(), true, Duration::from_secs(60)));
        let Ok(Command::Token { request, output, .. }) =
            parse("token --dir d --namespace foo --service-account sleep --ttl 10s --algorithm RS256 --output o")
        else {
            panic!("token is not understood")
        };
        assert_eq!((request.lifetime, request.algorithm, output), (10, Algorithm::Rs256, Some("o".into())));
    }

    #[test]
    fn a_cluster_is_asked_as_a_pod_would_by_default() {
        let Ok(Command::Serve { options, .. }) = parse("serve --dir d --verify token-review --api-server-token t")
        else {
            panic!("--verify is not understood")
        };
        let cluster = options.kubernetes.expect("it was given");
        assert_eq!((cluster.method, cluster.token_file), (Method::TokenReview, "t".into()));
        assert_eq!(cluster.api_server, "https://kubernetes.default.svc");
        assert_eq!(cluster.ca_file, PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"));
    }

    #[test]
    fn a_mistake_is_named() {
        for (line, expected) in [
            ("", "a command is missing"),
            ("sign", "unknown command \"sign\""),
            ("serve", "--dir is missing"),
            ("serve --dir", "--dir needs a value"),
            ("serve --dir a --dir b", "--dir is given twice"),
            ("serve --dir a --listen nowhere", "--listen: \"nowhere\""),
            ("serve --dir a --client-certificates maybe", "--client-certificates: \"maybe\""),
            ("serve --dir a --color red", "unknown flag --color"),
            ("serve --dir a --verify yes", "--verify: \"yes\""),
            ("serve --dir a --verify jwks --api-server http://b", "--api-server: \"http://b\""),
            ("serve --dir a --api-server https://b", "unknown flag --api-server"),
            ("serve here", "unexpected argument \"here\""),
            ("token --dir a --namespace foo", "--service-account is missing"),
            ("token --dir a --namespace foo --service-account b --ttl soon", "--ttl: \"soon\""),
            ("token --dir a --namespace foo --service-account b --algorithm HS256", "--algorithm: \"HS256\""),
        ] {
            let error = parse(line).err().unwrap_or_else(|| panic!("{line:?} is accepted"));
            assert!(error.starts_with(expected), "{line:?}: {error}");
        }
    }
}
