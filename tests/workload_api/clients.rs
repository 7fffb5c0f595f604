//! Applications with the usual libraries call a server in a mesh, whose Envoy has its certificate from the same shim: through
//! rotations, an outage of the CA and a restart of the shim, without one call that fails.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use testkit::{
    OrFail, Result,
    development_ca::Fault,
    envoy::{Bootstrap, Envoy, SdsTransport},
    fixture::{Logged, Site},
    httpbin::Httpbin,
    port,
    process::Process,
    workspace,
};
use tonic::Code;

use crate::scene::{socket, with_api};

/// Where `tests/testkit/install-workload-api.sh` puts them.
fn installed(program: &str) -> PathBuf {
    let path = workspace().join("target/workload-api").join(program);
    assert!(path.exists(), "run tests/testkit/install-workload-api.sh");
    path
}

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down for the test".to_owned())
}

/// An application, and how many certificates it has told of.
struct Application {
    process: Process,
    held: usize,
}

impl Application {
    fn start(site: &Site, program: &Path, arguments: &[String]) -> Result<Self> {
        let address = format!("unix://{}", socket(site).display());
        let env = [("SPIFFE_ENDPOINT_SOCKET".to_owned(), address)];
        let process = Process::start("the application", program, arguments, &env, site.workload.path())?;
        Ok(Self { process, held: 0 })
    }

    async fn has_the_next(&mut self) -> testkit::Result {
        let (log, held) = (self.process.log(), self.held);
        let more = || (log.count("certificate ") > held).then_some(());
        self.process.until("the next certificate", more).await?;
        self.held += 1;
        Ok(())
    }

    /// Some calls more.
    async fn goes_on(&self) -> testkit::Result {
        let (log, called) = (self.process.log(), self.process.log().count("called"));
        self.process.until("further calls", || (log.count("called") > called + 1).then_some(())).await
    }
}

async fn lives_through(program: &Path, arguments: impl Fn(u16, &str) -> Vec<String>) -> testkit::Result {
    let site = Site::new().await?;
    let (id, port) = (site.workload.spiffe_id(), port::unshared().or_fail("find a port")?);
    // It is there before anything else is, and before the first certificate.
    site.ca.set_fault(Some(down()));
    let mut application = Application::start(&site, program, &arguments(port, &id))?;
    let mut shim = Logged(with_api(&site).start()?);
    shim.connect().await?;
    shim.wait_for_log("down for the test").await?;
    site.ca.set_fault(None);
    let httpbin = Httpbin::start().await?;
    let bootstrap = Bootstrap::new("sleep", SdsTransport::EnvoyGrpc).port(port).inbound(httpbin.address(), &[id]);
    let mut envoy = Envoy::start("the server's Envoy", site.workload.path(), &bootstrap.build())?;
    envoy.wait_ready().await?;
    application.has_the_next().await?;
    application.goes_on().await?;
    let before = application.process.log().count("failed");
    for _ in 0..3 {
        shim.signal(Signal::SIGUSR1)?;
        application.has_the_next().await?;
        application.goes_on().await?;
    }
    site.ca.set_fault(Some(down()));
    let mark = shim.log().mark();
    shim.signal(Signal::SIGUSR1)?;
    shim.wait_for_log_after(mark, "renewal failed").await?;
    application.goes_on().await?;
    site.ca.set_fault(None);
    application.has_the_next().await?;
    // Without a shim both go on with what they hold.
    shim.terminate().await?;
    application.goes_on().await?;
    let shim = Logged(with_api(&site).start()?);
    application.has_the_next().await?;
    shim.signal(Signal::SIGUSR1)?;
    application.has_the_next().await?;
    application.goes_on().await?;
    let mut process = application.process;
    let ended = process.terminate().await?;
    let lines = process.log().lines();
    assert!(ended.success(), "{lines:#?}");
    let last = lines.iter().rev().find(|line| line.starts_with("calls ")).cloned().unwrap_or_default();
    let numbers: Vec<usize> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [calls, failed, held] = numbers[..] else { panic!("{last:?} in {lines:#?}") };
    println!("{last}, of which {before} before Envoy was ready");
    assert!(calls >= 100 && held >= 7, "{last}");
    assert_eq!(failed, before, "{lines:#?}");
    Ok(())
}

#[tokio::test]
async fn go_spiffe_calls_through_rotations_an_outage_and_a_restart() -> testkit::Result {
    lives_through(&installed("go-spiffe"), |port, id| vec![format!("https://127.0.0.1:{port}/ip"), id.to_owned()]).await
}

#[tokio::test]
async fn py_spiffe_calls_through_rotations_an_outage_and_a_restart() -> testkit::Result {
    let script = workspace().join("tests/workload_api/application.py").display().to_string();
    let arguments = |port, id: &str| vec![script.clone(), format!("127.0.0.1:{port}"), id.to_owned()];
    lives_through(&installed("python/bin/python3"), arguments).await
}

#[tokio::test]
async fn rust_spiffe_calls_through_rotations_an_outage_and_a_restart() -> testkit::Result {
    let arguments = |port, id: &str| vec![format!("127.0.0.1:{port}"), id.to_owned()];
    lives_through(&installed("rust-spiffe"), arguments).await
}
