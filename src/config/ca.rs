use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use super::{
    reader::Reader,
    system_roots::system_roots,
    tls::{self, CaTls},
    variables::{self, Variable},
};

/// Trust anchors for the connection to the CA, relative to the working directory (contract with Istio's agent).
pub(super) const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
const CUSTOM_ROOT_FILE: &str = "./etc/certs/root-cert.pem";
/// The port on which istiod serves without TLS.
const PLAINTEXT_PORT: u16 = 15010;

/// How the CA is reached.
#[derive(Debug)]
pub struct CaConfig {
    /// Where the CA is reached, in the order of preference; at least one.
    pub addresses: Vec<CaAddress>,
    /// Trust anchors for the server certificate.
    pub roots: CaRoots,
    /// Directory of a provisioned client certificate.
    pub provisioned: Option<PathBuf>,
    /// When a client certificate is presented.
    pub mutual_tls: MutualTls,
    /// Which TLS is spoken.
    pub tls: CaTls,
    /// Deadline for reaching the CA in one call.
    pub timeout: Duration,
    /// Deadline for its answer.
    pub answer_timeout: Duration,
    /// `ClusterID` in the metadata of a call.
    pub cluster_id: String,
    /// Further metadata of a call.
    pub headers: Vec<CaHeader>,
    /// `CertSigner` in the request.
    pub cert_signer: Option<String>,
    /// Asked lifetime of a certificate.
    pub ttl: Duration,
}

/// One address of the CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaAddress {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name that the server certificate must carry.
    pub server_name: ServerName,
}

impl CaAddress {
    /// Whether the CA is reached without TLS.
    pub fn is_plaintext(&self) -> bool {
        self.port == PLAINTEXT_PORT
    }
}

impl CaConfig {
    /// The file with the trust anchors for the server certificate.
    pub fn roots_file(&self) -> PathBuf {
        match &self.roots {
            CaRoots::File(file) | CaRoots::System(Some(file)) => file.clone(),
            CaRoots::System(None) => system_roots(),
        }
    }
}

impl fmt::Display for CaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A metadata entry of each call. Its value may be a credential, so it cannot be printed or cloned.
pub struct CaHeader {
    /// Its name, in lower case as HTTP/2 wants it.
    pub name: String,
    /// Its value, visible ASCII.
    pub value: String,
}

impl fmt::Debug for CaHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaHeader({})", self.name)
    }
}

/// Name that the CA's server certificate must carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// Trust anchors for the CA's server certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaRoots {
    /// A PEM file, read anew for each connection.
    File(PathBuf),
    /// The operating system's anchors, in this file when one is named (`SSL_CERT_FILE`), else where such systems keep
    /// them. Read anew for each connection.
    System(Option<PathBuf>),
}

/// When a client certificate is presented to the CA (`SDS_SHIM_CA_MTLS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutualTls {
    /// Whenever one is held; the token alone where the CA refuses it.
    Auto,
    /// In each call.
    Always,
    /// In none.
    Never,
}

/// Reads everything that concerns the CA.
pub(super) fn read(reader: &mut Reader<'_>, discovery_address: Option<&str>) -> CaConfig {
    let several = |text: &str| text.split(',').map(|one| host_and_port(one.trim())).collect();
    // Where CA_ADDR says it, nobody needs what PROXY_CONFIG says.
    let is_named = reader.is_set(&variables::CA_ADDR);
    let discovered = discovery_address.filter(|_| !is_named).and_then(|address| {
        let parsed: Result<Vec<_>, _> = several(address);
        parsed.map_err(|error| reader.mistake(&variables::PROXY_CONFIG, format!("discoveryAddress: {error}"))).ok()
    });
    let addresses = reader
        .parse_with(&variables::CA_ADDR, several)
        .or(discovered)
        .unwrap_or_else(|| vec![("istiod.istio-system.svc".to_owned(), 15012)]);
    let name = reader.parse_with(&variables::ISTIOD_SAN, host_name);
    let addresses = addresses.into_iter().map(|(host, port)| {
        // Inside istiod's own pod and through port-forwards the address says nothing about the name.
        let named_by_address = || if bare(&host) == "localhost" { "istiod.istio-system.svc" } else { bare(&host) };
        let name = name.as_deref().map_or_else(named_by_address, bare).to_owned();
        let server_name = name.parse().map(ServerName::Ip).unwrap_or(ServerName::Dns(name));
        CaAddress { host, port, server_name }
    });
    let provisioned = reader.text(&variables::PROV_CERT).map(PathBuf::from);
    // Whatever else it says, the anchors are those of istiod's configuration map (Istio, `FindRootCAForCA`).
    let custom = reader.text(&variables::PILOT_CERT_PROVIDER).is_some_and(|provider| provider == "custom");
    let roots = match (reader.text(&variables::CA_ROOT_CA), &provisioned, custom) {
        (Some(system), ..) if system == "SYSTEM" => {
            CaRoots::System(reader.text(&variables::SSL_CERT_FILE).map(PathBuf::from))
        }
        (Some(file), ..) => CaRoots::File(file.into()),
        (None, _, true) => CaRoots::File(CUSTOM_ROOT_FILE.into()),
        (None, Some(directory), _) => CaRoots::File(directory.join("root-cert.pem")),
        (None, None, _) => CaRoots::File(ROOT_FILE.into()),
    };
    let modes = [MutualTls::Auto, MutualTls::Always, MutualTls::Never];
    let mutual_tls = reader.choice(&variables::SDS_SHIM_CA_MTLS, modes);
    if mutual_tls == MutualTls::Always && provisioned.is_none() {
        reader.mistake(
            &variables::SDS_SHIM_CA_MTLS,
            "always requires PROV_CERT, because the first call has no certificate to present otherwise",
        );
    }
    CaConfig {
        addresses: addresses.collect(),
        headers: headers(reader),
        cert_signer: reader.text(&variables::ISTIO_META_CERT_SIGNER),
        roots,
        provisioned,
        mutual_tls,
        tls: tls::read(reader),
        timeout: reader.duration(&variables::SDS_SHIM_CA_TIMEOUT).unwrap_or_default(),
        answer_timeout: reader.duration(&variables::SDS_SHIM_CA_ANSWER_TIMEOUT).unwrap_or_default(),
        cluster_id: header_value(reader, &variables::ISTIO_META_CLUSTER_ID).unwrap_or_default(),
        ttl: reader.duration(&variables::SECRET_TTL).unwrap_or_default(),
    }
}

fn headers(reader: &mut Reader<'_>) -> Vec<CaHeader> {
    const PREFIX: &str = "CA_HEADER_";
    let mut headers = Vec::new();
    for variable in reader.env().names().into_iter().filter(|name| name.starts_with(PREFIX)) {
        let name = variable[PREFIX.len()..].to_ascii_lowercase();
        let sendable = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        // These are ours to send; a second value would make the CA refuse both.
        let ours = name.starts_with("grpc-") || ["authorization", "clusterid"].contains(&name.as_str());
        if name.is_empty() || !sendable || ours || name.ends_with("-bin") {
            reader.mistake_in(&variable, "the part after CA_HEADER_ is not a valid metadata name");
            continue;
        }
        let value = reader.env().value(&variable).unwrap_or_default();
        if !visible_ascii(&value) {
            reader.mistake_in(&variable, "only visible ASCII characters can be sent as metadata");
        } else if !value.is_empty() {
            headers.push(CaHeader { name, value });
        }
    }
    headers
}

fn visible_ascii(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// A host name without the dot at its end. That tells the resolver that nothing is to be appended; certificates and
/// SNI have names without it (RFC 6066, section 3).
fn bare(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// A DNS name (RFC 1035, section 2.3.4) or an address.
fn host_name(text: &str) -> Result<String, &'static str> {
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    let name = bare(text);
    if text.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label)) {
        return Ok(text.to_owned());
    }
    Err("expected a DNS name or an IP address")
}

/// gRPC metadata is visible ASCII; anything else would make every call fail.
fn header_value(reader: &mut Reader<'_>, variable: &Variable) -> Option<String> {
    reader.parse_with(variable, |text| {
        if visible_ascii(text) {
            Ok(text.to_owned())
        } else {
            Err("only visible ASCII characters can be sent as metadata")
        }
    })
}

fn host_and_port(text: &str) -> Result<(String, u16), &'static str> {
    const EXPECTED: &str = "expected host:port, such as istiod.istio-system.svc:15012, or several, comma separated";
    let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(EXPECTED)?;
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<IpAddr>().is_ok()).ok_or(EXPECTED)?,
        // An IPv6 address without brackets has no end.
        None if host.contains(':') => return Err(EXPECTED),
        None => host,
    };
    Ok((host_name(host).map_err(|_| EXPECTED)?, port))
}
