use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use nix::sys::signal::Signal;

use super::{
    AdminAddress,
    reader::{Mistake, Reader},
    variables,
};

/// What is done once trust anchors, revocation lists or the identity have changed (`SDS_SHIM_ON_CHANGE`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnChange {
    /// A POST to Envoy's administration interface.
    Post(AdminUrl),
    /// A signal to the command that `exec` has started.
    Signal(Signal),
}

/// A path of Envoy's administration interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminUrl {
    /// Where it is served: on the loopback interface, or at a socket.
    pub address: AdminAddress,
    /// The path with its query.
    pub path: String,
}

impl OnChange {
    /// Whether it can be done where there is a command, or none.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, has_command: bool) -> Result<(), Mistake> {
        match self {
            Self::Signal(_) if !has_command => {
                let what = "a signal needs a command to receive it: start the shim with `sds-shim exec`";
                Err(Mistake::new(variables::SDS_SHIM_ON_CHANGE.name, what))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Post(AdminUrl { address: AdminAddress::Tcp(address), path }) => {
                write!(f, "POST http://{address}{path}")
            }
            Self::Post(AdminUrl { address, path }) => write!(f, "POST {address}:{path}"),
            Self::Signal(signal) => signal.fmt(f),
        }
    }
}

const EXPECTED: &str = "expected http://127.0.0.1:PORT/PATH, unix:SOCKET:/PATH, or a signal such as SIGHUP for the \
                        command of `exec`";
const LOOPBACK: &str = "the address must be a loopback address: Envoy's administration interface must not be \
                        reachable from elsewhere";
/// Envoy 1.40: without `graceful` it closes its listeners at once, without `skip_exit` after the drain time; nothing
/// opens them again.
const CLOSES: &str = "/drain_listeners closes Envoy's listeners for good; /drain_listeners?graceful&skip_exit drains \
                      connections and keeps them open";

pub(super) fn read(reader: &mut Reader<'_>, from_request: bool) -> Option<OnChange> {
    let action = reader.parse_with(&variables::SDS_SHIM_ON_CHANGE, parse)?;
    if from_request {
        let what = "with SDS_SHIM_TOKEN_SOURCE=request there is no identity of our own";
        reader.mistake(&variables::SDS_SHIM_ON_CHANGE, what);
    }
    Some(action)
}

fn parse(text: &str) -> Result<OnChange, &'static str> {
    let (address, path) = if let Some(rest) = text.strip_prefix("http://") {
        let (host, path) = rest.split_at(rest.find('/').ok_or(EXPECTED)?);
        (AdminAddress::Tcp(loopback(host)?), path)
    } else if let Some(rest) = text.strip_prefix("unix:") {
        let (socket, path) = rest.split_at(rest.rfind(":/").filter(|at| *at > 0).ok_or(EXPECTED)?);
        (AdminAddress::Unix(socket.into()), &path[1..])
    } else {
        let signal = text.parse::<Signal>().ok().filter(|signal| *signal != Signal::SIGSTOP);
        return signal.map(OnChange::Signal).ok_or(EXPECTED);
    };
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(EXPECTED);
    }
    let (name, query) = path.split_once('?').unwrap_or((path, ""));
    let has = |wanted| query.split('&').any(|word| word.split('=').next() == Some(wanted));
    if name == "/drain_listeners" && !(has("graceful") && has("skip_exit")) {
        return Err(CLOSES);
    }
    Ok(OnChange::Post(AdminUrl { address, path: path.to_owned() }))
}

fn loopback(host: &str) -> Result<SocketAddr, &'static str> {
    let address = match host.strip_prefix("localhost:") {
        Some(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().map_err(|_| EXPECTED)?),
        None => host.parse().map_err(|_| EXPECTED)?,
    };
    if address.ip().is_loopback() { Ok(address) } else { Err(LOOPBACK) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_signals_are_distinguished() {
        let url = "http://127.0.0.1:15000/drain_listeners?graceful&skip_exit";
        assert_eq!(parse(url).unwrap().to_string(), format!("POST {url}"));
        assert_eq!(parse(&url.replace("127.0.0.1", "localhost")).unwrap().to_string(), format!("POST {url}"));
        let socket = "unix:./a:b/admin.sock:/drain_listeners?graceful&skip_exit";
        assert_eq!(parse(socket).unwrap().to_string(), format!("POST {socket}"));
        assert!(parse("http://[::1]:15000/drain_listeners?inboundonly&graceful=1&skip_exit=1").is_ok());
        assert!(parse("http://127.0.0.1:15000/runtime_modify?a=b").is_ok());
        assert_eq!(parse("SIGHUP"), Ok(OnChange::Signal(Signal::SIGHUP)));
    }

    #[test]
    fn harmful_actions_are_rejected() {
        for query in ["", "?graceful", "?skip_exit", "?graceful_&skip_exit", "?inboundonly"] {
            assert_eq!(parse(&format!("http://127.0.0.1:15000/drain_listeners{query}")), Err(CLOSES), "{query}");
        }
        assert_eq!(parse("http://10.0.0.1:15000/x"), Err(LOOPBACK));
        for text in [
            "drain",
            "HUP",
            "SIGSTOP",
            "http://127.0.0.1:15000",
            "unix::/x",
            "unix:/a/b",
            "http://host:15000/x",
            "https://127.0.0.1:1/x",
        ] {
            assert_eq!(parse(text), Err(EXPECTED), "{text}");
        }
        for text in ["http://127.0.0.1:1/a b", "http://127.0.0.1:1/a\r\nb: c", "http://127.0.0.1:1/a#b"] {
            assert_eq!(parse(text), Err(EXPECTED), "{text}");
        }
    }
}
