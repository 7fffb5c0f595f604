//! The CA's name, looked up with nameservers that behave well and badly. Namespaces give the shim files of its own in
//! `/etc`, so these tests need root.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use testkit::{
    Failure, OrFail,
    confined::{Confinement, MEMLOCK},
    development_ca::{CaOptions, Fault},
    door::own_address,
    fixture::{Open, Site, attempts::failed, renew, within},
    nameserver::{Asked, Nameserver, Says, Silent, with_files},
    shim::{Shim, ShimBuilder},
};

const CLUSTER: &str = "search foo.svc.cluster.test svc.cluster.test cluster.test\noptions ndots:5 timeout:2\n";
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

/// A shim whose CA has the name `host` and whose `/etc/resolv.conf` leads to this nameserver.
fn shim(scene: &Site, host: &str, nameserver: &Nameserver, resolv_conf: &str) -> Result<ShimBuilder, Failure> {
    let resolv_conf = format!("nameserver {}\n{resolv_conf}", nameserver.address());
    started_with(scene, host, &[("resolv.conf", &resolv_conf)])
}

fn started_with(scene: &Site, host: &str, files: &[(&str, &str)]) -> Result<ShimBuilder, Failure> {
    let launcher = with_files(scene.workload.path(), files)?;
    let launcher: Vec<_> = launcher.iter().map(String::as_str).collect();
    let address = format!("{host}:{}", scene.ca.address().port());
    let shim = scene.shim().through(&launcher).env("CA_ADDR", address);
    Ok(shim.env("ISTIOD_SAN", "istiod.istio-system.svc").env("SDS_SHIM_LOG", "debug"))
}

/// A line of `/proc/PID/status`, in KiB or as a plain number.
fn status(shim: &Shim, name: &str) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", shim.pid())).or_fail("read its status")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    value.trim().trim_end_matches(" kB").parse().or_fail("read a number of its status")
}

fn names(asked: &[Asked], six: bool) -> Vec<&str> {
    asked.iter().filter(|asked| asked.six == six).map(|asked| asked.name.as_str()).collect()
}

#[tokio::test]
async fn the_search_list_is_gone_through_in_order() -> testkit::Result {
    let rows: [(&str, &str, &[&str]); 4] = [
        ("istiod.sys", CLUSTER, &["istiod.sys.foo.svc.cluster.test", "istiod.sys.svc.cluster.test"]),
        ("istiod.sys.svc.cluster.test.", CLUSTER, &["istiod.sys.svc.cluster.test"]),
        ("istiod.sys.svc", "search cluster.test\n", &["istiod.sys.svc", "istiod.sys.svc.cluster.test"]),
        ("istiod.sys.svc.cluster.test", "options use-vc\n", &["istiod.sys.svc.cluster.test"]),
    ];
    for (host, resolv_conf, expected) in rows {
        let scene = Site::new().await?;
        let nameserver = Nameserver::start(|asked| match asked.name.as_str() {
            "istiod.sys.svc.cluster.test" => Says::Addresses(vec![LOOPBACK.into()]),
            _ => Says::Code(3),
        })
        .await?;
        let mut shim = shim(&scene, host, &nameserver, resolv_conf)?.start()?;
        Open::connect(&mut shim, "default").await?.next(&shim).await?;
        let asked = nameserver.asked();
        assert_eq!(names(&asked, false), expected, "{host}");
        assert_eq!(names(&asked, true), expected, "{host}");
        assert!(asked.iter().all(|asked| asked.tcp == resolv_conf.contains("use-vc")));
    }
    Ok(())
}

#[tokio::test]
async fn a_nonexistent_name_is_reported_once_with_its_nameserver() -> testkit::Result {
    let scene = Site::new().await?;
    let nameserver = Nameserver::start(|_| Says::Code(3)).await?;
    let mut shim = shim(&scene, "istiod.sys", &nameserver, CLUSTER)?.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    failed(&shim, 0, 3).await?;
    let expected = format!(
        "cannot resolve istiod.sys: {} says NXDOMAIN, also with 3 domains of the search list in \
         /etc/resolv.conf",
        nameserver.address()
    );
    assert_eq!(shim.log().count(&expected), 1);
    assert_eq!(shim.log().count("cannot obtain a certificate"), 1);
    stream.expect_silence(&shim).await
}

#[tokio::test]
async fn the_next_nameserver_is_asked_when_one_fails() -> testkit::Result {
    let scene = Site::new().await?;
    let broken = Nameserver::start(|_| Says::Code(2)).await?;
    let mute = Nameserver::start(|_| Says::Nothing).await?;
    let good = Nameserver::start(|_| Says::Addresses(vec![LOOPBACK.into()])).await?;
    let others = format!("nameserver {}\nnameserver {}\noptions timeout:1\n", mute.address(), good.address());
    let mut shim = shim(&scene, "ca.test", &broken, &others)?.start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    for nameserver in [broken, mute, good] {
        assert_eq!(nameserver.asked().len(), 2, "both kinds, once");
    }
    Ok(())
}

/// Somebody on the way drops the questions for IPv6 addresses.
#[tokio::test]
async fn one_kind_of_address_is_enough() -> testkit::Result {
    let scene = Site::new().await?;
    let nameserver = Nameserver::start(|asked| match asked.six {
        true => Says::Nothing,
        false => Says::Addresses(vec![LOOPBACK.into()]),
    })
    .await?;
    let mut shim = shim(&scene, "ca.test", &nameserver, "options timeout:30\n")?.start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(nameserver.asked().len(), 2);
    Ok(())
}

#[tokio::test]
async fn two_thousand_addresses_fit_into_the_budget() -> testkit::Result {
    let scene = Site::new().await?;
    // The CA is the first of them; nobody listens at the others.
    let answer = (0..2000_u32).map(|number| IpAddr::from((0x7f00_0001 + number).to_be_bytes())).collect::<Vec<_>>();
    let nameserver = Nameserver::start(move |_| Says::Addresses(answer.clone())).await?;
    let shim = shim(&scene, "ca.test", &nameserver, "")?.confined(Confinement::default());
    let mut shim = shim.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    for _ in 0..5 {
        stream.next(&shim).await?;
        renew(&shim)?;
    }
    assert!(nameserver.asked().iter().any(|asked| asked.tcp && !asked.six), "the answer does not fit into UDP");
    let (peak, threads) = (status(&shim, "VmPeak")?, status(&shim, "Threads")?);
    println!("VmPeak {peak} KiB");
    assert!(peak <= MEMLOCK >> 10, "{peak} KiB were mapped");
    assert_eq!(threads, 1);
    Ok(())
}

#[tokio::test]
async fn a_process_that_may_have_one_thread_alone_finds_its_ca() -> testkit::Result {
    let scene = Site::new().await?;
    let nameserver = Nameserver::start(|_| Says::Addresses(vec![LOOPBACK.into()])).await?;
    let confinement = Confinement { alone: true, ..Confinement::default() };
    let mut shim = shim(&scene, "ca.test", &nameserver, "")?.confined(confinement).start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    Ok(())
}

#[tokio::test]
async fn a_mute_nameserver_costs_no_memory_and_holds_up_no_other_address() -> testkit::Result {
    const RENEWALS: usize = 40;
    const SETTLED: usize = 5;
    let scene = Site::new().await?;
    let nameserver = Nameserver::start(|_| Says::Nothing).await?;
    let addresses = format!("ca.test:15012, localhost:{}", scene.ca.address().port());
    let shim = shim(&scene, "ca.test", &nameserver, "")?.env("CA_ADDR", addresses).env("SDS_SHIM_CA_TIMEOUT", "400ms");
    let mut shim = shim.confined(Confinement::default()).start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    // From now on the address without a name comes first; both are asked when it fails.
    for _ in 0..RENEWALS {
        scene.ca.push_fault(Fault::Status(tonic::Code::Unavailable, "down".to_owned()));
        renew(&shim)?;
        stream.next(&shim).await?;
    }
    let asked = nameserver.asked().len();
    assert!(asked >= 2 * RENEWALS, "the mute one was asked {asked} times");
    let lines = shim.log().lines();
    let uses: Vec<u64> = lines.iter().filter_map(|line| line.split("arena_used=").nth(1)?.parse().ok()).collect();
    let (before, after) = (uses[SETTLED], uses[uses.len() - 1]);
    println!("arena in use: {before} bytes, and {after} bytes after {asked} questions");
    assert!(before.abs_diff(after) <= 4096, "{before} bytes before, {after} after");
    assert!(status(&shim, "VmPeak")? <= MEMLOCK >> 10);
    Ok(())
}

#[tokio::test]
async fn a_nameserver_that_says_nothing_is_named() -> testkit::Result {
    let scene = Site::new().await?;
    let nameserver = Nameserver::start(|_| Says::Nothing).await?;
    let shim = shim(&scene, "ca.test", &nameserver, "")?.env("SDS_SHIM_CA_TIMEOUT", "1s").start()?;
    within(&shim, "a question", nameserver.wait_for(2)).await?;
    let expected = format!("answered: {}: no answer within 0.2 s", nameserver.address());
    shim.wait_for_log(&expected).await?;
    Ok(())
}

/// The first address of the name takes no connection and refuses none, as behind a firewall.
#[tokio::test]
async fn an_address_that_is_silent_does_not_hold_up_the_next_one() -> testkit::Result {
    let scene = Site::with(CaOptions { listen: own_address(), ..CaOptions::default() }).await?;
    let (healthy, mut silent) = (scene.ca.address(), own_address());
    silent.set_port(healthy.port());
    let _silent = Silent::on(silent).await?;
    let hosts = format!("127.0.0.1 localhost\n{} ca.test\n{} ca.test\n", silent.ip(), healthy.ip());
    let mut shim = started_with(&scene, "ca.test", &[("hosts", &hosts)])?.start()?;
    let mut stream = Open::connect(&mut shim, "default").await?;
    stream.next(&shim).await?;
    renew(&shim)?;
    stream.next(&shim).await?;
    assert_eq!(shim.log().count("cannot obtain a certificate"), 0);
    Ok(())
}

/// A nameserver that never answers to questions for IPv6 addresses, and to the others in this way.
async fn four_alone(absent: fn() -> Says) -> Result<Nameserver, Failure> {
    Nameserver::start(move |asked| match (asked.six, asked.name.as_str()) {
        (true, _) => Says::Nothing,
        (false, "istiod.sys.svc.cluster.test") => Says::Addresses(vec![LOOPBACK.into()]),
        (false, _) => absent(),
    })
    .await
}

/// The name is the last of those that a pod's search list makes of it, and nobody answers for IPv6 addresses.
#[tokio::test]
async fn a_search_list_is_tried_at_once_without_ipv6_answers() -> testkit::Result {
    let search = "search foo.svc.cluster.test svc.cluster.test cluster.test\noptions ndots:5\n";
    // The name is not there, or it is there and has no address.
    let absent: [(fn() -> Says, Duration); 2] =
        [(|| Says::Code(3), Duration::from_secs(2)), (|| Says::Addresses(Vec::new()), Duration::from_secs(6))];
    for (absent, within) in absent {
        for host in ["istiod.sys", "istiod.sys.svc", "istiod.sys.svc.cluster.test"] {
            let scene = Site::new().await?;
            let nameserver = four_alone(absent).await?;
            let mut shim = shim(&scene, host, &nameserver, search)?.start()?;
            let started = Instant::now();
            Open::connect(&mut shim, "default").await?.next(&shim).await?;
            assert!(started.elapsed() < within, "{host}: {:?}", started.elapsed());
            assert_eq!(shim.log().count("cannot resolve"), 0, "{host}");
        }
    }
    Ok(())
}

/// A single answer that is lost does not make a name one without addresses.
#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again() -> testkit::Result {
    let scene = Site::new().await?;
    let lost = AtomicBool::new(false);
    let nameserver = Nameserver::start(move |asked| match asked.six {
        true => Says::Addresses(Vec::new()),
        false if !lost.swap(true, Ordering::Relaxed) => Says::Nothing,
        false => Says::Addresses(vec![LOOPBACK.into()]),
    })
    .await?;
    let mut shim = shim(&scene, "ca.test", &nameserver, "")?.start()?;
    Open::connect(&mut shim, "default").await?.next(&shim).await?;
    assert_eq!(shim.log().count("cannot resolve"), 0);
    Ok(())
}
