//! The application behind a sidecar: a small HTTP/1.1 server that answers `GET /ip` as httpbin does.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::{Failure, OrFail};

/// A running server on a loopback port; it stops, with all its connections, when it is dropped.
pub struct Httpbin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Httpbin {
    /// Starts a server on a free port.
    pub async fn start() -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.or_fail("bind httpbin")?;
        let address = listener.local_addr().or_fail("bind httpbin")?;
        Ok(Self { address, task: tokio::spawn(accept(listener)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Httpbin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, peer)) = listener.accept().await {
        connections.spawn(serve(stream, peer.ip()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, peer: IpAddr) {
    let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(&request, peer)) });
    // A client that breaks its connection is its own affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer(request: &Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/ip") => (StatusCode::OK, serde_json::json!({ "origin": peer.to_string() })),
        _ => (StatusCode::NOT_FOUND, serde_json::json!({ "error": "only GET /ip is here" })),
    };
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;

    async fn get(httpbin: &Httpbin, path: &str) -> http::Answer {
        let stream = TcpStream::connect(httpbin.address()).await.unwrap();
        http::get(stream, "httpbin", path).await.unwrap()
    }

    #[tokio::test]
    async fn ip_tells_the_peer_and_the_rest_is_not_found() {
        let httpbin = Httpbin::start().await.unwrap();
        let ip = get(&httpbin, "/ip").await;
        assert_eq!((ip.status, ip.text().as_str()), (200, "{\"origin\":\"127.0.0.1\"}\n"));
        assert_eq!(get(&httpbin, "/").await.status, 404);
    }
}
