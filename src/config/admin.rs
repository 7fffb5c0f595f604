use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::{reader::Reader, variables};

/// What is shown to whom, and from when on we are ready.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it is served; `None` when it is not.
    pub listen: Option<AdminAddress>,
    /// How much of a certificate's life must be left to be ready.
    pub min_life: Duration,
}

/// Where health, metrics and status are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

pub(super) fn read(reader: &mut Reader<'_>) -> AdminConfig {
    let listen = reader.parse_with(&variables::SDS_SHIM_ADMIN, |text| match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(Some(AdminAddress::Unix(path.into()))),
        None if text == "off" => Ok(None),
        None => text.parse().map(|address| Some(AdminAddress::Tcp(address))).map_err(|_| EXPECTED),
        Some(_) => Err(EXPECTED),
    });
    AdminConfig {
        listen: listen.flatten(),
        min_life: reader.duration(&variables::SDS_SHIM_READY_MIN_LIFE).unwrap_or_default(),
    }
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
