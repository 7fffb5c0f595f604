//! An application that speaks mutual TLS itself, with the X509Source of the crate `spiffe`: it calls a server again and
//! again, each time over a new connection, until it is told to end (SIGTERM).
//!
//!     rust-spiffe HOST:PORT SERVER-ID
//!
//! It prints what tests/go/workload-api prints.

use std::{
    collections::BTreeSet,
    error::Error,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use openssl::{
    pkey::PKey,
    ssl::{Ssl, SslContext, SslMethod, SslVerifyMode},
    x509::{X509, store::X509StoreBuilder},
};
use spiffe::{X509Source, X509Svid, bundle::BundleSource, bundle::x509::X509Bundle};
use tokio::signal::unix::{SignalKind, signal};

/// The time between two calls: what makes a load, and leaves the processor to others.
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);

type Failed = Box<dyn Error + Send + Sync>;

fn context(svid: &X509Svid, bundle: &X509Bundle) -> Result<SslContext, Failed> {
    let mut anchors = X509StoreBuilder::new()?;
    for authority in bundle.authorities() {
        anchors.add_cert(X509::from_der(authority.as_bytes())?)?;
    }
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_cert_store(anchors.build());
    context.set_verify(SslVerifyMode::PEER);
    let mut chain = svid.cert_chain().iter().map(|one| X509::from_der(one.as_bytes()));
    context.set_certificate(&*chain.next().ok_or("there is no leaf")??)?;
    for other in chain {
        context.add_extra_chain_cert(other?)?;
    }
    context.set_private_key(&*PKey::private_key_from_pkcs8(svid.private_key().as_bytes())?)?;
    Ok(context.build())
}

fn call(address: &str, server: &str, context: &SslContext) -> Result<(), Failed> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = Ssl::new(context)?.connect(stream)?;
    let names = stream.ssl().peer_certificate().and_then(|leaf| leaf.subject_alt_names());
    if !names.iter().flatten().any(|name| name.uri() == Some(server)) {
        return Err("the server is another one".into());
    }
    stream.write_all(format!("GET /ip HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(String::from_utf8_lossy(&answer).into()) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let (address, server) = arguments.next().zip(arguments.next()).ok_or("rust-spiffe HOST:PORT SERVER-ID")?;
    let mut told = signal(SignalKind::terminate())?;
    let source = X509Source::new().await?;
    let (mut calls, mut failed, mut held, mut tls) = (0, 0, BTreeSet::new(), None);
    loop {
        let svid = source.svid()?;
        let leaf = X509::from_der(svid.cert_chain().first().ok_or("there is no leaf")?.as_bytes())?;
        let serial = leaf.serial_number().to_bn()?.to_hex_str()?.to_string();
        if held.insert(serial.clone()) {
            println!("certificate {serial}");
            tls = None;
        }
        let context = match &tls {
            Some(context) => Arc::clone(context),
            None => {
                let domain = svid.spiffe_id().trust_domain();
                let bundle = source.bundle_for_trust_domain(domain)?.ok_or("there is no bundle")?;
                Arc::new(context(&svid, &bundle)?)
            }
        };
        tls = Some(Arc::clone(&context));
        calls += 1;
        let (to, id) = (address.clone(), server.clone());
        if let Err(error) = tokio::task::spawn_blocking(move || call(&to, &id, &context)).await? {
            failed += 1;
            println!("failed {error}");
        }
        if calls % 10 == 0 {
            println!("called");
        }
        tokio::select! {
            _ = told.recv() => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    println!("calls {calls} failed {failed} certificates {}", held.len());
    source.shutdown().await;
    Ok(())
}
