//! A small HTTP/1.1 server on a loopback port.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::{Failure, OrFail};

/// A running server; it stops, with all its connections, when it is dropped.
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server on a free loopback port. `answer` gets the request and the peer's address.
    pub async fn start<F>(name: &str, answer: F) -> Result<Self, Failure>
    where
        F: Fn(&Request<Incoming>, IpAddr) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    {
        Self::start_at(name, (Ipv4Addr::LOCALHOST, 0).into(), answer).await
    }

    /// The same on this address.
    pub async fn start_at<F>(name: &str, address: SocketAddr, answer: F) -> Result<Self, Failure>
    where
        F: Fn(&Request<Incoming>, IpAddr) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(address).await.or_fail(format!("bind {name} to {address}"))?;
        let address = listener.local_addr().or_fail(format!("bind {name}"))?;
        Ok(Self { address, task: tokio::spawn(accept(listener, answer)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer with a JSON body.
pub fn json(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

async fn accept<F>(listener: TcpListener, answer: F)
where
    F: Fn(&Request<Incoming>, IpAddr) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
{
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, peer)) = listener.accept().await {
        connections.spawn(serve(stream, peer.ip(), answer.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<F>(stream: TcpStream, peer: IpAddr, answer: F)
where
    F: Fn(&Request<Incoming>, IpAddr) -> Response<Full<Bytes>> + Send + Sync + 'static,
{
    let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, peer))));
    // A client that breaks its connection is its own affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
