//! The server's side of a stream of xDS, in its state-of-the-world variant.

use std::{convert::Infallible, io, pin::Pin, sync::Arc};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sds_shim_proto::{
    SmallCodec,
    envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, body::Body, server::StreamingService};

pub(super) type Answer = Result<DiscoveryResponse, Status>;

/// A service with one method.
pub(super) trait Service: Send + Sync + 'static {
    /// Where the method is.
    const PATH: &'static str;

    /// One stream, until its Envoy closes it.
    fn converse(
        &self,
        requests: Streaming<DiscoveryRequest>,
        answers: mpsc::Sender<Answer>,
    ) -> impl Future<Output = ()> + Send;
}

/// What connections come from.
pub(super) trait Listener: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves all who come, for as long as it is polled.
pub(super) async fn accept<S: Service>(listener: impl Listener, service: Arc<S>) {
    let mut connections = JoinSet::new();
    while let Ok(stream) = listener.next().await {
        connections.spawn(serve(stream, Arc::clone(&service)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<S: Service>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: Arc<S>) {
    let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let service = Arc::clone(&service);
        async move {
            if request.uri().path() != S::PATH {
                return Ok::<_, Infallible>(Status::unimplemented("no such method").into_http::<Body>());
            }
            let codec = SmallCodec::<DiscoveryResponse, DiscoveryRequest>::default();
            Ok(tonic::server::Grpc::new(codec).streaming(Method(service), request).await)
        }
    });
    // It ends when the peer goes, in whatever way.
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
}

struct Method<S>(Arc<S>);

impl<S: Service> StreamingService<DiscoveryRequest> for Method<S> {
    type Response = DiscoveryResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let (service, (sender, answers)) = (Arc::clone(&self.0), mpsc::channel(4));
        tokio::spawn(async move { service.converse(request.into_inner(), sender).await });
        std::future::ready(Ok(Response::new(Box::pin(ReceiverStream::new(answers)))))
    }
}
