//! The application behind a sidecar: a small HTTP/1.1 server that answers `GET /ip` and `GET /headers` as
//! httpbin does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::{
    Failure,
    http_server::{Server, json},
};

/// A running server on a loopback port; it stops, with all its connections, when it is dropped.
pub struct Httpbin {
    server: Server,
}

impl Httpbin {
    /// Starts a server on a free loopback port.
    pub async fn start() -> Result<Self, Failure> {
        Ok(Self { server: Server::start("httpbin", answer).await? })
    }

    /// Starts a server on this address.
    pub async fn start_at(address: SocketAddr) -> Result<Self, Failure> {
        Ok(Self { server: Server::start_at("httpbin", address, answer).await? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

fn answer(request: &Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/ip") => json(StatusCode::OK, &serde_json::json!({ "origin": peer.to_string() })),
        (&Method::GET, "/headers") => {
            let headers = request.headers().iter();
            let headers: BTreeMap<_, _> =
                headers.map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()))).collect();
            json(StatusCode::OK, &serde_json::json!({ "headers": headers }))
        }
        _ => json(StatusCode::NOT_FOUND, &serde_json::json!({ "error": "only GET /ip and /headers are here" })),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::http;

    async fn get(httpbin: &Httpbin, path: &str) -> http::Answer {
        let stream = TcpStream::connect(httpbin.address()).await.unwrap();
        http::get(stream, "httpbin", path).await.unwrap()
    }

    #[tokio::test]
    async fn ip_tells_the_peer_headers_tell_themselves_and_the_rest_is_not_found() {
        let httpbin = Httpbin::start().await.unwrap();
        let ip = get(&httpbin, "/ip").await;
        assert_eq!((ip.status, ip.text().as_str()), (200, "{\"origin\":\"127.0.0.1\"}\n"));
        let headers: serde_json::Value = serde_json::from_slice(&get(&httpbin, "/headers").await.body).unwrap();
        assert_eq!(headers["headers"]["host"], "httpbin");
        assert_eq!(get(&httpbin, "/").await.status, 404);
    }
}
