//! TLS as a probe uses it, and what certificates say.

use std::pin::Pin;

use development_ca::Issued;
use openssl::{
    pkey::PKey,
    ssl::{Ssl, SslContext, SslMethod, SslVerifyMode},
    x509::{X509, store::X509StoreBuilder},
};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::{Failure, OrFail};

/// Opens TLS on `stream`: the server's chain is verified up to `root_pem`, its names are not looked at, and the client
/// presents `certificate` when one is given.
pub async fn connect(
    stream: TcpStream,
    root_pem: &str,
    certificate: Option<&Issued>,
) -> Result<SslStream<TcpStream>, Failure> {
    connect_for(b"", stream, root_pem, certificate).await
}

/// The same, offering an application protocol (ALPN; its name behind its length).
pub async fn connect_for(
    protocol: &[u8],
    stream: TcpStream,
    root_pem: &str,
    certificate: Option<&Issued>,
) -> Result<SslStream<TcpStream>, Failure> {
    let context = context(protocol, root_pem, certificate).or_fail("prepare TLS")?;
    let ssl = Ssl::new(&context).or_fail("prepare TLS")?;
    let mut stream = SslStream::new(ssl, stream).or_fail("prepare TLS")?;
    Pin::new(&mut stream).connect().await.or_fail("open TLS")?;
    Ok(stream)
}

/// The same, telling the server which name is wanted (SNI).
pub async fn connect_to(name: &str, stream: TcpStream, root_pem: &str) -> Result<SslStream<TcpStream>, Failure> {
    let mut ssl = context(b"", root_pem, None).and_then(|context| Ssl::new(&context)).or_fail("prepare TLS")?;
    ssl.set_hostname(name).or_fail("set the name")?;
    let mut stream = SslStream::new(ssl, stream).or_fail("prepare TLS")?;
    Pin::new(&mut stream).connect().await.or_fail("open TLS")?;
    Ok(stream)
}

fn context(
    protocol: &[u8],
    root_pem: &str,
    certificate: Option<&Issued>,
) -> Result<SslContext, openssl::error::ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for root in X509::stack_from_pem(root_pem.as_bytes())? {
        store.add_cert(root)?;
    }
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_cert_store(store.build());
    context.set_verify(SslVerifyMode::PEER);
    if !protocol.is_empty() {
        context.set_alpn_protos(protocol)?;
    }
    if let Some(issued) = certificate {
        let mut chain = X509::stack_from_pem(issued.chain_pem.as_bytes())?.into_iter();
        if let Some(leaf) = chain.next() {
            context.set_certificate(&leaf)?;
        }
        for intermediate in chain {
            context.add_extra_chain_cert(intermediate)?;
        }
        let key = PKey::private_key_from_pem(issued.key_pem.as_bytes())?;
        context.set_private_key(&key)?;
    }
    Ok(context.build())
}

/// The serial number in lower-case hexadecimal without leading zeros, as Envoy's admin page shows it.
pub fn serial(certificate: &X509) -> Result<String, Failure> {
    let number = certificate.serial_number().to_bn().and_then(|number| number.to_hex_str());
    let number = number.or_fail("read a serial number")?.to_ascii_lowercase();
    Ok(number.trim_start_matches('0').to_owned())
}

/// The URI names of a certificate.
pub fn uri_names(certificate: &X509) -> Vec<String> {
    let names = certificate.subject_alt_names();
    names.iter().flatten().filter_map(|name| name.uri().map(str::to_owned)).collect()
}
