//! For whom a request was meant. A browser asks us for whatever site its user looks at, when that site lets its name
//! lead to our address; but it says the name.

use std::net::IpAddr;

use http::{Request, Version, header::HOST, uri::Authority};

/// Whether a request was meant for us: it names an address, or this machine.
///
/// # Errors
/// The status with which it is refused, and why.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), (u16, &'static str)> {
    const ODD: (u16, &str) = (400, "expected exactly one Host header");
    let headers = request.headers().get_all(HOST);
    if headers.iter().count() != 1 && (request.version() != Version::HTTP_10 || headers.iter().count() > 1) {
        return Err(ODD);
    }
    for header in headers {
        // IPv6 without brackets and port, as some write it.
        if header.to_str().is_ok_and(|host| host.parse::<IpAddr>().is_ok()) {
            continue;
        }
        let host = Authority::try_from(header.as_bytes()).map_err(|_| ODD)?;
        is_ours(host.host())?;
    }
    // A proxy's form of the path names another.
    request.uri().host().map_or(Ok(()), is_ours)
}

fn is_ours(host: &str) -> Result<(), (u16, &'static str)> {
    let host = host.trim_end_matches('.');
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let named = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let local = |host: &str| host == "localhost" || host.ends_with(".localhost");
    if bare.parse::<IpAddr>().is_ok()
        || local(&host.to_ascii_lowercase())
        || named().is_some_and(|name| name.eq_ignore_ascii_case(host))
    {
        return Ok(());
    }
    Err((421, "the Host header must be an IP address, localhost or this machine's name: use the address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uri: &str, version: Version, hosts: &[&str]) -> Option<u16> {
        let request =
            hosts.iter().fold(Request::get(uri).version(version), |request, host| request.header(HOST, *host));
        check(&request.body(()).unwrap()).err().map(|(status, _)| status)
    }

    #[test]
    fn only_addresses_and_our_own_names_are_answered() {
        let own = nix::unistd::gethostname().unwrap().into_string().unwrap();
        for host in [
            "10.1.2.3:15022",
            "127.0.0.1",
            "[::1]:15022",
            "[fd00::7]",
            "fd00::7",
            "localhost:15022",
            "LOCALHOST.",
            &own,
        ] {
            assert_eq!(status("/readyz", Version::HTTP_11, &[host]), None, "{host}");
        }
        for host in ["evil.example", "evil.example:15022", "127.0.0.1.evil.example", "localhost.evil.example", "1"] {
            assert_eq!(status("/readyz", Version::HTTP_11, &[host]), Some(421), "{host}");
        }
        assert_eq!(status("http://evil.example/status", Version::HTTP_11, &["127.0.0.1"]), Some(421));
        assert_eq!(status("/readyz", Version::HTTP_10, &[]), None);
        for hosts in [&[][..], &["127.0.0.1", "evil.example"], &[""], &["a b"]] {
            assert_eq!(status("/readyz", Version::HTTP_11, hosts), Some(400), "{hosts:?}");
        }
    }
}
