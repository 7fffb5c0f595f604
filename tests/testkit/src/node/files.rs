//! What the programs of a node are configured with. They find it in `/run/node`.

use std::{fs, net::Ipv4Addr, path::Path};

use serde_json::json;

use crate::OrFail;

/// The image of what holds a pod's namespaces.
pub(super) const PAUSE: &str = "localhost/pause:1";

/// Writes all of it into `directory`.
pub(super) fn write(directory: &Path, name: &str, address: Ipv4Addr, programs: [&Path; 2]) -> crate::Result {
    let programs = programs.map(|path| path.display().to_string()).join(" ");
    let files = [
        ("name", name.to_owned()),
        ("address", address.to_string()),
        ("programs", programs + "\n"),
        // What systemd gives containerd.
        ("memlock", "8192\n".to_owned()),
        ("containerd.toml", CONTAINERD.replace("PAUSE", PAUSE)),
        ("kubelet.json", kubelet(address)),
        ("proxy.json", proxy()),
        ("cni/10-bridge.conflist", network()),
    ];
    for (name, content) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap_or(directory)).or_fail("make the node's directory")?;
        fs::write(path, content).or_fail(format!("write {name}"))?;
    }
    Ok(())
}

const CONTAINERD: &str = r#"
version = 3
root = "/run/node/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "PAUSE"
[plugins."io.containerd.cri.v1.runtime"]
  # Who runs the tests may not be allowed to lower it.
  restrict_oom_score_adj = true
  enable_cdi = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/run/node/plugins"]
    conf_dir = "/run/node/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#;

fn kubelet(address: Ipv4Addr) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "address": address,
        // The network is nobody's but the test's.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "clusterDomain": "cluster.local",
        "clusterDNS": [address],
        "resolvConf": "",
        "podLogsDir": "/run/node/pods",
        "volumePluginDir": "/run/node/volume-plugins",
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        // The machine's disk and memory are not the node's.
        "evictionHard": {
            "memory.available": "10Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "registerNode": true,
    })
    .to_string()
}

fn proxy() -> String {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": "/run/node/admin.kubeconfig" },
        "clusterCIDR": "10.244.0.0/16",
        "mode": "iptables",
        "healthzBindAddress": "127.0.0.1:10256",
        // These would be the machine's.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
    .to_string()
}

fn network() -> String {
    let addresses = json!({
        "type": "host-local",
        "dataDir": "/run/node/addresses",
        "ranges": [[{ "subnet": "10.244.0.0/16" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let bridge =
        json!({ "type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true, "ipam": addresses });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge] }).to_string()
}
