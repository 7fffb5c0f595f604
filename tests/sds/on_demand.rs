//! An Envoy that requests the certificate of a handshake by the name that the client wants (SNI), over DeltaSecrets.

use std::net::Ipv4Addr;

use openssl::x509::X509;
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    envoy::{Bootstrap, Envoy, SdsTransport, sds_config},
    fixture::{Pod, plain_serial, serial},
    port, tls,
};
use tokio::{
    net::TcpStream,
    time::{Duration, Instant, timeout},
};

/// Far more than it takes; without an answer a handshake would wait for ever.
const AT_ONCE: Duration = Duration::from_secs(2);

fn listener(port: u16) -> Value {
    let types = "type.googleapis.com/envoy.extensions";
    let mapper =
        json!({ "@type": format!("{types}.transport_sockets.tls.cert_mappers.sni.v3.SNI"), "default_value": "*" });
    let selector = json!({
        "@type": format!("{types}.transport_sockets.tls.cert_selectors.on_demand_secret.v3.Config"),
        "config_source": sds_config(&SdsTransport::EnvoyDeltaGrpc),
        "certificate_mapper": { "name": "sni", "typed_config": mapper },
    });
    let context = json!({ "custom_tls_certificate_selector": { "name": "on-demand", "typed_config": selector } });
    let tls = json!({
        "@type": format!("{types}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": context,
        // A ticket would do without a certificate.
        "disable_stateless_session_resumption": true,
        "disable_stateful_session_resumption": true,
    });
    let echo = json!({
        "name": "echo",
        "typed_config": { "@type": format!("{types}.filters.network.echo.v3.Echo") },
    });
    json!({
        "name": "on-demand",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{
            "filters": [echo],
            "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
        }],
    })
}

/// An Envoy that serves so, beside the shim.
pub(crate) async fn envoy(pod: &Pod) -> Result<(Envoy, u16), Failure> {
    let port = port::unshared().or_fail("find a port")?;
    let bootstrap = Bootstrap::new("gateway", SdsTransport::EnvoyDeltaGrpc).listener(listener(port)).build();
    let mut envoy = Envoy::start("the gateway", pod.site.workload.path(), &bootstrap)?;
    envoy.wait_ready().await?;
    Ok((envoy, port))
}

/// The serial number of the certificate that a client gets who wants this name, and how long that took.
pub(crate) async fn shake_hands(port: u16, name: &str, root: &str) -> Result<(String, Duration), Failure> {
    let start = Instant::now();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.or_fail("connect to Envoy")?;
    let stream = tls::connect_to(name, stream, root).await?;
    let certificate: Option<X509> = stream.ssl().peer_certificate();
    let serial = tls::serial(&certificate.ok_or_else(|| Failure::new("it has no certificate"))?)?;
    Ok((serial, start.elapsed()))
}

/// How long it takes until a handshake for this name has failed.
async fn fail(port: u16, name: &str, root: &str) -> Result<Duration, Failure> {
    let start = Instant::now();
    let failed = timeout(AT_ONCE, shake_hands(port, name, root)).await;
    let failed = failed.or_fail(format!("see the handshake for {name} fail"))?;
    assert!(failed.is_err(), "there is a certificate for {name}");
    Ok(start.elapsed())
}

#[tokio::test]
async fn a_handshake_for_an_unknown_name_fails_at_once_and_others_continue() -> testkit::Result {
    let pod = Pod::new().await?;
    let root = pod.site.ca.root_pem();
    let held = plain_serial(&serial(&pod.ask(&["default"]).await?.1)?);
    let (envoy, port) = envoy(&pod).await?;
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for number in 0..100 {
        unknown.push(fail(port, &format!("{number}.example"), &root).await?);
        // Again, as a client that does not give up.
        unknown.push(fail(port, "nobody.example", &root).await?);
        let (serial, took) = shake_hands(port, "default", &root).await?;
        assert_eq!(serial, held);
        known.push(took);
    }
    let (known_first, unknown_first) = (known[0], unknown[0]);
    known.sort();
    unknown.sort();
    println!(
        "first known {known_first:?}, first unknown {unknown_first:?}; longest of {} unknown {:?}, median {:?}; median of \
         known {:?}",
        unknown.len(),
        unknown[unknown.len() - 1],
        unknown[unknown.len() / 2],
        known[known.len() / 2]
    );
    // What is held is replaced with each rotation.
    pod.rotate_and_see().await?;
    let next = plain_serial(&serial(&pod.ask(&["default"]).await?.1)?);
    let rotated = || async { Ok(shake_hands(port, "default", &root).await?.0 == next) };
    let mut envoy = envoy;
    envoy.wait_until("the next certificate", rotated).await
}
