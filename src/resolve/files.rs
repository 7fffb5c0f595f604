//! `/etc/hosts` and `/etc/resolv.conf`, as `hosts(5)` and `resolv.conf(5)` describe them. Pure: their texts are
//! arguments.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use super::message::MOST_ADDRESSES;

const PORT: u16 = 53;
const MOST_SERVERS: usize = 3;
/// As many as Kubernetes allows.
const MOST_DOMAINS: usize = 32;

/// The addresses of `name` in a hosts file.
pub(super) fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        let named = words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name));
        found.extend(address.filter(|address| named && !found.contains(address) && found.len() < MOST_ADDRESSES));
    }
    found
}

/// How nameservers are asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolverConfig {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    /// Dots in a name from which on it is asked for as it is at first.
    ndots: usize,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
    /// Whether not always the first nameserver is asked first.
    pub(super) rotate: bool,
    pub(super) tcp_only: bool,
}

impl ResolverConfig {
    /// What is not understood is left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut config = Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            tcp_only: false,
        };
        for line in text.lines() {
            let mut words = line.split(['#', ';']).next().unwrap_or_default().split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if config.servers.len() < MOST_SERVERS => {
                    config.servers.extend(words.next().and_then(server));
                }
                // The last one counts.
                Some("search") => config.search = words.take(MOST_DOMAINS).map(str::to_owned).collect(),
                Some("domain") => config.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| config.option(word)),
                _ => {}
            }
        }
        if config.servers.is_empty() {
            config.servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
        }
        config
    }

    fn option(&mut self, word: &str) {
        let (name, value) = word.split_once(':').unwrap_or((word, ""));
        let value = value.parse::<u32>();
        match (name, value) {
            ("ndots", Ok(dots)) => self.ndots = dots.min(15) as usize,
            ("timeout", Ok(seconds)) => self.timeout = Duration::from_secs(seconds.clamp(1, 30).into()),
            ("attempts", Ok(attempts)) => self.attempts = attempts.clamp(1, 5),
            ("rotate", _) => self.rotate = true,
            ("use-vc", _) => self.tcp_only = true,
            _ => {}
        }
    }

    /// The names that stand for `host`, without a dot at their end, in the order in which they are asked for.
    pub(super) fn candidates(&self, host: &str) -> Vec<String> {
        if let Some(absolute) = host.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let within = |domain: &String| match domain.trim_matches('.') {
            "" => host.to_owned(),
            domain => format!("{host}.{domain}"),
        };
        let mut names: Vec<_> = self.search.iter().map(within).collect();
        let as_it_is = if host.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.retain(|name| name != host);
        names.insert(as_it_is.min(names.len()), host.to_owned());
        names
    }
}

/// A nameserver's address; one of a link (`fe80::1%2`) has the number of its interface.
fn server(word: &str) -> Option<SocketAddr> {
    match word.split_once('%') {
        Some((address, scope)) => Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope.parse().ok()?).into()),
        None => word.parse().ok().map(|address: IpAddr| SocketAddr::new(address, PORT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_addresses_names_and_comments() {
        let text = "# kubelet's\n127.0.0.1\tlocalhost loopback\n::1 localhost\n10.0.0.1 ca.test. CA # 10.0.0.2 x\nnonsense ca\n\
            fe80::1%eth0 x\n10.0.0.3 # ca\n10.0.0.1 ca\n10.0.0.4 ca\n";
        let rows: &[(&str, &[&str])] = &[
            ("localhost", &["127.0.0.1", "::1"]),
            ("LoopBack", &["127.0.0.1"]),
            ("ca.test", &["10.0.0.1"]),
            ("ca", &["10.0.0.1", "10.0.0.4"]),
            ("x", &[]),
            ("test", &[]),
        ];
        for (name, expected) in rows {
            let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(hosts(text, name), expected, "{name}");
        }
        let many: String = (0..100).map(|n| format!("10.0.1.{n} many\n")).collect();
        assert_eq!(hosts(&many, "many").len(), MOST_ADDRESSES);
    }

    fn servers(text: &str) -> Vec<String> {
        ResolverConfig::parse(text).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nameservers_are_read() {
        let rows: &[(&str, &[&str])] = &[
            ("", &["127.0.0.1:53"]),
            ("nameserver\nnameserver x\nnameserver 1.2.3", &["127.0.0.1:53"]),
            ("nameserver 10.0.0.10 # cluster\n#nameserver 10.0.0.1\n;nameserver 10.0.0.1", &["10.0.0.10:53"]),
            (
                "nameserver fd00::a\n nameserver\tfe80::1%2\nnameserver fe80::1%eth0",
                &["[fd00::a]:53", "[fe80::1%2]:53"],
            ),
            (
                "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4",
                &["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"],
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(servers(text), *expected, "{text}");
        }
    }

    #[test]
    fn options_have_bounds() {
        let config = |text: &str| {
            let config = ResolverConfig::parse(text);
            (config.ndots, config.timeout.as_secs(), config.attempts, config.rotate, config.tcp_only)
        };
        let rows = [
            ("", (1, 5, 2, false, false)),
            ("options ndots:5 timeout:2 attempts:3 rotate use-vc edns0", (5, 2, 3, true, true)),
            ("options ndots:5\noptions timeout:1", (5, 1, 2, false, false)),
            ("options ndots:99 timeout:99 attempts:99", (15, 30, 5, false, false)),
            ("options ndots:0 timeout:0 attempts:0", (0, 1, 1, false, false)),
            ("options ndots: timeout:-1 attempts:x ndots", (1, 5, 2, false, false)),
        ];
        for (text, expected) in rows {
            assert_eq!(config(text), expected, "{text}");
        }
    }

    #[test]
    fn the_search_list_is_applied_as_by_glibc() {
        let kubernetes = "search foo.svc.c.local svc.c.local c.local\noptions ndots:5\n";
        let rows: &[(&str, &str, &[&str])] = &[
            ("", "ca", &["ca"]),
            (kubernetes, "ca.sys", &["ca.sys.foo.svc.c.local", "ca.sys.svc.c.local", "ca.sys.c.local", "ca.sys"]),
            (kubernetes, "ca.sys.", &["ca.sys"]),
            (
                kubernetes,
                "a.b.c.d.e.f",
                &["a.b.c.d.e.f", "a.b.c.d.e.f.foo.svc.c.local", "a.b.c.d.e.f.svc.c.local", "a.b.c.d.e.f.c.local"],
            ),
            ("search one\ndomain two\n", "ca", &["ca.two", "ca"]),
            ("domain two\nsearch one. .\n", "ca", &["ca.one", "ca"]),
            ("search one\noptions ndots:0", "ca", &["ca", "ca.one"]),
            ("search one", "ca.x", &["ca.x", "ca.x.one"]),
        ];
        for (text, host, expected) in rows {
            assert_eq!(ResolverConfig::parse(text).candidates(host), *expected, "{host} with {text}");
        }
        let many = format!("search {}", "x ".repeat(100));
        assert_eq!(ResolverConfig::parse(&many).search.len(), MOST_DOMAINS);
    }
}
