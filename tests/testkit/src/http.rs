//! One HTTP/1.1 request on any byte stream.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{Failure, OrFail, PATIENCE};

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client connection for one request after the other.
pub struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
}

impl Connection {
    /// Speaks HTTP/1.1 on `stream`.
    pub async fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self, Failure> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.or_fail("open HTTP")?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// `GET path` with the given Host; an answer that takes longer than the kit's patience is a failure.
    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer, Failure> {
        let what = || format!("GET {path} from {host}");
        let request = http::Request::get(path).header(http::header::HOST, host).body(Empty::new()).or_fail(what())?;
        let answer = timeout(PATIENCE, async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status().as_u16();
            Ok::<_, hyper::Error>(Answer { status, body: response.into_body().collect().await?.to_bytes() })
        });
        let answer = answer.await.or_fail(what())?;
        answer.map_err(|error| Failure::new(format!("cannot {}: {}", what(), causes(&error))))
    }
}

/// `GET path` on a fresh stream.
pub async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
    path: &str,
) -> Result<Answer, Failure> {
    Connection::new(stream).await?.get(host, path).await
}

/// The whole chain of causes: a TLS alert is the last of them.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
