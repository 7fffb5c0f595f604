//! What keeps sidecars from a certificate, and its end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use testkit::{
    Failure, OrFail,
    development_ca::{Leaf, Pki},
    door::{Door, own_address},
    nameserver::{Nameserver, Says},
};
use tokio::time::{Instant, sleep};

use crate::field::{Common, Crowd, Field, hosts};

/// Seconds from the cure until each had a certificate, ours and theirs.
pub(crate) type Took = [Vec<f64>; 2];

/// Connections are refused from the start.
pub(crate) async fn refused(crowd: Crowd) -> Result<Took, Failure> {
    let mut field = Field::new().await?;
    field.door.close().await;
    field.start(crowd, &Common::default())?;
    sleep(crowd.wait).await;
    field.door.lead_to(field.ca.address()).await?;
    field.served_after(Instant::now()).await
}

/// Connections are refused until what was issued has ended, and for as long again as the crowd waits.
pub(crate) async fn ended(crowd: Crowd) -> Result<Took, Failure> {
    const LIFE: Duration = Duration::from_secs(20);
    let mut field = Field::new().await?;
    let began = Instant::now();
    let env = BTreeMap::from([("SECRET_TTL", format!("{}s", LIFE.as_secs()))]);
    field.start(crowd, &Common { env, ..Common::default() })?;
    field.served_after(began).await?;
    field.door.close().await;
    sleep(LIFE + crowd.wait).await;
    field.door.lead_to(field.ca.address()).await?;
    field.served_after(Instant::now()).await
}

/// The kernel has no way to the CA. A route for one address of the loopback network, which nobody else uses.
pub(crate) async fn unreachable(crowd: Crowd) -> Result<Took, Failure> {
    struct Unreachable(IpAddr);
    impl Unreachable {
        fn set(&self, verb: &str) -> testkit::Result {
            let to = self.0.to_string();
            let ran = Command::new("ip").args(["route", verb, "unreachable", &to, "table", "local"]).output();
            let ran = ran.or_fail("run ip (make pod-network)")?;
            let text = String::from_utf8_lossy(&ran.stderr).into_owned();
            if ran.status.success() { Ok(()) } else { Err(Failure::new(format!("ip route {verb}: {text}"))) }
        }
    }
    impl Drop for Unreachable {
        fn drop(&mut self) {
            // It is gone already where all went well.
            drop(self.set("del"));
        }
    }
    let mut field = Field::new().await?;
    let route = Unreachable(field.door.address().ip());
    route.set("add")?;
    field.start(crowd, &Common::default())?;
    sleep(crowd.wait).await;
    route.set("del")?;
    field.served_after(Instant::now()).await
}

/// The mount has another root than that of the CA's server.
pub(crate) async fn another_root(crowd: Crowd) -> Result<Took, Failure> {
    let mut field = Field::new().await?;
    let root = Some(Pki::new("old").root_pem());
    field.start(crowd, &Common { root, ..Common::default() })?;
    sleep(crowd.wait).await;
    let root = field.ca.root_pem();
    let cured = Instant::now();
    field.each(|workload| workload.write_root(&root))?;
    field.served_after(cured).await
}

/// Behind the address of before packets go nowhere, and the CA is at another one, with the same port.
async fn moved(field: &mut Field) -> Result<(SocketAddr, Door), Failure> {
    let old = field.door.address();
    field.door.lead_nowhere().await?;
    let new = SocketAddr::new(own_address().ip(), old.port());
    Ok((old, Door::at(new, field.ca.address()).await?))
}

/// The nameserver gives another address.
pub(crate) async fn another_address(crowd: Crowd) -> Result<Took, Failure> {
    let mut field = Field::new().await?;
    let (old, new) = moved(&mut field).await?;
    let addresses = [old.ip(), new.address().ip()];
    let which = Arc::new(AtomicU8::new(0));
    let asked = Arc::clone(&which);
    let says = move |_: &_| Says::Addresses(vec![addresses[usize::from(asked.load(Ordering::Relaxed))]]);
    let nameserver = Nameserver::start(says).await?;
    let resolv_conf = format!("nameserver {}\n", nameserver.address());
    field.start(crowd, &Common { files: vec![("resolv.conf", resolv_conf)], ..Common::default() })?;
    sleep(crowd.wait).await;
    which.store(1, Ordering::Relaxed);
    field.served_after(Instant::now()).await
}

/// `/etc/hosts` gives another address.
pub(crate) async fn another_line(crowd: Crowd) -> Result<Took, Failure> {
    let mut field = Field::new().await?;
    let (_, new) = moved(&mut field).await?;
    field.start(crowd, &Common::default())?;
    sleep(crowd.wait).await;
    let cured = Instant::now();
    field.each(|workload| std::fs::write(workload.path().join("hosts"), hosts(new.address().ip())))?;
    field.served_after(cured).await
}

/// `/etc/resolv.conf` leads to a nameserver that answers, after one that did not know the name.
pub(crate) async fn another_nameserver(crowd: Crowd) -> Result<Took, Failure> {
    let mut field = Field::new().await?;
    let address = field.door.address();
    let wrong = Nameserver::start(|_| Says::Code(3)).await?;
    let right = Nameserver::start(move |_| Says::Addresses(vec![address.ip()])).await?;
    let line = |nameserver: &Nameserver| format!("nameserver {}\n", nameserver.address());
    field.start(crowd, &Common { files: vec![("resolv.conf", line(&wrong))], ..Common::default() })?;
    sleep(crowd.wait).await;
    let cured = Instant::now();
    field.each(|workload| std::fs::write(workload.path().join("resolv.conf"), line(&right)))?;
    field.served_after(cured).await
}

/// The certificate in `PROV_CERT` is of a root that the CA does not know, and no token may stand in for it.
pub(crate) async fn another_credential(crowd: Crowd) -> Result<Took, Failure> {
    let mut field = Field::new().await?;
    let directory = field.directory().join("provisioned");
    std::fs::create_dir_all(&directory).or_fail("make the directory of PROV_CERT")?;
    let id = testkit::workload::spiffe_id("foo", "sleep");
    let provision = |pki: &Pki, root: String| -> std::io::Result<()> {
        let issued = pki.issue(&Leaf::workload(&id, Duration::from_secs(3600)));
        std::fs::write(directory.join("root-cert.pem"), root)?;
        std::fs::write(directory.join("key.pem"), &issued.key_pem)?;
        std::fs::write(directory.join("cert-chain.pem"), &issued.chain_pem)
    };
    provision(&Pki::new("foreign"), field.ca.root_pem()).or_fail("write PROV_CERT")?;
    let env = [("PROV_CERT", directory.display().to_string()), ("SDS_SHIM_CA_MTLS", "always".to_owned())];
    field.start(crowd, &Common { env: env.into(), ..Common::default() })?;
    sleep(crowd.wait).await;
    let cured = Instant::now();
    provision(&field.pki, field.ca.root_pem()).or_fail("write PROV_CERT")?;
    field.served_after(cured).await
}
