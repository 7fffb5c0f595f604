//! A network that the control plane shares with nobody.

use std::{net::Ipv4Addr, process::Command};

use nix::sched::{CloneFlags, unshare};

use crate::{Failure, OrFail};

/// Takes this thread, and all that it starts from now on, into a network of their own, where these are addresses of
/// pods: the API server leads nobody to a loopback address. Needs root.
pub fn own_network(pods: &[Ipv4Addr]) -> crate::Result {
    unshare(CloneFlags::CLONE_NEWNET).or_fail("make a network")?;
    ip(&["link", "set", "lo", "up"])?;
    pods.iter().try_for_each(|pod| ip(&["addr", "add", &format!("{pod}/32"), "dev", "lo"]))
}

fn ip(arguments: &[&str]) -> crate::Result {
    let ran = Command::new("ip").args(arguments).output().or_fail("run ip, which `make pod-network` installs")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ran.status.success().then_some(()).ok_or_else(|| Failure::new(format!("ip {arguments:?}: {said}")))
}
