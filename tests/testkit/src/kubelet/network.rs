//! The network of a node: a network namespace that stands for the node, a pair of interfaces for each pod, and what
//! kube-proxy and Istio's CNI plugin have iptables do. Nothing of it touches the machine's own network.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    Failure, OrFail,
    nameserver::{Nameserver, Says},
};

/// The node, as pods see it.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The nameserver of the cluster.
pub(super) const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Who is not led to the sidecar: it itself.
const PROXY_UID: u32 = 1337;
/// Where Envoy takes what goes out, and what comes in.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// Ports of Istio's agent, which are for kubelet and Prometheus.
const ISTIO_PORTS: [u16; 3] = [15020, 15021, 15090];

/// Runs a future on a thread in the network namespace of a process: the sockets that it makes are of there.
pub(super) async fn inside<F>(pid: u32, future: F) -> Result<F::Output, Failure>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    let (sender, receiver) = oneshot::channel();
    let runtime = Handle::current();
    // The thread ends with it: one that has changed its namespace is good for nothing else.
    thread::spawn(move || {
        let entered = File::open(format!("/proc/{pid}/ns/net"))
            .and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?));
        let _ = sender.send(entered.map(|()| runtime.block_on(future)));
    });
    let answer = receiver.await.or_fail("wait for the thread in the network namespace")?;
    answer.or_fail(format!("enter the network namespace of process {pid}"))
}

/// Runs a program in the network namespace of a process, with this on its standard input; what it writes.
fn run(pid: u32, command: &[&str], input: &str) -> Result<String, Failure> {
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_fail("run nsenter")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes()).or_fail(format!("tell {command:?} what to do"))?;
    }
    let output = child.wait_with_output().or_fail(format!("wait for {command:?}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{command:?} failed: {}; it had {input:?}", said.trim_end())))
}

fn ip(pid: u32, commands: &str) -> crate::Result {
    run(pid, &["ip", "-batch", "-"], commands).map(drop)
}

/// Names of services and their addresses.
type Names = Arc<Mutex<BTreeMap<String, Ipv4Addr>>>;

/// The network, in the namespace of the node's own process.
pub(super) struct Network {
    node: u32,
    names: Names,
    _nameserver: Nameserver,
}

impl Network {
    /// Sets it up in the network namespace of this process, with a nameserver.
    pub(super) async fn new(node: u32) -> Result<Self, Failure> {
        ip(node, &format!("link set lo up\naddr add {NODE}/32 dev lo\naddr add {NAMESERVER}/32 dev lo\n"))?;
        run(node, &["tee", "/proc/sys/net/ipv4/ip_forward"], "1")?;
        let names = Names::default();
        let known = Arc::clone(&names);
        let nameserver = inside(node, async move {
            Nameserver::start_at(NAMESERVER, move |asked| {
                match known.lock().unwrap_or_else(PoisonError::into_inner).get(&asked.name) {
                    Some(address) => Says::Addresses(vec![(*address).into()]),
                    None => Says::Code(3),
                }
            })
            .await
        });
        let nameserver = nameserver.await??;
        Ok(Self { node, names, _nameserver: nameserver })
    }

    /// The process whose network namespace is the node's.
    pub(super) fn node(&self) -> u32 {
        self.node
    }

    /// Gives a name an address.
    pub(super) fn name(&self, name: String, address: Ipv4Addr) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name, address);
    }

    /// Connects the pod in the network namespace of this process. Its end goes away with the namespace.
    pub(super) fn join(&self, pod: u32, address: Ipv4Addr) -> crate::Result {
        let [.., number] = address.octets();
        let near = format!(
            "link add pod{number} type veth peer name eth0 netns {pod}\nlink set pod{number} up\n\
             route add {address}/32 dev pod{number} src {NODE}\n"
        );
        ip(self.node, &near)?;
        let far = format!(
            "addr add {address}/32 dev eth0\nlink set eth0 up\nroute add {NODE} dev eth0 scope link\n\
             route add default via {NODE}\n"
        );
        ip(pod, &far)
    }

    /// How many pods are connected.
    pub(super) fn joined(&self) -> Result<usize, Failure> {
        Ok(run(self.node, &["ip", "-oneline", "link", "show", "type", "veth"], "")?.lines().count())
    }

    /// Leads what comes for a port of a service to its pod, as kube-proxy does.
    pub(super) fn endpoint(&self, service: (Ipv4Addr, u16), pod: (Ipv4Addr, u16)) -> crate::Result {
        self.proxy("-A", service, pod)
    }

    /// Undoes [`Network::endpoint`].
    pub(super) fn no_endpoint(&self, service: (Ipv4Addr, u16), pod: (Ipv4Addr, u16)) -> crate::Result {
        self.proxy("-D", service, pod)
    }

    fn proxy(&self, action: &str, service: (Ipv4Addr, u16), pod: (Ipv4Addr, u16)) -> crate::Result {
        let rule = format!(
            "-d {}/32 -p tcp -m tcp --dport {} -j DNAT --to-destination {}:{}",
            service.0, service.1, pod.0, pod.1
        );
        // A pod that calls itself must not see itself as the caller.
        let hairpin = format!("-s {0}/32 -d {0}/32 -p tcp -m tcp --dport {1} -j MASQUERADE", pod.0, pod.1);
        let rules = format!(
            "*nat\n{action} PREROUTING {rule}\n{action} OUTPUT {rule}\n{action} POSTROUTING {hairpin}\nCOMMIT\n"
        );
        run(self.node, &["iptables-restore", "--wait", "--noflush"], &rules).map(drop)
    }
}

/// Leads the TCP connections of a pod through its sidecar, as Istio's CNI plugin does; those for `excluded` ports reach
/// the pod directly.
pub(super) fn capture(pod: u32, excluded: &[u16]) -> crate::Result {
    let mut rules = "*nat\n".to_owned();
    rules += &format!("-A OUTPUT -p tcp -m owner --uid-owner {PROXY_UID} -j RETURN\n");
    rules += "-A OUTPUT -p tcp -d 127.0.0.1/32 -j RETURN\n";
    rules += &format!("-A OUTPUT -p tcp -j REDIRECT --to-ports {OUTBOUND}\n");
    for port in ISTIO_PORTS.iter().chain(excluded) {
        rules += &format!("-A PREROUTING -p tcp --dport {port} -j RETURN\n");
    }
    rules += &format!("-A PREROUTING -p tcp -j REDIRECT --to-ports {INBOUND}\nCOMMIT\n");
    run(pod, &["iptables-restore", "--wait", "--noflush"], &rules).map(drop)
}
