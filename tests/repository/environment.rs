//! The page of variables is written from the binary's own table: `make manual`.

use std::{env, fmt::Write as _, fs};

use sds_shim::config::VARIABLES;
use testkit::workspace;

const PAGE: &str = "src/manual/reference/environment.md";

const INTRODUCTION: &str = "\
# Environment variables

Every variable that the shim reads, with its values, its default and its meaning. `sds-shim env` prints the same for the \
binary at hand, and `sds-shim check` says what follows from those that are set.

An empty value counts as unset. A value that cannot be parsed, or an unknown name that begins with `SDS_SHIM_`, stops the \
start; all mistakes are listed at once. Durations have Go's syntax, such as `1h30m`. Paths are relative to the working \
directory.
";

const END: &str = "
See also: [commands][commands] · [behaviour, case by case][behaviour] · [Kubernetes: variables as values]\
[kubernetes#variables-alerts-and-dashboard] · [troubleshooting][troubleshooting]

[commands]: commands.md
[behaviour]: behaviour.md
[kubernetes#variables-alerts-and-dashboard]: ../guide/kubernetes.md#variables-alerts-and-dashboard
[troubleshooting]: troubleshooting.md
";

/// Headings, and the names below each, with `*` for the rest of a name.
const GROUPS: [(&str, &str); 12] = [
    ("Identity", "TRUST_DOMAIN SDS_SHIM_TRUST_DOMAIN_FILE POD_NAMESPACE SERVICE_ACCOUNT"),
    (
        "The CA",
        "PROXY_CONFIG CA_ADDR CA_PROVIDER CA_ROOT_CA SSL_CERT_FILE PILOT_CERT_PROVIDER ISTIOD_SAN PROV_CERT SDS_SHIM_CA_* \
         ISTIO_META_* CA_HEADER_*",
    ),
    ("The service-account token", "JWT_POLICY CREDENTIAL_FETCHER_TYPE SDS_SHIM_TOKEN_*"),
    (
        "Keys and renewal",
        "ECC_* WORKLOAD_RSA_KEY_SIZE PKCS8_KEY SECRET_* SDS_SHIM_AVAILABILITY_TARGET SDS_SHIM_RENEW_PAUSE SDS_SHIM_COMPAT",
    ),
    ("Trust anchors and revocation", "SDS_SHIM_EXTRA_ROOTS SDS_SHIM_BUNDLES SDS_SHIM_CRL* SDS_SHIM_ROOT_GRACE"),
    ("Mounted files", "SDS_SHIM_SOURCE FILE_* SDS_SHIM_FILE_CHECK SDS_SHIM_CREDENTIAL_BUNDLE SDS_SHIM_TRUST_ANCHORS"),
    ("Certificates in files", "OUTPUT_CERTS SDS_SHIM_OUTPUT_*"),
    (
        "The SDS socket and the entrypoint",
        "WORKLOAD_IDENTITY_SOCKET_FILE SDS_SHIM_ALLOW_UIDS SDS_SHIM_FILE_DIRECTORIES SDS_SHIM_NAMES SDS_SHIM_WAIT",
    ),
    ("The SPIFFE Workload API", "SDS_SHIM_WORKLOAD_API*"),
    ("Health, metrics and logs", "SDS_SHIM_ADMIN* SDS_SHIM_READY_* SDS_SHIM_LOG* SDS_SHIM_TERMINATION_LOG"),
    ("Memory and sandbox", "SDS_SHIM_REQUIRE_LOCKED SDS_SHIM_ARENA_KIB SDS_SHIM_SECCOMP SDS_SHIM_LANDLOCK"),
    ("Other", "*"),
];

fn page() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (at, (heading, _)) in GROUPS.iter().enumerate() {
        let of = VARIABLES.iter().filter(|variable| group(variable.name) == at);
        let rows = of.fold(String::new(), |mut rows, variable| {
            let (name, kind, default, help) = (variable.name, &variable.kind, variable.default, variable.help);
            let _ = writeln!(rows, "| `{name}` | {kind} | {default} | {help} |");
            rows
        });
        if !rows.is_empty() {
            let head = "| variable | value | default | meaning |\n|---|---|---|---|";
            let _ = write!(text, "\n## {heading}\n\n{head}\n{rows}");
        }
    }
    text + END
}

/// The first group that has this name.
fn group(name: &str) -> usize {
    let has = |names: &str| {
        names
            .split(' ')
            .any(|known| known == name || known.strip_suffix('*').is_some_and(|beginning| name.starts_with(beginning)))
    };
    GROUPS.iter().position(|(_, names)| has(names)).expect("the last one has all")
}

#[test]
fn the_page_of_variables_is_that_of_the_binary() {
    let page = page();
    if env::var_os("MANUAL").is_some() {
        fs::write(workspace().join(PAGE), &page).expect("the manual can be written");
    }
    let written = fs::read_to_string(workspace().join(PAGE)).expect("it is there");
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows(&written), rows(&page), "run `make manual`");
    assert_eq!(written, page, "run `make manual`");
    assert_eq!(rows(&written).len(), VARIABLES.len());
}

/// The README has those that most people set.
#[test]
fn the_readme_names_variables_with_their_defaults() {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("it is there");
    let mut named = 0;
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let known = VARIABLES.iter().find(|variable| cells[0] == format!("`{}`", variable.name));
        assert_eq!(cells[1], known.unwrap_or_else(|| panic!("{}", cells[0])).default, "{}", cells[0]);
        named += 1;
    }
    assert_eq!(named, 8);
}
