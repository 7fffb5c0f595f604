use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::Semaphore,
};
use tracing::{debug, error, info, warn};

use crate::{
    config::AdminAddress,
    status::{Page, Pages},
    wire::Stream,
};

/// Connections at a time; each is for one request.
const CONNECTIONS: usize = 4;
/// Bytes of a request with its headers: the least that hyper allows.
const REQUEST: usize = 8 * 1024;
/// How long a client may take for its request, and for all.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
const ALL_WITHIN: Duration = Duration::from_secs(10);
/// Pauses after an address that somebody else has: a predecessor that is about to end. After the last one it is given
/// up, so that an idle process is not woken for it.
const TAKEN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Pause after an accept that failed: nobody tells when that is over.
const DESCRIPTORS: Duration = Duration::from_millis(100);

/// Serves the documents for as long as it is polled. Nothing that goes wrong here ends the process: who cannot be
/// watched still needs an identity.
pub async fn serve(address: AdminAddress, pages: Arc<dyn Pages>) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let listener = listen(&address).await;
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!("a connection to the admin endpoints cannot be accepted: {error}");
                tokio::time::sleep(DESCRIPTORS).await;
                continue;
            }
        };
        // Over the limit the connection is closed: probes and scrapes come again.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let _place = place;
            let served = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(REQUEST)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .serve_connection(TokioIo::new(stream), service_fn(|request| answer(&*pages, request)));
            match tokio::time::timeout(ALL_WITHIN, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("a connection to the admin endpoints ended: {error}"),
                Err(_) => debug!("a connection to the admin endpoints took too long"),
            }
        });
    }
}

async fn answer(pages: &dyn Pages, request: Request<Incoming>) -> Result<Response<Document>, Infallible> {
    let Page { status, content_type, body } = match *request.method() {
        Method::GET | Method::HEAD => pages.page(request.uri().path()),
        _ => Page { status: 405, content_type: "text/plain", body: Bytes::from_static(b"only GET is answered here\n") },
    };
    let mut response = Response::new(Document(Some(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// A body in one piece.
struct Document(Option<Bytes>);

impl Body for Document {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|body| Ok(Frame::data(body))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |body| body.len() as u64))
    }
}

enum Listener {
    Tcp(TcpListener),
    /// With its path, and which file it is.
    Unix(UnixListener, PathBuf, Option<(u64, u64)>),
}

impl Listener {
    async fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            AdminAddress::Unix(path) => {
                remove_stale(path).await?;
                UnixListener::bind(path).map(|listener| Self::Unix(listener, path.clone(), identity(path)))
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, ..) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A successor's socket must survive our end.
        if let Self::Unix(_, path, own @ Some(_)) = self
            && identity(path) == *own
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

/// A socket that nobody serves any more is in the way; anything else is left alone, also one whose owner is too busy to
/// let us in.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket());
    match UnixStream::connect(path).await {
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Listens, unless the address belongs to somebody else and stays so.
async fn listen(address: &AdminAddress) -> Listener {
    let mut pauses = TAKEN.into_iter();
    loop {
        let error = match Listener::bind(address).await {
            Ok(listener) => {
                info!(%address, "serving health, metrics and status");
                if let AdminAddress::Tcp(address) = address
                    && !address.ip().is_loopback()
                {
                    warn!(%address, "health, metrics and status are shown to whoever reaches this address");
                }
                return listener;
            }
            Err(error) => error,
        };
        let Some(pause) = pauses.next() else {
            error!(
                %address,
                "health, metrics and status CANNOT be served: {error}; SDS goes on without them; SDS_SHIM_ADMIN \
                 chooses another address"
            );
            return std::future::pending().await;
        };
        tokio::time::sleep(pause).await;
    }
}
