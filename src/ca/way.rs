use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use super::dial::Resolved;
pub use crate::resolve::FILES as NAME_FILES;
use crate::{config::CaAddress, resolve};

/// The way to one address of the CA as it was after a call, to see whether it has become another one since.
pub struct Way {
    host: String,
    /// Where the name led in the call.
    addresses: Vec<SocketAddr>,
    /// From where packets go there.
    sources: Vec<Option<IpAddr>>,
}

impl Way {
    pub(super) fn new(address: &CaAddress, resolved: &Resolved) -> Self {
        let at = |ip| SocketAddr::new(ip, address.port);
        let addresses: Vec<_> = resolved.addresses().into_iter().map(at).collect();
        let sources = addresses.iter().map(source).collect();
        Self { host: address.host.clone(), addresses, sources }
    }

    /// Whether packets go there from another address of ours than before, or do so again: there is a network, or
    /// another one.
    pub fn has_another_source(&self) -> bool {
        let now = self.addresses.iter().map(source);
        now.zip(&self.sources).any(|(now, before)| now.is_some() && now != *before)
    }

    /// Whether the name can be resolved at all: an address is its own.
    pub fn is_named(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// Whether the name led anywhere.
    pub fn was_found(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// Whether the name leads to none of the addresses any more, but to others. A part of them is no change: some
    /// nameservers tell a few of many, each time others.
    pub async fn leads_elsewhere(&self, limit: Duration) -> bool {
        let found = Box::pin(resolve::lookup(&self.host, limit)).await.unwrap_or_default();
        !found.is_empty() && !found.iter().any(|ip| self.addresses.iter().any(|before| before.ip() == *ip))
    }
}

/// From which of our addresses packets go there, if they can. A UDP socket that is connected sends nothing; the kernel
/// looks for a route, and that is all.
fn source(to: &SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(host: &str, addresses: &[&str], sources: &[Option<&str>]) -> Way {
        Way {
            host: host.to_owned(),
            addresses: addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 15012)).collect(),
            sources: sources.iter().map(|ip| ip.map(|ip| ip.parse().unwrap())).collect(),
        }
    }

    #[test]
    fn a_network_that_is_back_is_another_source_and_one_that_went_is_not() {
        let rows: [(&str, Option<&str>, bool); 4] = [
            ("127.0.0.1", Some("127.0.0.1"), false),
            ("127.0.0.1", None, true),
            ("127.0.0.1", Some("10.0.0.1"), true),
            // There is no way to a broadcast address for who has not asked for that.
            ("255.255.255.255", Some("10.0.0.1"), false),
        ];
        for (to, before, expected) in rows {
            assert_eq!(way("ca", &[to], &[before]).has_another_source(), expected, "{to} from {before:?}");
        }
    }

    #[tokio::test]
    async fn a_name_has_moved_when_all_its_addresses_are_new() {
        let limit = Duration::from_secs(1);
        for (before, expected) in [
            (vec!["127.0.0.9"], true),
            (vec![], true),
            (vec!["127.0.0.9", "127.0.0.1"], false),
            (vec!["127.0.0.1"], false),
        ] {
            let sources = vec![None; before.len()];
            assert_eq!(way("127.0.0.1", &before, &sources).leads_elsewhere(limit).await, expected, "{before:?}");
        }
        let nowhere = way("no such name", &["127.0.0.9"], &[None]);
        assert!(!nowhere.leads_elsewhere(limit).await, "a name that leads nowhere is no cure");
        assert!(nowhere.is_named() && !way("::1", &[], &[]).is_named());
    }
}
