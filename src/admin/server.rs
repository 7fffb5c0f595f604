use std::{
    convert::Infallible,
    io::{self, Cursor},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt,
    sync::watch,
    task::yield_now,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use super::{
    host,
    listener::{Accepted, Listener},
    places::{Place, Places},
    tls::Door,
};
use crate::{
    budget,
    config::{AdminAddress, AdminTls},
    status::{Page, Pages, Status},
    store::View,
};

/// Bytes of a request's head, nearly, and how many are taken at a time. Prometheus may send a token.
const REQUEST: usize = 4 * 1024;
const PORTION: usize = 512;
/// Bytes of what kubelet sends, some four times over.
const PROBE: usize = 2 * PORTION;
/// What ends it.
const END: &[u8] = b"\r\n\r\n";
/// Bytes that are read at a time once it is there: the least that hyper allows.
const BUFFER: usize = 8 * 1024;
/// How long a client may take for its request, and for all. Kubelet gives up on a probe after a second, by default.
const HEADERS_WITHIN: Duration = Duration::from_secs(3);
const ALL_WITHIN: Duration = Duration::from_secs(10);
/// Pause after an accept that failed: nobody tells when that is over.
const DESCRIPTORS: Duration = Duration::from_millis(100);

/// Serves the documents for as long as it is polled. Nothing that goes wrong here ends the process: who cannot be
/// watched still needs an identity.
pub async fn serve(address: AdminAddress, pages: Arc<dyn Pages>, status: Arc<Status>) -> Infallible {
    serve_through(None, address, pages, status).await
}

/// The same over mutual TLS, with what the view has when somebody connects.
pub async fn serve_tls(
    tls: AdminTls,
    view: watch::Receiver<View>,
    pages: Arc<dyn Pages>,
    status: Arc<Status>,
) -> Infallible {
    let address = AdminAddress::Tcp(tls.address);
    serve_through(Some(Arc::new(Door::new(tls.clients, view))), address, pages, status).await
}

async fn serve_through(
    door: Option<Arc<Door>>,
    address: AdminAddress,
    pages: Arc<dyn Pages>,
    status: Arc<Status>,
) -> Infallible {
    let mut places = Places::default();
    let listener = Listener::listen(&address, door.is_some(), &status).await;
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!("cannot accept a connection to the admin endpoints: {error}");
                tokio::time::sleep(DESCRIPTORS).await;
                continue;
            }
        };
        let (peer, asked) = (stream.peer(), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(connection(stream, peer, door.clone(), Arc::clone(&pages), Arc::clone(&asked)));
        places.take(Place { task: task.abort_handle(), asked, peer });
        // A request that is there already is answered before anybody else comes: nobody who comes can then take its
        // place.
        yield_now().await;
    }
}

async fn connection(
    mut stream: Accepted,
    peer: Option<IpAddr>,
    door: Option<Arc<Door>>,
    pages: Arc<dyn Pages>,
    asked: Arc<AtomicBool>,
) {
    let mut visitor = None;
    if let Some(door) = door {
        let (Accepted::Tcp(tcp), Some(peer)) = (stream, peer) else { return };
        // Boxed, because what a task was made for stays until somebody else comes.
        let Some((secured, known)) = Box::pin(door.admit(tcp, peer)).await else { return };
        (stream, visitor) = (Accepted::Tls(Box::new(secured)), Some(known));
    }
    let began = Instant::now();
    let head = match timeout_at(began + HEADERS_WITHIN, head(&mut stream)).await {
        Ok(Ok(head)) => head,
        Ok(Err(error)) => return debug!("a connection to the admin endpoints brought no request: {error}"),
        Err(_) => return debug!("a connection to the admin endpoints brought no request in time"),
    };
    asked.store(true, Ordering::Relaxed);
    let is_network = stream.is_network();
    let (reading, writing) = tokio::io::split(stream.into_stream());
    let stream = tokio::io::join(Cursor::new(head).chain(reading), writing);
    let served = http1::Builder::new().keep_alive(false).max_buf_size(BUFFER).serve_connection(
        TokioIo::new(stream),
        service_fn(|request| {
            let forbidden = visitor.as_ref().and_then(|visitor| visitor.forbidden.as_deref());
            answer(&*pages, is_network, forbidden, request)
        }),
    );
    match timeout_at(began + ALL_WITHIN, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a connection to the admin endpoints ended: {error}"),
        Err(_) => debug!("a connection to the admin endpoints took too long"),
    }
}

/// The head of a request, whole: HTTP has large buffers, which only who has asked is given.
async fn head(stream: &mut Accepted) -> io::Result<Vec<u8>> {
    // Silence takes nothing.
    stream.readable().await?;
    let mut head = Vec::new();
    loop {
        let is_probe = head.len() < PROBE;
        let pieces: &[usize] = if is_probe { &[PORTION, BUFFER, BUFFER, BUFFER] } else { &[REQUEST] };
        if head.len() >= REQUEST || !budget::has_room_for_admin(pieces, is_probe) {
            return Err(io::Error::other("not enough arena memory"));
        }
        head.reserve_exact(PORTION);
        if stream.read(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head.windows(END.len()).any(|bytes| bytes == END) {
            return Ok(head);
        }
    }
}

async fn answer(
    pages: &dyn Pages,
    is_network: bool,
    forbidden: Option<&str>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let meant = match forbidden {
        Some(why) => Err((403, why)),
        None if is_network => host::check(&request),
        None => Ok(()),
    };
    let plain = |status, text: String| Page { status, content_type: "text/plain", body: (text + "\n").into() };
    let Page { status, content_type, body } = match (meant, request.method()) {
        (Err((status, reason)), _) => plain(status, reason.to_owned()),
        (Ok(()), &Method::GET | &Method::HEAD) => {
            let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            pages.page(request.uri().path(), accept)
        }
        (Ok(()), _) => plain(405, "only GET is supported".to_owned()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}
