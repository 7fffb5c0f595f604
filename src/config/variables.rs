//! The one table of variables: the parser, `sds-shim env` and the search for misspelt names all use it.

/// A variable of the environment as users see it.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: &'static str,
    /// The value that is used when it is unset, in words where it depends on something.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

macro_rules! variables {
    (@name $id:ident) => { stringify!($id) };
    (@name $id:ident $name:literal) => { $name };
    ($($id:ident $(as $name:literal)?: $kind:literal, $default:literal, $help:literal;)*) => {
        $(pub(super) const $id: Variable =
            Variable { name: variables!(@name $id $($name)?), kind: $kind, default: $default, help: $help };)*
        /// Every variable that is read, in the order of the documentation.
        pub const VARIABLES: &[&Variable] = &[$(&$id),*];
    };
}

variables! {
    PROXY_CONFIG: "JSON or YAML", "unset",
        "Istio's ProxyConfig: discoveryAddress is the default of CA_ADDR, caCertificatesPem are further roots for ROOTCA.";
    SDS_SHIM_SOURCE: "ca, files or auto", "files where some are mounted, else ca",
        "Where default and ROOTCA come from: the CA; mounted files; or these at once, and in the background the CA, whose certificate takes their place for good.";
    FILE_MOUNTED_CERTS: "true or false", "false",
        "The mounted files are cert-chain.pem, key.pem and root-cert.pem in ./etc/certs, not those in ./var/run/secrets/workload-spiffe-credentials.";
    SDS_SHIM_CREDENTIAL_BUNDLE: "file", "unset",
        "The mounted key and certificate chain are in this one file, as Kubernetes writes a PodCertificate.";
    SDS_SHIM_TRUST_ANCHORS: "file", "the one beside the mounted certificate; required with SDS_SHIM_CREDENTIAL_BUNDLE",
        "Trust anchors that go with the mounted certificate, such as a projected ClusterTrustBundle, in whatever order.";
    CA_PROVIDER: "Citadel or GkeWorkloadCertificate", "Citadel",
        "Kind of the upstream CA; the second one means the files that GKE mounts.";
    CA_ADDR: "host:port, comma separated", "discoveryAddress of PROXY_CONFIG, else istiod.istio-system.svc:15012",
        "Addresses of the upstream CA in the order of preference; those that failed lately are asked last; port 15010 means plaintext, which shows the token to the network.";
    CA_ROOT_CA: "file or SYSTEM", "./var/run/secrets/istio/root-cert.pem",
        "Trust anchors for the TLS connection to the CA, also served in ROOTCA; SYSTEM means the operating system's, which are not.";
    SSL_CERT_FILE: "file", "the first of those where operating systems keep them",
        "Trust anchors that CA_ROOT_CA=SYSTEM means.";
    PILOT_CERT_PROVIDER: "text", "istiod",
        "Which file CA_ROOT_CA is when unset: custom means ./etc/certs/root-cert.pem; all others mean the usual file.";
    ISTIOD_SAN: "DNS name or IP address", "the host of CA_ADDR; istiod.istio-system.svc for localhost",
        "Name that the CA's server certificate must carry.";
    PROV_CERT: "directory", "unset",
        "Holds key.pem and cert-chain.pem, the client certificate for the CA, and root-cert.pem; read anew for each call; without a usable one the token is used.";
    TRUST_DOMAIN: "trust domain", "cluster.local",
        "Trust domain of the workload's SPIFFE ID.";
    SDS_SHIM_TRUST_DOMAIN_FILE: "file", "unset",
        "Holds the trust domain, which takes the place of TRUST_DOMAIN; when it changes, a certificate is obtained under the new name while the old one is served. While the file is of no use, what was held stays.";
    POD_NAMESPACE: "namespace", "required, unless each request brings its own token or only files are served",
        "Namespace in the workload's SPIFFE ID.";
    SERVICE_ACCOUNT: "name", "required, unless each request brings its own token or only files are served",
        "Service account in the workload's SPIFFE ID.";
    ISTIO_META_CLUSTER_ID: "text", "Kubernetes",
        "Sent to the CA as the metadata ClusterID.";
    ISTIO_META_CERT_SIGNER: "text", "unset",
        "Sent in the request as CertSigner, for CAs that hold several signers.";
    CA_HEADER as "CA_HEADER_*": "text", "unset",
        "Each is sent to the CA as metadata, under the name that follows CA_HEADER_.";
    SECRET_TTL: "Go duration", "24h0m0s",
        "Lifetime that is asked of the CA; what it issues is followed, whatever was asked.";
    SECRET_GRACE_PERIOD_RATIO: "0 to 1", "renew after 45 % to 65 % of the remaining life",
        "Renew when this share of the certificate's life is left; 5 % and 2 s always are.";
    SECRET_GRACE_PERIOD_RATIO_JITTER: "0 to 1", "0.1",
        "The share is chosen uniformly within this distance of SECRET_GRACE_PERIOD_RATIO.";
    SDS_SHIM_AVAILABILITY_TARGET: "Go duration", "unset",
        "Renew early enough that at least this much of the certificate's life is always left.";
    SDS_SHIM_EXTRA_ROOTS: "files, comma separated", "none",
        "Further trust anchors for ROOTCA, PEM, beside those that the CA answers and those of CA_ROOT_CA; a change is pushed at once.";
    SDS_SHIM_BUNDLES: "trust-domain=file, comma separated", "none",
        "Trust anchors of other trust domains, PEM, which vouch for these alone: ROOTCA becomes Envoy's SPIFFE validator, with all other anchors for our own trust domain.";
    SDS_SHIM_CRL: "file", "./var/run/secrets/istio/crl/ca-crl.pem",
        "Certificate revocation lists, PEM, served in ROOTCA when the file is there; it must hold one of each CA that issues certificates of workloads.";
    SDS_SHIM_CRL_FAIL_OPEN: "true or false", "false",
        "Serve no CRL when one has expired; otherwise Envoy refuses the certificates of its issuer then.";
    SDS_SHIM_ROOT_GRACE: "Go duration", "until the last certificate seen under it would have expired",
        "How long an anchor that all its sources have dropped is still served; 0s drops it at once.";
    ECC_SIGNATURE_ALGORITHM: "ECDSA", "ECDSA, or RSA when only WORKLOAD_RSA_KEY_SIZE is set",
        "Algorithm of the workload's key.";
    ECC_CURVE: "P256 or P384", "P256",
        "Curve of an ECDSA key.";
    WORKLOAD_RSA_KEY_SIZE: "2048 to 4096", "unset",
        "Use RSA keys of this size in bits, unless ECC_SIGNATURE_ALGORITHM is set.";
    PKCS8_KEY: "true or false", "true",
        "Give Envoy the key as PKCS#8; false means SEC 1 for ECDSA and PKCS#1 for RSA.";
    WORKLOAD_IDENTITY_SOCKET_FILE: "file name", "socket",
        "Name of the SDS socket in ./var/run/secrets/workload-spiffe-uds.";
    FILE_DEBOUNCE_DURATION: "Go duration", "100ms",
        "How long to wait after a change of a file for the next one, so that what belongs together is read together.";
    SDS_SHIM_FILE_CHECK: "Go duration", "30s",
        "Pause between two looks at served files that are not known to have changed; 0s for none.";
    OUTPUT_CERTS: "directory", "unset",
        "Write key.pem, cert-chain.pem and root-cert.pem there, each generation at once; keys in files are what SDS avoids.";
    SDS_SHIM_OUTPUT_MODE: "octal mode", "0640",
        "Mode of key.pem in OUTPUT_CERTS; the others have 0644.";
    SDS_SHIM_OUTPUT_GID: "group id", "our own",
        "Group of the files in OUTPUT_CERTS.";
    JWT_POLICY: "text", "third-party-jwt",
        "Which token: first-party-jwt means the service account's own at ./var/run/secrets/kubernetes.io/serviceaccount/token; all others mean the projected one with its audience.";
    CREDENTIAL_FETCHER_TYPE: "JWT or GoogleComputeEngine", "JWT",
        "How the workload proves who it is: always with the token's file; GoogleComputeEngine is warned about.";
    SDS_SHIM_TOKEN_SOURCE: "file or request", "file",
        "Where the service-account token comes from: the projected file, or the metadata of each SDS request.";
    SDS_SHIM_TOKEN_AUDIENCE: "text", "istio-ca; any with first-party-jwt",
        "Audience that the token must carry; it is checked before the CA is asked.";
    SDS_SHIM_COMPAT: "istio", "unset",
        "With istio, defaults are those of Istio's agent where ours differ: RSA 2048, PKCS#1, a jitter of 0.01.";
    SDS_SHIM_CA_MTLS: "auto, always or never", "auto",
        "Client certificate towards the CA: where possible; always, which needs PROV_CERT; never.";
    SDS_SHIM_CA_TIMEOUT: "Go duration", "10s",
        "Deadline of one call to the CA, from the look-up of its name to the last byte of its answer.";
    SDS_SHIM_ALLOW_UIDS: "user ids, comma separated", "none",
        "Users who may connect to the SDS socket beside our own; its mode is 0666 then, and they must be able to pass the directories above it.";
    SDS_SHIM_WAIT: "socket or certificate", "socket",
        "What `sds-shim exec` waits for before it starts its command: that the SDS socket listens, or that the first certificate is held.";
    SDS_SHIM_ADMIN: "address:port, unix:PATH or off", "127.0.0.1:15022",
        "Where health, metrics and status are served over HTTP/1.1; others than loopback addresses show them to the network.";
    SDS_SHIM_READY_MIN_LIFE: "Go duration", "0s",
        "Not ready when less than this is left of the life of the certificate that is served.";
    SDS_SHIM_TERMINATION_LOG: "file", "/dev/termination-log",
        "Where the reason is written when the process ends by itself; only a file that is there already.";
    SDS_SHIM_REQUIRE_LOCKED: "secret, locked or none", "locked",
        "Least protection of keys with which to start: secret memory and the whole process locked; locked memory; any.";
    SDS_SHIM_ARENA_KIB: "number of KiB", "2464",
        "Size of the memory that holds keys and everything that is allocated; more serves more streams.";
    SDS_SHIM_SECCOMP: "strict or off", "off",
        "With strict, the kernel refuses every system call that serving does not take; with `sds-shim exec` from the start of its command on, which is not bound.";
    SDS_SHIM_LOG: "levels", "info",
        "Least severe level that is logged: error, warn, info or debug; others for single scopes, as in info,sds=debug.";
    SDS_SHIM_LOG_FORMAT: "text or json", "text",
        "Form of a line of the log: for people, or one JSON object.";
}
