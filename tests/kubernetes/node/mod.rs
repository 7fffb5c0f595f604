//! The chart on a real node, as users have it: kubelet, containerd, runc, kube-proxy and a cluster DNS. What only a kubelet
//! gives is seen here; src/manual/evidence/real_node.md has the times. `make test-kubernetes` runs it.

mod authority;
mod certificate;
mod crash;
mod crowd;
mod helm_test;
mod istio;
mod life;
mod logs;
mod mesh;
mod network_policy;
mod node_life;
mod prometheus;
mod promises;
mod readme;
mod refresh;
mod remains;
mod renewals;
mod traffic;
mod upgrade;
mod user_namespaces;
