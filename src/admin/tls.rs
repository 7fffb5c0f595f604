//! The door of the admin endpoints over mutual TLS. Everybody on the network may knock: what somebody takes before it is
//! known who it is has bounds, in memory, time and number.

use std::{
    io::Cursor,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use openssl::{
    error::ErrorStack,
    pkey::{Id, PKey, Private},
    ssl::{Ssl, SslContext, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode, SslVersion},
    stack::StackRef,
    x509::{X509, X509Ref, X509VerifyResult, store::X509StoreBuilder, verify::X509VerifyFlags},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_openssl::SslStream;
use tracing::debug;

use super::{
    places::{Slot, Slots},
    refusals::Refusals,
};
use crate::{
    budget, clock,
    identity::{SpiffePattern, certificates, key_work, revoked, spiffe_id_of},
    store::{CERTIFICATE, ROOTS, Secret, Validation, View},
    wire::Stream,
};

/// Bytes of a first record: a key share for a post-quantum group is the largest of what is in it.
const HELLO: usize = 4 * 1024;
/// Bytes of the chain that a client presents; parsed, they take some twenty times as much.
const MAX_CHAIN: u16 = 8 * 1024;
/// How long a client may take for its first record, then for a slot, and for the handshake.
const HELLO_WITHIN: Duration = Duration::from_secs(3);
const SLOT_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(2);
/// How long a client that was refused may take to close, and the bytes of it that are read meanwhile.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
const CLOSE: u64 = 16 * 1024;

/// Lets clients in who are named, with the certificate and the trust anchors that are served when they come.
pub(super) struct Door {
    clients: Vec<SpiffePattern>,
    view: watch::Receiver<View>,
    slots: Arc<Slots>,
    refusals: Refusals,
    /// The key with the version that it belongs to, for as long as somebody uses it: it is read for a handshake and gone
    /// after it, so that nothing but what is served to Envoy holds it in between.
    key: Mutex<(String, Weak<PKey<Private>>)>,
}

/// Somebody who has shown a certificate of the mesh.
pub(super) struct Visitor {
    /// Why nothing is for it to see.
    pub(super) forbidden: Option<String>,
    _slot: Slot,
    _key: Arc<PKey<Private>>,
}

pub(super) type Secured = SslStream<Box<dyn Stream>>;

/// Why somebody is not let in; `None` where it said nothing.
type Refusal = Option<String>;

/// Somebody who is not let in, with its connection where an alert on it says so.
struct Refused {
    why: Refusal,
    alerted: Option<Box<dyn Stream>>,
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Self {
        Self { why, alerted: None }
    }
}

/// Who a client says it is, before that has been verified.
type Claim = Arc<Mutex<Option<Result<String, &'static str>>>>;

impl Door {
    pub(super) fn new(clients: Vec<SpiffePattern>, view: watch::Receiver<View>) -> Self {
        let (slots, refusals, key) = Default::default();
        Self { clients, view, slots, refusals, key }
    }

    /// Lets this one in, or tells why not.
    pub(super) async fn admit(&self, stream: TcpStream, peer: IpAddr) -> Option<(Secured, Visitor)> {
        match self.try_admit(stream, peer).await {
            Ok(admitted) => Some(admitted),
            Err(Refused { why, alerted }) => {
                match why {
                    Some(why) => self.refusals.tell(peer, &why),
                    None => debug!(client = %peer, "a connection to SDS_SHIM_ADMIN_TLS brought nothing"),
                }
                if let Some(stream) = alerted {
                    close(stream).await;
                }
                None
            }
        }
    }

    async fn try_admit(&self, mut stream: TcpStream, peer: IpAddr) -> Result<(Secured, Visitor), Refused> {
        self.served()?;
        let began = Instant::now();
        let hello = timeout_at(began + HELLO_WITHIN, first_record(&mut stream)).await.map_err(|_| None)??;
        let slow = || Some("other clients have taken too long".to_owned());
        let slot = timeout_at(began + SLOT_WITHIN, self.slots.take(peer)).await.map_err(|_| slow())?;
        let mut slot = slot.ok_or_else(no_room)?;
        // What is served now, after the wait.
        let (certificate, validation) = self.served()?;
        let turn = timeout_at(began + SLOT_WITHIN, key_work().lock()).await.map_err(|_| slow())?;
        let key = self.key(&certificate).map_err(|error| Some(format!("cannot use the served key: {error}")))?;
        // Elliptic curves take so little that nobody need wait for them.
        let _turn = (key.id() == Id::RSA).then_some(turn);
        let claim = Claim::default();
        let ssl = ssl(&certificate, &key, Arc::clone(&validation), Arc::clone(&claim));
        let ssl = ssl.map_err(|error| Some(format!("cannot set up TLS: {error}")))?;
        let (reading, writing) = stream.into_split();
        let stream: Box<dyn Stream> = Box::new(tokio::io::join(Cursor::new(hello).chain(reading), writing));
        let mut secured = SslStream::new(ssl, stream).map_err(|error| Some(format!("cannot set up TLS: {error}")))?;
        let accept = std::future::poll_fn(|cx| {
            locked::with_blocks_up_to(budget::HANDSHAKE_PIECE, || Pin::new(&mut secured).poll_accept(cx))
        });
        match timeout_at(Instant::now() + HANDSHAKE_WITHIN, accept).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let why = Some(explain(secured.ssl(), &error, &claim));
                // Taken out, so that what belongs to the handshake is gone before the client closes.
                let alerted = Some(std::mem::replace(secured.get_mut(), Box::new(tokio::io::empty())));
                return Err(Refused { why, alerted });
            }
            Err(_) => return Err(Some("it did not finish the handshake in time".to_owned()).into()),
        }
        let forbidden = self.judge(secured.ssl(), &validation)?;
        slot.is_known = true;
        if let Some(why) = &forbidden {
            self.refusals.tell(peer, why);
        }
        Ok((secured, Visitor { forbidden, _slot: slot, _key: key }))
    }

    /// The certificate and what clients are verified with.
    fn served(&self) -> Result<(Arc<Secret>, Arc<Validation>), Refusal> {
        let View::Open(snapshot) = self.view.borrow().clone() else { return Err(None) };
        let now = clock::now();
        let certificate = snapshot.get(CERTIFICATE).ok_or_else(|| {
            Some("no certificate is held yet, so there is none to serve it with; `sds-shim health` says why".to_owned())
        })?;
        if !certificate.is_valid(now) {
            let end = clock::rfc3339(certificate.not_after());
            return Err(Some(format!("the served certificate expired at {end}; `sds-shim health` says why")));
        }
        let validation = snapshot.get(ROOTS).and_then(|roots| roots.validation());
        let validation =
            validation.ok_or_else(|| Some("no trust anchors are served yet to verify it with".to_owned()))?;
        Ok((Arc::clone(certificate), validation))
    }

    fn key(&self, certificate: &Secret) -> Result<Arc<PKey<Private>>, ErrorStack> {
        let mut held = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = held.1.upgrade().filter(|_| held.0 == certificate.version()) {
            return Ok(key);
        }
        let key = Arc::new(locked::read_private_key(certificate.resource().key())?);
        *held = (certificate.version().to_owned(), Arc::downgrade(&key));
        Ok(key)
    }

    /// Why nothing is for this client to see, whose certificate leads to our trust anchors.
    fn judge(&self, ssl: &SslRef, validation: &Validation) -> Result<Option<String>, Refusal> {
        let chain: Vec<&X509Ref> =
            ssl.verified_chain().iter().flat_map(|chain| chain.iter()).map(AsRef::as_ref).collect();
        let leaf = chain.first().ok_or(None)?;
        let id = spiffe_id_of(leaf).map_err(|why| Some(why.to_owned()))?;
        let why = revoked(&chain, &validation.lists, validation.whole_chain, clock::now());
        drop(ErrorStack::get());
        if let Some(why) = why {
            return Err(Some(format!("{id}: {why}")));
        }
        let is_named = self.clients.iter().any(|pattern| pattern.matches(&id));
        Ok((!is_named).then(|| format!("{id} is not in SDS_SHIM_ADMIN_TLS_CLIENTS; add it there to let it in")))
    }
}

/// Closes a connection so that the client reads the alert that says why. Closed with bytes of it unread, it is reset, and a
/// client that still writes, as with TLS 1.3 it may before its certificate is judged, sees that alone (RFC 9112, section
/// 9.6).
async fn close(mut stream: Box<dyn Stream>) {
    if stream.shutdown().await.is_ok() {
        let (mut rest, mut piece) = (stream.take(CLOSE), [0; 512]);
        let is_closed = async { while rest.read(&mut piece).await.is_ok_and(|count| count > 0) {} };
        let _ = timeout_at(Instant::now() + CLOSE_WITHIN, is_closed).await;
    }
}

fn no_room() -> Refusal {
    Some("not enough arena memory for a handshake now; raise SDS_SHIM_ARENA_KIB".to_owned())
}

/// The first record, whole, so that whoever does not finish it takes no slot.
async fn first_record(stream: &mut TcpStream) -> Result<Vec<u8>, Refusal> {
    const HANDSHAKE: u8 = 22;
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.map_err(|_| None)?;
    let size = usize::from(u16::from_be_bytes([head[3], head[4]]));
    if head[..2] != [HANDSHAKE, 3] {
        return Err(Some("it does not speak TLS: connect by https".to_owned()));
    }
    if size > HELLO {
        return Err(Some(format!("its first TLS record has {size} bytes; the limit is {HELLO}")));
    }
    if !budget::has_room_for_handshakes(1) {
        return Err(no_room());
    }
    let mut record = head.to_vec();
    stream.take(size as u64).read_to_end(&mut record).await.map_err(|_| None)?;
    if record.len() == head.len() + size { Ok(record) } else { Err(None) }
}

fn ssl(
    certificate: &Secret,
    key: &PKey<Private>,
    validation: Arc<Validation>,
    claim: Claim,
) -> Result<Ssl, Box<dyn std::error::Error + Send + Sync>> {
    let mut context = SslContext::builder(SslMethod::tls_server())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // Of TLS 1.2, what keeps a secret from whoever gets the key later.
    context.set_cipher_list("ECDHE+AESGCM")?;
    // A session that is resumed would be of a client that is not verified again.
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_options(SslOptions::NO_TICKET);
    context.set_num_tickets(0)?;
    context.set_mode(SslMode::RELEASE_BUFFERS);
    context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    locked::limit_certificate_chain(&mut context, MAX_CHAIN);
    locked::find_anchors(&mut context, Box::new(move |presented| anchors(presented, &validation, &claim)))?;
    let mut store = X509StoreBuilder::new()?;
    // As Envoy does: whatever is served as an anchor is one, also an intermediate.
    store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    context.set_cert_store(store.build());
    let chain: Vec<u8> = certificate.resource().certificates().flat_map(|piece| piece.into_owned()).collect();
    let mut chain = certificates(std::str::from_utf8(&chain)?)?.into_iter();
    if let Some(leaf) = chain.next() {
        context.set_certificate(&leaf)?;
    }
    context.set_private_key(key)?;
    for other in chain {
        context.add_extra_chain_cert(other)?;
    }
    Ok(Ssl::new(&context.build())?)
}

/// The anchors that may vouch for these certificates: those of the trust domain that the leaf claims.
fn anchors(presented: &StackRef<X509>, validation: &Validation, claim: &Claim) -> Vec<X509> {
    let all: Vec<&X509Ref> = presented.iter().map(AsRef::as_ref).collect();
    let id = all.first().map(|leaf| spiffe_id_of(leaf));
    let bundle = id.as_ref().and_then(|id| validation.anchors_of(&id.as_ref().ok()?.domain()));
    let found = bundle.map(|bundle| bundle.issuers_of(&all)).unwrap_or_default();
    *claim.lock().unwrap_or_else(PoisonError::into_inner) = id.map(|id| id.map(|id| id.to_string()));
    drop(ErrorStack::get());
    found
}

/// Why a handshake failed, in words that say what to do.
fn explain(ssl: &SslRef, error: &openssl::ssl::Error, claim: &Claim) -> String {
    /// `SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE` and `SSL_R_UNEXPECTED_EOF_WHILE_READING`.
    const NO_CERTIFICATE: i32 = 199;
    const ENDED: i32 = 294;
    let reasons: Vec<_> =
        error.ssl_error().iter().flat_map(|stack| stack.errors()).map(|one| one.reason_code()).collect();
    let claim = claim.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (claim, ssl.verify_result()) {
        (Some(Err(why)), _) => why.to_owned(),
        (Some(Ok(id)), failed) if failed != X509VerifyResult::OK => {
            let why = failed.error_string();
            format!(
                "it claims to be {id}, but its certificate was rejected: {why}; it must lead to the trust anchors in ROOTCA"
            )
        }
        _ if reasons.contains(&NO_CERTIFICATE) => {
            "it presented no client certificate; it must present one of the mesh".to_owned()
        }
        _ if reasons.contains(&ENDED) => "it closed the connection during the handshake".to_owned(),
        // The library's reasons that are alerts of the peer.
        _ if reasons.iter().any(|reason| (1000..1256).contains(reason)) => {
            format!(
                "it ended the handshake ({error}); it must trust the anchors in ROOTCA and expect no name that our certificate lacks"
            )
        }
        _ => format!("the handshake failed: {error}"),
    }
}
