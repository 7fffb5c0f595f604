use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::{reader::Reader, variables};
use crate::identity::SpiffePattern;

/// What is shown to whom, and from when on we are ready.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it is served; `None` when it is not.
    pub listen: Option<AdminAddress>,
    /// Where it is served over mutual TLS as well, and to whom.
    pub tls: Option<AdminTls>,
    /// How much of a certificate's life must be left to be ready.
    pub min_life: Duration,
}

/// How the same is served over mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTls {
    /// Where.
    pub address: SocketAddr,
    /// To whom.
    pub clients: Vec<SpiffePattern>,
}

/// Where health, metrics and status are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

pub(super) fn read(reader: &mut Reader<'_>, from_request: bool) -> AdminConfig {
    let listen = reader.parse_with(&variables::SDS_SHIM_ADMIN, |text| match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(Some(AdminAddress::Unix(path.into()))),
        None if text == "off" => Ok(None),
        None => text.parse().map(|address| Some(AdminAddress::Tcp(address))).map_err(|_| EXPECTED),
        Some(_) => Err(EXPECTED),
    });
    AdminConfig {
        listen: listen.flatten(),
        tls: tls(reader, from_request),
        min_life: reader.duration(&variables::SDS_SHIM_READY_MIN_LIFE).unwrap_or_default(),
    }
}

/// Nobody is let in who is not named: a mesh has more workloads than those that should read this.
fn tls(reader: &mut Reader<'_>, from_request: bool) -> Option<AdminTls> {
    const ADDRESS: &str = "expected an IP address with a port, such as 0.0.0.0:15023, or off";
    const WHOM: &str = "it is required with SDS_SHIM_ADMIN_TLS: the SPIFFE IDs that may connect, such as \
                        spiffe://cluster.local/ns/monitoring/sa/prometheus";
    let address = reader.parse_with(&variables::SDS_SHIM_ADMIN_TLS, |text| match text {
        "off" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| ADDRESS),
    });
    let address = address.flatten();
    let clients = reader.parse_with(&variables::SDS_SHIM_ADMIN_TLS_CLIENTS, |text| {
        text.split(',').map(|one| one.trim().parse()).collect::<Result<Vec<_>, _>>()
    });
    let address = address?;
    if from_request {
        let why = "with SDS_SHIM_TOKEN_SOURCE=request there is no certificate of our own to serve it with";
        reader.mistake(&variables::SDS_SHIM_ADMIN_TLS, why);
    }
    if !reader.is_set(&variables::SDS_SHIM_ADMIN_TLS_CLIENTS) {
        reader.mistake(&variables::SDS_SHIM_ADMIN_TLS_CLIENTS, WHOM);
    }
    Some(AdminTls { address, clients: clients.unwrap_or_default() })
}

const EXPECTED: &str = "expected an address with a port such as 127.0.0.1:15022, unix:PATH, or off";

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
