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
    CA_ADDR: "host:port", "istiod.istio-system.svc:15012",
        "Address of the upstream CA; port 15010 means plaintext, which shows the token to the network.";
    CA_ROOT_CA: "file or SYSTEM", "./var/run/secrets/istio/root-cert.pem",
        "Trust anchors for the TLS connection to the CA; SYSTEM means the operating system's.";
    ISTIOD_SAN: "DNS name or IP address", "the host of CA_ADDR; istiod.istio-system.svc for localhost",
        "Name that the CA's server certificate must carry.";
    PROV_CERT: "directory", "unset",
        "Holds key.pem and cert-chain.pem, the client certificate for the CA, and root-cert.pem; read anew for each call.";
    TRUST_DOMAIN: "trust domain", "cluster.local",
        "Trust domain of the workload's SPIFFE ID.";
    POD_NAMESPACE: "namespace", "required, unless each request brings its own token",
        "Namespace in the workload's SPIFFE ID.";
    SERVICE_ACCOUNT: "name", "required, unless each request brings its own token",
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
        "Renew when this share of the certificate's life is left.";
    SECRET_GRACE_PERIOD_RATIO_JITTER: "0 to 1", "0.1",
        "The share is chosen uniformly within this distance of SECRET_GRACE_PERIOD_RATIO.";
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
    SDS_SHIM_TOKEN_SOURCE: "file or request", "file",
        "Where the service-account token comes from: the projected file, or the metadata of each SDS request.";
    SDS_SHIM_TOKEN_AUDIENCE: "text", "istio-ca",
        "Audience that the token must carry; it is checked before the CA is asked.";
    SDS_SHIM_CA_MTLS: "auto, always or never", "auto",
        "Client certificate towards the CA: where possible; always, which needs PROV_CERT; never.";
    SDS_SHIM_CA_TIMEOUT: "Go duration", "10s",
        "Deadline of one call to the CA, from the look-up of its name to the last byte of its answer.";
    SDS_SHIM_ALLOW_UIDS: "user ids, comma separated", "none",
        "Users who may connect to the SDS socket beside our own.";
    SDS_SHIM_REQUIRE_LOCKED: "secret, locked or none", "locked",
        "Least protection of keys with which to start: secret memory and the whole process locked; locked memory; any.";
    SDS_SHIM_ARENA_KIB: "number of KiB", "2048",
        "Size of the memory that holds keys and everything that is allocated; more serves more streams.";
    SDS_SHIM_LOG: "error, warn, info or debug", "info",
        "Least severe level that is logged.";
}
