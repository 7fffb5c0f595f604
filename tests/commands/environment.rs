//! The command line, and what is refused in the environment: before anything is served, in words, all at once.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::Stdio,
};

use testkit::{Failure, OrFail, PATIENCE, scratch::Scratch, workspace};
use tokio::{process::Command, time::timeout};

/// `sysexits.h`: the command was used in a wrong way.
const EX_USAGE: i32 = 64;

/// Values that each stop the start. Those of seven letters or more must not show up in what is said about them.
const MISTAKES: &[(&str, &str)] = &[
    ("CA_ADDR", "private-value"),
    ("CA_ADDR", "https://private-value:15012"),
    ("CA_ADDR", "private-value:0"),
    ("CA_ADDR", "private-value:65536"),
    ("CA_ADDR", ":15012"),
    ("CA_ADDR", "::1:15012"),
    ("CA_ADDR", "[private-value]:15012"),
    ("SDS_SHIM_SOURCE", "private-value"),
    ("SDS_SHIM_SPIFFE_ID", "spiffe://only-a-domain"),
    ("FILE_MOUNTED_CERTS", "private-value"),
    ("SDS_SHIM_CRL_FAIL_OPEN", "private-value"),
    ("SDS_SHIM_CRL_LEAF_ONLY", "private-value"),
    ("SDS_SHIM_BUNDLES", "private-value"),
    ("ISTIOD_SAN", "private value"),
    ("PROXY_CONFIG", "[private-value]"),
    ("CA_PROVIDER", "private-value"),
    ("CREDENTIAL_FETCHER_TYPE", "private-value"),
    ("SDS_SHIM_AVAILABILITY_TARGET", "private-value"),
    ("SDS_SHIM_RENEW_PAUSE", "private-value"),
    ("SDS_SHIM_ROOT_GRACE", "private-value"),
    ("FILE_DEBOUNCE_DURATION", "private-value"),
    ("SDS_SHIM_FILE_CHECK", "private-value"),
    ("SDS_SHIM_OUTPUT_MODE", "private-value"),
    ("SDS_SHIM_OUTPUT_GID", "private-value"),
    ("SDS_SHIM_COMPAT", "private-value"),
    ("SDS_SHIM_WAIT", "private-value"),
    ("SDS_SHIM_WORKLOAD_API", "private-value"),
    ("SDS_SHIM_WORKLOAD_API", "unix:private-value"),
    ("SDS_SHIM_WORKLOAD_API_UIDS", "private-value"),
    ("SDS_SHIM_REQUIRE_LOCKED", "private-value"),
    ("SDS_SHIM_ARENA_KIB", "private-value"),
    ("SDS_SHIM_SECCOMP", "private-value"),
    ("SDS_SHIM_LANDLOCK", "private-value"),
    ("TRUST_DOMAIN", "Private-Value"),
    ("TRUST_DOMAIN", "private/value"),
    ("POD_NAMESPACE", "private/value"),
    ("POD_NAMESPACE", ""),
    ("SERVICE_ACCOUNT", "../private-value"),
    ("SERVICE_ACCOUNT", "."),
    ("SERVICE_ACCOUNT", ""),
    ("ISTIO_META_CLUSTER_ID", "private\nvalue"),
    ("ISTIO_META_CLUSTER_ID", "privat\u{e9}-value"),
    ("SECRET_TTL", "private-value"),
    ("SECRET_TTL", "86400"),
    ("SECRET_TTL", "-12345678s"),
    ("SECRET_TTL", "999ms"),
    ("SECRET_GRACE_PERIOD_RATIO", "private-value"),
    ("SECRET_GRACE_PERIOD_RATIO", "1.0000001"),
    ("SECRET_GRACE_PERIOD_RATIO", "-0.12345"),
    ("SECRET_GRACE_PERIOD_RATIO", "NaN"),
    ("SECRET_GRACE_PERIOD_RATIO", "inf"),
    ("SECRET_GRACE_PERIOD_RATIO_JITTER", "private-value"),
    ("SECRET_GRACE_PERIOD_RATIO_JITTER", "1.0000001"),
    ("ECC_SIGNATURE_ALGORITHM", "private-value"),
    ("ECC_CURVE", "private-value"),
    ("ECC_CURVE", "P521"),
    ("WORKLOAD_RSA_KEY_SIZE", "private-value"),
    ("WORKLOAD_RSA_KEY_SIZE", "1024"),
    ("WORKLOAD_RSA_KEY_SIZE", "16384"),
    ("WORKLOAD_RSA_KEY_SIZE", "2049"),
    ("PKCS8_KEY", "private-value"),
    ("WORKLOAD_IDENTITY_SOCKET_FILE", "private/value"),
    ("WORKLOAD_IDENTITY_SOCKET_FILE", ".."),
    ("SDS_SHIM_TOKEN_SOURCE", "private-value"),
    ("SDS_SHIM_CA_MTLS", "private-value"),
    ("SDS_SHIM_CA_MTLS", "always"),
    ("SDS_SHIM_CA_TLS_MIN", "private-value"),
    ("SDS_SHIM_CA_TLS_MIN", "1.1"),
    ("SDS_SHIM_CA_TLS_GROUPS", "private-value"),
    ("SDS_SHIM_CA_TLS_GROUPS", "P-256,P-255"),
    ("SDS_SHIM_CA_TIMEOUT", "private-value"),
    ("SDS_SHIM_CA_ANSWER_TIMEOUT", "private-value"),
    ("SDS_SHIM_CA_TIMEOUT", "0s"),
    ("SDS_SHIM_LOG", "info,private-value=debug"),
    ("SDS_SHIM_LOG", "info,sds=private-value"),
    ("SDS_SHIM_LOG_FORMAT", "private-value"),
    ("SDS_SHIM_ADMIN", "private-value"),
    ("SDS_SHIM_ADMIN", "unix:"),
    ("SDS_SHIM_ADMIN", "localhost:15022"),
    ("SDS_SHIM_ADMIN_TLS", "private-value"),
    ("SDS_SHIM_ADMIN_TLS", "localhost:15023"),
    ("SDS_SHIM_ADMIN_TLS_CLIENTS", "private-value"),
    ("SDS_SHIM_ADMIN_TLS_CLIENTS", "spiffe://cluster.local/ns/private-value*"),
    ("SDS_SHIM_READY_MIN_LIFE", "private-value"),
    ("SDS_SHIM_ALLOW_UIDS", "private-value"),
    ("SDS_SHIM_ALLOW_UIDS", "1337,,2000"),
    ("SDS_SHIM_ALLOW_UIDS", "-1"),
    ("SDS_SHIM_ALLOW_UIDS", "1337,65534"),
    ("SDS_SHIM_FILE_DIRECTORIES", "private/value"),
    ("SDS_SHIM_FILE_DIRECTORIES", "/a,"),
    ("SDS_SHIM_TOKEN_DIRECTORIES", "private/value"),
    ("SDS_SHIM_NAMES", "private-value"),
    ("SDS_SHIM_NAMES", "default=private-value"),
    ("SDS_SHIM_LOG", "private-value"),
    ("SDS_SHIM_TYPO", "private-value"),
    ("SDS_SHIM_", "private-value"),
    ("SDS_SHIM_ON_CHANGE", "drain-it"),
    ("SDS_SHIM_ON_CHANGE", "http://10.0.0.1:15000/drain_listeners?graceful&skip_exit"),
    ("SDS_SHIM_ON_CHANGE", "http://127.0.0.1:15000/drain_listeners?graceful"),
    ("SDS_SHIM_ON_CHANGE", "SIGHUPS"),
];

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    wrote_files: bool,
}

/// Runs the shim to its end in an empty directory.
async fn run(arguments: &[&str], env: &[(&str, &OsStr)]) -> Result<Ended, Failure> {
    let scratch = Scratch::new("tests")?;
    let program =
        std::env::var_os("SHIM_BINARY").map_or_else(|| workspace().join("target/dist/sds-shim"), PathBuf::from);
    let mut command = Command::new(std::path::absolute(&program).or_fail("find the binary")?);
    command.args(arguments).env_clear().envs(env.iter().copied()).current_dir(scratch.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().or_fail(format!("start {}", program.display()))?;
    let output = timeout(PATIENCE, child.wait_with_output()).await.or_fail("wait for the end")?.or_fail("run")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let wrote_files = std::fs::read_dir(scratch.path()).or_fail("list")?.next().is_some();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    Ok(Ended { code: output.status.code(), stdout, stderr, wrote_files })
}

/// Runs the server with what is required and `env`, which must stop its start.
async fn refused(env: &[(&str, &OsStr)]) -> Result<Ended, Failure> {
    let mut all = vec![("POD_NAMESPACE", OsStr::new("foo")), ("SERVICE_ACCOUNT", OsStr::new("sleep"))];
    all.retain(|(name, _)| !env.iter().any(|(other, _)| other == name));
    all.extend(env);
    let ended = run(&[], &all).await?;
    assert_eq!(ended.code, Some(EX_USAGE), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    assert!(!ended.wrote_files, "the socket must not exist where nothing will be served");
    Ok(ended)
}

/// The lines that each tell a mistake.
fn mistakes(ended: &Ended) -> Vec<&str> {
    ended.stderr.lines().filter(|line| line.starts_with("  ")).map(str::trim).collect()
}

#[tokio::test]
async fn each_bad_value_stops_the_start_names_its_variable_and_is_not_repeated() -> testkit::Result {
    for (name, value) in MISTAKES {
        println!("{name}={value}");
        let ended = refused(&[(name, OsStr::new(value))]).await?;
        let told = mistakes(&ended);
        assert_eq!(told.len(), 1, "{name}={value}: {}", ended.stderr);
        assert!(told[0].starts_with(&format!("{name}: ")), "{name}={value}: {}", ended.stderr);
        assert!(told[0].len() > name.len() + 10, "a sentence: {}", ended.stderr);
        // `always` is a word of the explanation.
        let secret = value.len() >= 7 && *value != "always";
        assert!(!secret || !ended.stderr.contains(value), "{name}={value}: {}", ended.stderr);
        assert!(!ended.stderr.to_lowercase().contains("private"), "{name}={value}: {}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn a_value_that_is_not_text_is_a_mistake() -> testkit::Result {
    let bytes = OsString::from(OsStr::from_bytes(b"foo\xff\xfe"));
    for name in ["TRUST_DOMAIN", "POD_NAMESPACE", "CA_ADDR", "SDS_SHIM_LOG", "PROV_CERT"] {
        let ended = refused(&[(name, &bytes)]).await?;
        assert_eq!(mistakes(&ended).len(), 1, "{}", ended.stderr);
        assert!(mistakes(&ended)[0].starts_with(name), "{}", ended.stderr);
    }
    Ok(())
}

/// Every variable of which the binary says that it reads it, with what its value looks like.
async fn variables() -> Result<Vec<(String, String)>, Failure> {
    let told = run(&["env"], &[]).await?.stdout;
    let lines: Vec<_> = told.lines().collect();
    let kind = |line: &str| line.split(" (default: ").next().unwrap_or_default().trim().to_owned();
    Ok(lines.windows(2).filter(|two| !two[0].starts_with(' ')).map(|two| (two[0].to_owned(), kind(two[1]))).collect())
}

#[tokio::test]
async fn every_variable_with_a_syntax_is_among_the_mistakes() -> testkit::Result {
    let variables = variables().await?;
    assert!(variables.len() > 40, "{variables:?}");
    // Any text can be the name of a file.
    let free = ["text", "file", "directory", "file or SYSTEM", "files, comma separated"];
    // It may be there for others, and is read with SDS_SHIM_SOURCE=spiffe alone.
    let foreign = "SPIFFE_ENDPOINT_SOCKET";
    let strict = |(name, kind): &&(String, String)| {
        !free.contains(&&**kind) && name != foreign || name == "ISTIO_META_CLUSTER_ID"
    };
    for (name, _) in variables.iter().filter(strict) {
        assert!(MISTAKES.iter().any(|(other, _)| other == name), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn all_mistakes_are_reported_at_once() -> testkit::Result {
    let bad = OsStr::new("bad value");
    let names = ["CA_ADDR", "SECRET_TTL", "PKCS8_KEY", "ECC_CURVE", "SDS_SHIM_LOG", "SDS_SHIM_X", "SERVICE_ACCOUNT"];
    let ended = refused(&names.map(|name| (name, bad))).await?;
    assert_eq!(mistakes(&ended).len(), names.len(), "{}", ended.stderr);
    for name in names {
        assert_eq!(ended.stderr.matches(&format!("{name}: ")).count(), 1, "{name} in {}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn missing_required_variables_are_named() -> testkit::Result {
    let ended = run(&["serve"], &[]).await?;
    assert_eq!(ended.code, Some(EX_USAGE));
    assert_eq!(mistakes(&ended).len(), 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("POD_NAMESPACE: ") && ended.stderr.contains("SERVICE_ACCOUNT: "));
    Ok(())
}

#[tokio::test]
async fn env_lists_every_variable_with_its_default_whatever_the_environment_holds() -> testkit::Result {
    let ended = run(&["env"], &[("SDS_SHIM_LOG", OsStr::new("bad")), ("SECRET_TTL", OsStr::new("1h"))]).await?;
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    let plain: Vec<_> = variables().await?.into_iter().map(|(name, _)| name).collect();
    assert!(plain.iter().all(|name| ended.stdout.lines().any(|line| line == name)), "{}", ended.stdout);
    for default in ["istiod.istio-system.svc:15012", "cluster.local", "24h0m0s", "P256", "istio-ca", "10s"] {
        assert!(ended.stdout.contains(default), "{default} in {}", ended.stdout);
    }
    assert!(!ended.wrote_files);
    Ok(())
}

#[tokio::test]
async fn help_and_version_are_printed() -> testkit::Result {
    for (arguments, expected) in [
        (["help"], "Usage: sds-shim"),
        (["--help"], "Usage: sds-shim"),
        (["-h"], "Usage: sds-shim"),
        (["version"], concat!("sds-shim ", env!("CARGO_PKG_VERSION"))),
        (["--version"], concat!("sds-shim ", env!("CARGO_PKG_VERSION"))),
        (["-V"], "OpenSSL"),
    ] {
        let ended = run(&arguments, &[]).await?;
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
        assert!(ended.stdout.contains(expected), "{arguments:?}: {}", ended.stdout);
        assert!(!ended.wrote_files);
    }
    let help = run(&["help"], &[]).await?.stdout;
    for command in ["serve", "env", "version", "help"] {
        assert!(help.lines().any(|line| line.trim().starts_with(command)), "{command} in {help}");
    }
    Ok(())
}

#[tokio::test]
async fn an_invalid_command_line_is_rejected() -> testkit::Result {
    for arguments in [&["run"][..], &["serve", "now"], &["env", "--all"], &["--socket=x"], &[""], &["help", "me"]] {
        let ended = run(arguments, &[]).await?;
        assert_eq!(ended.code, Some(EX_USAGE), "{arguments:?}");
        assert_eq!(ended.stdout, "");
        assert!(ended.stderr.contains("sds-shim help"), "{}", ended.stderr);
        assert!(!ended.wrote_files);
    }
    Ok(())
}
