//! The one table of variables: the parser, `sds-shim env`, the manual and the search for misspelt names all use it.

use std::time::Duration;

use super::kind::Kind;

/// The CA's unit.
const SECOND: Duration = Duration::from_secs(1);

/// A variable of the environment as users see it.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// The value that is used when it is unset, in words where it depends on something.
    pub default: &'static str,
    /// The same where it is one value: the parser takes it from here.
    pub(super) value: Option<&'static str>,
    /// What it is for.
    pub help: &'static str,
}

/// The least that may be asked for: the arena's default size in the first version, which users have set. It is a little
/// larger meanwhile, whatever they set.
const LEAST_ARENA_KIB: u32 = 2352;
/// Room for some 20,000 streams; beyond it, one process for so many is a mistake.
const MAX_ARENA_KIB: u32 = 256 * 1024;

/// A row is `NAME: kind = default, help`, where the default is a value that is parsed as if it had been set, or
/// `NAME: kind else default, help`, where it is words. The kind is words, or a list of choices, or a [`Kind`] in
/// parentheses.
macro_rules! variables {
    (@name $id:ident) => { stringify!($id) };
    (@name $id:ident $name:literal) => { $name };
    (@kind $words:literal) => { Kind::Words($words) };
    (@kind [$($choice:literal),*]) => { Kind::OneOf(&[$($choice),*]) };
    (@kind ($kind:expr)) => { $kind };
    (@value) => { None };
    (@value $value:literal) => { Some($value) };
    ($($id:ident $(as $name:literal)?: $kind:tt $(= $value:literal)? $(else $words:literal)?, $help:literal;)*) => {
        $(pub(super) const $id: Variable = Variable {
            name: variables!(@name $id $($name)?),
            kind: variables!(@kind $kind),
            default: concat!($($value)? $($words)?),
            value: variables!(@value $($value)?),
            help: $help,
        };)*
        /// Every variable that is read, in the order of the documentation.
        pub const VARIABLES: &[&Variable] = &[$(&$id),*];
    };
}

variables! {
    PROXY_CONFIG: "JSON or YAML" else "unset",
        "Istio's ProxyConfig: discoveryAddress is the default for CA_ADDR, caCertificatesPem adds roots to ROOTCA.";
    SDS_SHIM_SOURCE: ["ca", "files", "auto", "spiffe"] else "files if any are mounted, else ca",
        "Source of default and ROOTCA: the CA (ca), mounted files (files), mounted files until the CA has issued a certificate, then the CA permanently (auto), or a SPIFFE Workload API such as SPIRE's agent (spiffe).";
    SPIFFE_ENDPOINT_SOCKET: "unix:PATH" else "required with SDS_SHIM_SOURCE=spiffe",
        "Socket of the SPIFFE Workload API that the identity comes from, by its absolute path; used with SDS_SHIM_SOURCE=spiffe only.";
    SDS_SHIM_SPIFFE_ID: "SPIFFE ID" else "the first one that the Workload API returns",
        "Identity to serve with SDS_SHIM_SOURCE=spiffe, if the Workload API returns several; no other one is ever served.";
    FILE_MOUNTED_CERTS: (Kind::Boolean) = "false",
        "Read the mounted files cert-chain.pem, key.pem and root-cert.pem from ./etc/certs instead of ./var/run/secrets/workload-spiffe-credentials.";
    SDS_SHIM_CREDENTIAL_BUNDLE: "file" else "unset",
        "File that holds both the mounted key and the certificate chain, as Kubernetes writes a PodCertificate.";
    SDS_SHIM_TRUST_ANCHORS: "file" else "the one beside the mounted certificate; required with SDS_SHIM_CREDENTIAL_BUNDLE",
        "Trust anchors for the mounted certificate, such as a projected ClusterTrustBundle, in any order.";
    CA_PROVIDER: ["Citadel", "GkeWorkloadCertificate"] = "Citadel",
        "Kind of upstream CA; GkeWorkloadCertificate means the files that GKE mounts.";
    CA_ADDR: "host:port, comma separated" else "discoveryAddress of PROXY_CONFIG, else istiod.istio-system.svc:15012",
        "Addresses of the upstream CA, in order of preference; those that failed recently are tried last. Port 15010 means plaintext, which exposes the token to the network.";
    CA_ROOT_CA: "file or SYSTEM" else "./var/run/secrets/istio/root-cert.pem",
        "Trust anchors for the TLS connection to the CA, also served in ROOTCA. SYSTEM means the operating system's trust store, which is not served.";
    SSL_CERT_FILE: "file" else "the first standard location that exists",
        "Trust store used when CA_ROOT_CA=SYSTEM.";
    PILOT_CERT_PROVIDER: "text" = "istiod",
        "Default for CA_ROOT_CA: custom means ./etc/certs/root-cert.pem, anything else the usual file.";
    ISTIOD_SAN: "DNS name or IP address" else "the host of CA_ADDR; istiod.istio-system.svc for localhost",
        "Name that the CA's server certificate must carry.";
    PROV_CERT: "directory" else "unset",
        "Directory with key.pem and cert-chain.pem, the client certificate for the CA, and root-cert.pem; re-read for each call. Without a usable certificate the token is used.";
    TRUST_DOMAIN: "trust domain" = "cluster.local",
        "Trust domain of the workload's SPIFFE ID.";
    SDS_SHIM_TRUST_DOMAIN_FILE: "file" else "unset",
        "File that holds the trust domain and overrides TRUST_DOMAIN; not with SDS_SHIM_SOURCE=spiffe. When it changes, a certificate is obtained under the new name while the old one is served. While the file is unusable, the current trust domain stays.";
    POD_NAMESPACE: "namespace" else "required to call the CA with the token in a file",
        "Namespace in the workload's SPIFFE ID.";
    SERVICE_ACCOUNT: "name" else "required to call the CA with the token in a file",
        "Service account in the workload's SPIFFE ID.";
    ISTIO_META_CLUSTER_ID: "text" = "Kubernetes",
        "Sent to the CA as the metadata ClusterID.";
    ISTIO_META_CERT_SIGNER: "text" else "unset",
        "Sent in the request as CertSigner, for CAs with several signers.";
    CA_HEADER as "CA_HEADER_*": "text" else "unset",
        "Each is sent to the CA as metadata, named by the part after CA_HEADER_.";
    SECRET_TTL: (Kind::Duration { least: SECOND }) = "24h0m0s",
        "Certificate lifetime to request. Renewal follows the lifetime that the CA actually issues.";
    SECRET_GRACE_PERIOD_RATIO: (Kind::Ratio) else "renew after 45 % to 65 % of the remaining life",
        "Renew when this share of the certificate's life is left, but never with less than 5 % or 2 s left.";
    SECRET_GRACE_PERIOD_RATIO_JITTER: (Kind::Ratio) = "0.1",
        "The share is chosen uniformly within this distance of SECRET_GRACE_PERIOD_RATIO.";
    SDS_SHIM_AVAILABILITY_TARGET: (Kind::DURATION) else "unset",
        "Renew early enough that at least this much of the certificate's life is always left.";
    SDS_SHIM_RENEW_PAUSE: (Kind::DURATION) = "1s",
        "Minimum time between two renewals requested by SIGUSR1 or `sds-shim renew`; requests in between are merged.";
    SDS_SHIM_EXTRA_ROOTS: "files, comma separated" else "none",
        "Additional trust anchors for ROOTCA, PEM, beside those of the CA's answer and of CA_ROOT_CA; changes are pushed immediately.";
    SDS_SHIM_BUNDLES: "trust-domain=file, comma separated, or @file" else "none",
        "Trust anchors of other trust domains, PEM, or all of them in a SPIFFE bundle map (@file, JSON), each trusted for its own trust domain only: ROOTCA becomes Envoy's SPIFFE validator, with all other anchors for our own trust domain.";
    SDS_SHIM_CRL: "file" = "./var/run/secrets/istio/crl/ca-crl.pem",
        "Certificate revocation lists, PEM or one as DER, served in ROOTCA; there must be one from each CA that issues workload certificates. The file may be missing unless this is set; a file of 0 bytes withdraws the lists.";
    SDS_SHIM_CRL_FAIL_OPEN: (Kind::Boolean) = "false",
        "Serve ROOTCA without revocation lists while a required one has expired or cannot be used. By default ROOTCA is held back until they can be used, the last good lists stay in place, and Envoy rejects the certificates of a CA whose list has expired.";
    SDS_SHIM_CRL_LEAF_ONLY: (Kind::Boolean) = "false",
        "Check peers' leaf certificates only. By default whole chains are checked as soon as there is a list from every CA up to the root.";
    SDS_SHIM_ROOT_GRACE: (Kind::DURATION) else "until the last certificate seen under it would have expired",
        "How long an anchor that all its sources have dropped is still served; 0s drops it immediately.";
    ECC_SIGNATURE_ALGORITHM: ["ECDSA"] else "ECDSA, or RSA when only WORKLOAD_RSA_KEY_SIZE is set",
        "Algorithm of the workload's key.";
    ECC_CURVE: ["P256", "P384"] = "P256",
        "Curve of an ECDSA key. Envoy accepts peers with P384 only if its tls_params allow TLS 1.3.";
    WORKLOAD_RSA_KEY_SIZE: (Kind::Number { least: 2048, most: 4096, multiple_of: 8, unit: "bits" }) else "unset",
        "Use RSA keys of this size in bits, unless ECC_SIGNATURE_ALGORITHM is set.";
    PKCS8_KEY: (Kind::Boolean) else "true",
        "Serve the key as PKCS#8; false means SEC 1 for ECDSA and PKCS#1 for RSA.";
    WORKLOAD_IDENTITY_SOCKET_FILE: "file name" = "socket",
        "Name of the SDS socket in ./var/run/secrets/workload-spiffe-uds.";
    FILE_DEBOUNCE_DURATION: (Kind::DURATION) = "100ms",
        "How long to wait after a file changes for further changes, so that files that belong together are read together.";
    SDS_SHIM_FILE_CHECK: (Kind::DURATION) = "30s",
        "How often to poll the watched files (mounted and named ones, token, trust anchors, revocation lists, trust domain). By default only those on file systems that do not report changes (NFS, FUSE, virtiofs, 9p); 0s means never.";
    OUTPUT_CERTS: "directory" else "unset",
        "Write key.pem, cert-chain.pem, root-cert.pem and spiffe-bundle-map.json to this directory, each generation atomically. Note that this puts the key into a file, which SDS otherwise avoids.";
    SDS_SHIM_OUTPUT_MODE: "octal mode" = "0640",
        "Mode of key.pem in OUTPUT_CERTS; the other files have 0644.";
    SDS_SHIM_OUTPUT_GID: "group id" else "our own",
        "Group of the files in OUTPUT_CERTS.";
    SDS_SHIM_ON_CHANGE: "URL or signal" else "unset",
        "Action to take once Envoy has accepted changed trust anchors or revocation lists, or another identity, so that open connections do not outlive the change: a POST to Envoy's administration interface, such as http://127.0.0.1:15000/drain_listeners?graceful&skip_exit, or a signal for the command of exec, such as SIGHUP.";
    JWT_POLICY: "text" = "third-party-jwt",
        "Which token to use: first-party-jwt means the service account's own at ./var/run/secrets/kubernetes.io/serviceaccount/token, anything else the projected one with its audience.";
    CREDENTIAL_FETCHER_TYPE: ["JWT", "GoogleComputeEngine"] = "JWT",
        "Accepted for compatibility; the token file is always used. GoogleComputeEngine logs a warning.";
    SDS_SHIM_TOKEN_SOURCE: ["file", "request"] = "file",
        "Source of the service-account token: the projected file, or the metadata of each SDS request.";
    SDS_SHIM_TOKEN_AUDIENCE: "text" else "istio-ca; any with first-party-jwt",
        "Audience that the token must carry; checked before the CA is called.";
    SDS_SHIM_COMPAT: ["istio"] else "unset",
        "istio selects the defaults of Istio's agent where ours differ: RSA 2048, PKCS#1, a jitter of 0.01.";
    SDS_SHIM_CA_MTLS: ["auto", "always", "never"] = "auto",
        "Present a client certificate to the CA: whenever possible (auto), always, which requires PROV_CERT, or never.";
    SDS_SHIM_CA_TLS_MIN: ["1.2", "1.3"] = "1.2",
        "Minimum TLS version for connections to the CA.";
    SDS_SHIM_CA_TLS_GROUPS: "names, comma separated" else "OpenSSL's own, X25519MLKEM768 first",
        "Groups for the key exchange with the CA, in order of preference; a server that supports none of them is rejected. X25519MLKEM768 alone requires a post-quantum key exchange.";
    SDS_SHIM_CA_TIMEOUT: (Kind::POSITIVE_DURATION) = "10s",
        "Deadline for reaching the CA in one call: its name, the connection, the TLS handshake.";
    SDS_SHIM_CA_ANSWER_TIMEOUT: (Kind::POSITIVE_DURATION) = "60s",
        "How long to wait for the CA's answer once the connection is established. While a valid certificate is held, half of its remaining life at most, but not less than SDS_SHIM_CA_TIMEOUT.";
    SDS_SHIM_ALLOW_UIDS: "user ids, comma separated" else "none",
        "Users who may connect to the SDS socket besides our own. Its mode is then 0666, and they must be able to traverse the directories above it.";
    SDS_SHIM_FILE_DIRECTORIES: "directories, comma separated" else "none",
        "Directories below which users of SDS_SHIM_ALLOW_UIDS may name files (file-cert:, file-root:); our own user may name any file. Symbolic links that lead out of them are not followed.";
    SDS_SHIM_TOKEN_DIRECTORIES: "directories, comma separated" else "none",
        "Directories below which clients may name tokens (file-token:), served as generic secrets to every user who may connect to the SDS socket. Symbolic links that lead out of them are not followed.";
    SDS_SHIM_NAMES: "NAME=CHAIN~KEY or NAME=FILE, comma separated" else "none",
        "Names of your own for files, so that Envoy's configuration needs no paths: a certificate with its key, trust anchors (which Istio's Envoys request as NAME-cacert), or file-token:FILE. Every user who may connect to the SDS socket may request them.";
    SDS_SHIM_WORKLOAD_API: "unix:PATH or off" = "off",
        "Socket, by its absolute path, on which to serve the SPIFFE Workload API to applications: the same certificate with its private key, and the same trust anchors.";
    SDS_SHIM_WORKLOAD_API_UIDS: "user ids, comma separated" else "none",
        "Users who may connect to SDS_SHIM_WORKLOAD_API besides our own. Each of them gets the private key. The socket's mode is then 0666, and they must be able to traverse the directories above it.";
    SDS_SHIM_WAIT: ["socket", "certificate"] = "socket",
        "What `sds-shim exec` waits for before it starts its program: the SDS socket or the first certificate.";
    SDS_SHIM_ADMIN: "address:port, unix:PATH or off" = "127.0.0.1:15022",
        "Where to serve health, metrics and status over HTTP/1.1. Anything but a loopback address exposes them to the network.";
    SDS_SHIM_ADMIN_TLS: "address:port or off" = "off",
        "Where to serve the same over mutual TLS as well, to the clients in SDS_SHIM_ADMIN_TLS_CLIENTS whose certificates lead to the served trust anchors; each connection uses the certificate and anchors served at that moment.";
    SDS_SHIM_ADMIN_TLS_CLIENTS: "SPIFFE IDs, comma separated" else "required with SDS_SHIM_ADMIN_TLS",
        "Who may connect to SDS_SHIM_ADMIN_TLS: SPIFFE IDs in full, or ending in /* for all below a path, as in spiffe://cluster.local/ns/monitoring/*.";
    SDS_SHIM_READY_MIN_LIFE: (Kind::DURATION) = "0s",
        "Report not ready while the served certificate has less than this left to live.";
    SDS_SHIM_TERMINATION_LOG: "file" = "/dev/termination-log",
        "File that receives the reason of a fatal error; written only if it already exists.";
    SDS_SHIM_REQUIRE_LOCKED: ["secret", "locked", "none"] = "locked",
        "Minimum protection of keys required to start: secret memory and the whole process locked (secret), locked \
         memory (locked), or any (none).";
    SDS_SHIM_ARENA_KIB: (Kind::Number { least: LEAST_ARENA_KIB, most: MAX_ARENA_KIB, multiple_of: 1, unit: "KiB" }) = "2432",
        "Size of the locked memory that holds all allocations but keys; a larger arena allows more streams and more trust anchors.";
    SDS_SHIM_SECCOMP: ["strict", "off"] else "a filter, where the kernel allows one",
        "strict makes the kernel reject every system call that serving does not need: without the filter the shim then does not start, and a crash ends the process. The default filter still allows the restart in place after a crash. With `sds-shim exec` the filter is installed after the program has started and does not bind it.";
    SDS_SHIM_LANDLOCK: ["on", "strict", "off"] = "on",
        "Landlock, as far as the kernel has it: on restricts writing to the directories of the sockets and OUTPUT_CERTS, and TCP to DNS and the ports in these variables. strict also restricts reading, to the directories of the files in these variables and SDS_SHIM_FILE_DIRECTORIES; files elsewhere cannot be named then (file-cert:, file-root:). The program of `sds-shim exec` is not bound.";
    SDS_SHIM_LOG: "levels" = "info",
        "Least severe level to log: error, warn, info or debug; per scope as well, as in info,sds=debug.";
    SDS_SHIM_LOG_FORMAT: ["text", "json"] = "text",
        "Format of a log line: text for people, or one JSON object.";
}
