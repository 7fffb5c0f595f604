//! spiffe-helper, which writes what a Workload API tells into files, and a client that calls an Envoy with them.

use std::fs;

use nix::sys::signal::Signal;
use openssl::{pkey::PKey, x509::X509};
use testkit::{
    Failure, OrFail,
    development_ca::{Fault, Issued},
    envoy::{Bootstrap, Envoy, SdsTransport},
    fixture::{Logged, Site, plain_serial, write},
    http,
    httpbin::Httpbin,
    port,
    process::Process,
    tls, workspace,
};
use tokio::net::TcpStream;
use tonic::Code;

use crate::scene::{socket, with_api};

#[tokio::test]
async fn spiffe_helper_writes_each_certificate() -> testkit::Result {
    let program = workspace().join("target/workload-api/spiffe-helper");
    assert!(program.exists(), "run tests/testkit/install-workload-api.sh");
    let site = Site::new().await?;
    let place = site.workload.path().join("helper");
    fs::create_dir_all(&place).or_fail("make a directory")?;
    let configuration = place.join("helper.conf");
    write(
        &configuration,
        &format!(
            r#"agent_address = "{}"
               cert_dir = "{}"
               svid_file_name = "svid.pem"
               svid_key_file_name = "key.pem"
               svid_bundle_file_name = "bundle.pem""#,
            socket(&site).display(),
            place.display()
        ),
    )?;
    let arguments = ["-config", &configuration.display().to_string()].map(str::to_owned);
    // It is there before the socket is.
    let helper = Process::start("spiffe-helper", &program, &arguments, &[], &place)?;
    let mut shim = Logged(with_api(&site).start()?);
    shim.connect().await?;

    // What is written is the last certificate, with its key and its anchors.
    let held = || -> Option<String> {
        let read = |name| fs::read(place.join(name)).ok();
        let leaf = X509::stack_from_pem(&read("svid.pem")?).ok()?.into_iter().next()?;
        let key = PKey::private_key_from_pem(&read("key.pem")?).ok()?;
        let anchors = X509::stack_from_pem(&read("bundle.pem")?).ok()?;
        let root = X509::from_pem(site.pki.root_pem().as_bytes()).ok()?;
        let serial = leaf.serial_number().to_bn().and_then(|number| number.to_hex_str()).ok()?;
        let fits = leaf.public_key().ok()?.public_eq(&key) && anchors == [root];
        fits.then(|| plain_serial(&serial))
    };
    let (httpbin, port) = (Httpbin::start().await?, port::unshared().or_fail("find a port")?);
    let bootstrap = Bootstrap::new("sleep", SdsTransport::EnvoyGrpc).port(port);
    let bootstrap = bootstrap.inbound(httpbin.address(), &[site.workload.spiffe_id()]).build();
    let mut envoy = Envoy::start("the server's Envoy", site.workload.path(), &bootstrap)?;
    envoy.wait_ready().await?;
    // It is in its files, and the server takes it.
    let follows = async || {
        let last = || (held().as_ref() == site.issued().last()).then_some(());
        helper.until("the last certificate in its files", last).await?;
        let read = |name| fs::read_to_string(place.join(name)).or_fail("read what was written");
        let issued = Issued { chain_pem: read("svid.pem")?, key_pem: read("key.pem")? };
        let stream = TcpStream::connect(("127.0.0.1", port)).await.or_fail("connect to Envoy")?;
        let stream = tls::connect(stream, &read("bundle.pem")?, Some(&issued)).await?;
        let answer = http::get(stream, "localhost", "/ip").await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Ok::<_, Failure>(())
    };
    follows().await?;
    for _ in 0..3 {
        let mut renew = site.shim().arg("renew").start()?;
        assert!(renew.wait_exit().await?.success(), "{:?}", renew.log().lines());
        follows().await?;
    }
    site.ca.set_fault(Some(Fault::Status(Code::Unavailable, "down for the test".to_owned())));
    shim.signal(Signal::SIGUSR1)?;
    shim.wait_for_log("renewal failed: ").await?;
    follows().await?;
    shim.terminate().await?;
    follows().await?;
    site.ca.set_fault(None);
    let before = site.issued().len();
    let _shim = Logged(with_api(&site).start()?);
    helper.until("another certificate", || (site.issued().len() > before).then_some(())).await?;
    follows().await
}
