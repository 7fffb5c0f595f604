use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use super::{
    client_certificate::ClientCertificate,
    dial::tcp,
    error::CaError,
    retry,
    tls::{self, Alert},
};
use crate::{
    config::{CaAddress, CaConfig},
    wire::{self, Connection, Stream},
};

/// One HTTP/2 connection to the CA. It is made for one call and closed after it: the next one is hours away.
pub(super) struct Channel {
    connection: Connection,
    alert: Alert,
    retry_after: Arc<OnceLock<Duration>>,
}

impl Channel {
    /// Connects to the CA, verifies it, and presents `certificate` if there is one.
    ///
    /// # Errors
    /// What kept the connection from being made.
    pub(super) async fn connect(
        config: &CaConfig,
        address: &CaAddress,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Self, CaError> {
        let alert = Alert::default();
        let certificate = certificate.filter(|_| !address.is_plaintext());
        let stream: Box<dyn Stream> = match address.is_plaintext() {
            true => Box::new(tcp(address, config.timeout).await?),
            false => Box::new(tls::connect(config, address, certificate, alert.clone()).await?),
        };
        let connection = Connection::new(stream).await;
        let connection = connection.map_err(|error| alert.explain(certificate.is_some(), &error))?;
        Ok(Self { connection, alert, retry_after: Arc::default() })
    }

    /// What a broken call means: with a client certificate, a TLS alert is its refusal.
    pub(super) fn explain(&self, presented: bool, error: &dyn std::fmt::Display) -> CaError {
        self.alert.explain(presented, error)
    }

    /// Whether the connection met a TLS alert.
    pub(super) fn met_alert(&self) -> bool {
        self.alert.was_met()
    }

    /// What tonic's client sends requests with.
    pub(super) fn sender(&self) -> Sender {
        Sender { sender: self.connection.sender(), retry_after: Arc::clone(&self.retry_after) }
    }

    /// How long the answer's HTTP headers ask us to wait, if they do.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after.get().copied()
    }
}

/// What tonic's client calls; it looks at the headers of answers.
pub(super) struct Sender {
    sender: wire::Sender,
    retry_after: Arc<OnceLock<Duration>>,
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Sender {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (answer, retry_after) = (self.sender.call(request), Arc::clone(&self.retry_after));
        Box::pin(async move {
            let answer = answer.await?;
            // What is not gRPC, a proxy's answer for instance, loses its headers on the way through tonic.
            if let Some(wait) = retry::from_headers(answer.headers()) {
                let _ = retry_after.set(wait);
            }
            Ok(answer)
        })
    }
}
