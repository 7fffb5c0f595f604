//! A plain `cargo build` with the distribution's libssl: what it keeps of the protection of keys, and that OpenSSL's
//! own configuration chooses its providers. These tests start the shim as another user, so they need root.

use testkit::{
    OrFail,
    confined::Confinement,
    fixture::{Logged, Site},
    sds,
    shim::ShimBuilder,
};

/// An OpenSSL configuration that allows only what a FIPS provider offers, and brings none.
const FIPS_ALONE: &str = "openssl_conf = start\n[start]\nalg_section = algorithms\n[algorithms]\n\
     default_properties = fips=yes\n";

/// Starts, tells all of this, gets a certificate and serves it, and the next one after it.
async fn serves(shim: ShimBuilder, told: &[&str]) -> testkit::Result {
    let mut shim = Logged(shim.start()?);
    let client = shim.connect().await?;
    for part in told {
        shim.wait_for_log(part).await?;
    }
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let first = stream.recv().await?;
    assert!(!testkit::fixture::serial(&first)?.is_empty());
    stream.send(sds::ack(&first, &["default"]));
    shim.signal(nix::sys::signal::Signal::SIGUSR1)?;
    let next = stream.recv().await?;
    assert_ne!(testkit::fixture::serial(&next)?, testkit::fixture::serial(&first)?);
    let ended = shim.terminate().await?;
    assert!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test]
async fn keys_are_in_secret_memory_under_the_usual_limit() -> testkit::Result {
    let site = Site::new().await?;
    let told = [
        "keys are in secret memory (32 KiB), the rest of the process is not locked",
        "the process as a whole is not locked in memory",
    ];
    serves(site.shim().distribution().confined(Confinement::default()), &told).await
}

#[tokio::test]
async fn all_is_locked_where_no_limit_is_in_the_way() -> testkit::Result {
    let site = Site::new().await?;
    let shim = site.shim().distribution().env("SDS_SHIM_REQUIRE_LOCKED", "secret");
    let mut refused = Logged(shim.clone().confined(Confinement::default()).start()?);
    assert_eq!(refused.wait_exit().await?.code(), Some(71));
    assert!(refused.log().contains("raise it to at least"), "the way out is not told");
    let capable = Confinement { ipc_lock: true, ..Confinement::default() };
    serves(shim.confined(capable), &["keys are in secret memory (32 KiB), the whole process is locked"]).await
}

#[tokio::test]
async fn openssl_takes_its_providers_from_its_configuration() -> testkit::Result {
    let site = Site::new().await?;
    let configuration = site.workload.path().join("openssl.cnf");
    std::fs::write(&configuration, FIPS_ALONE).or_fail("write OpenSSL's configuration")?;
    let with = |shim: ShimBuilder| shim.env("OPENSSL_CONF", configuration.display().to_string());
    // No key is made by other code than what is allowed; the process lives and says why it has none.
    let mut shim = Logged(with(site.shim()).distribution().start()?);
    shim.connect().await?;
    shim.wait_for_log("unsupported").await?;
    assert_eq!(site.ca.calls().len(), 0);
    // The shipped one has all its code inside, and no file chooses other code.
    shim.terminate().await?;
    serves(with(site.shim()), &[]).await
}
