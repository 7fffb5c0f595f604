//! The meeting place of those who make secrets and those who serve them: names, immutable secrets, one watch.

mod consumer;
mod demand;
mod encoded;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use openssl::sha::Sha256;
use tokio::sync::watch;

use crate::identity::{
    BearerToken, CertificateFacts, Certificates, RevocationList, SpiffeId, TokenError, TrustBundle, TrustDomain,
};
use consumer::Receipts;

pub use consumer::{Consumer, consumers_first};
pub use demand::{Demand, MAX_NAMES, is_on_demand};
pub use encoded::{AnchorText, Encoded, MARK, Piece};

/// The name of the workload's own certificate (contract with Envoy and Istio).
pub const CERTIFICATE: &str = "default";
/// The name of the trust anchors.
pub const ROOTS: &str = "ROOTCA";

/// What a producer publishes under a name. It is encoded once and then dropped: the encoded form is the only copy.
pub enum Content {
    /// A key and its certificate chain.
    TlsCertificate {
        /// Leaf first.
        chain: Certificates,
        /// The private key, PEM, in secret memory.
        key: Vec<u8>,
    },
    /// What peers are verified against.
    ValidationContext(Validation),
    /// A token that Envoy sends to others.
    Token(BearerToken),
}

/// What peers are verified against; all of it is public.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// Trust anchors.
    pub anchors: TrustBundle,
    /// Certificate revocation lists.
    pub lists: Vec<Arc<RevocationList>>,
    /// Whether CA certificates are looked for in them as well, not leaves alone.
    pub whole_chain: bool,
    /// Trust domains, each with the anchors that vouch for it alone; empty where they are not told apart.
    pub domains: Vec<(String, TrustBundle)>,
}

impl Validation {
    /// The anchors that vouch for this trust domain.
    pub fn anchors_of(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        if self.domains.is_empty() {
            return Some(&self.anchors);
        }
        self.domains.iter().find(|(name, _)| *name == domain.to_string()).map(|(_, bundle)| bundle)
    }
}

impl Content {
    /// Trust anchors and nothing else.
    pub fn anchors(anchors: TrustBundle) -> Self {
        Self::ValidationContext(Validation { anchors, ..Validation::default() })
    }

    /// What everybody may know of it.
    fn facts(&self) -> Vec<Arc<CertificateFacts>> {
        match self {
            Self::TlsCertificate { chain, .. } => chain.facts.clone(),
            Self::ValidationContext(validation) => {
                let domains = validation.domains.iter().flat_map(|(_, bundle)| bundle.anchors());
                let all = validation.anchors.anchors().iter().chain(domains).cloned().collect();
                let mut all: Vec<_> = TrustBundle::new(all).anchors().iter().map(|anchor| anchor.facts()).collect();
                all.extend(validation.lists.iter().map(|list| Arc::new(list.facts())));
                all
            }
            Self::Token(token) => vec![Arc::new(token.facts())],
        }
    }

    /// A digest of the public part, or of a token, which is signed and so cannot be guessed from it: it changes exactly
    /// when the content does, also over a restart.
    fn version(&self) -> String {
        let mut digest = Sha256::new();
        match self {
            Self::TlsCertificate { chain, .. } => digest.update(&chain.pem),
            Self::Token(token) => digest.update(token.text().as_bytes()),
            Self::ValidationContext(Validation { anchors, lists, whole_chain, domains }) => {
                anchors.anchors().iter().for_each(|anchor| digest.update(anchor.digest()));
                // What separates one part from the next is no digest of an anchor, and no text.
                digest.update(&[0]);
                lists.iter().for_each(|list| digest.update(list.digest()));
                if *whole_chain {
                    digest.update(b"whole chain");
                }
                for (name, anchors) in domains {
                    digest.update(&[0]);
                    digest.update(name.as_bytes());
                    anchors.anchors().iter().for_each(|anchor| digest.update(anchor.digest()));
                }
            }
        }
        digest.finish().iter().take(16).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// Turns a content into the resource that consumers serve, given its name.
pub type Encoder = fn(&str, Content) -> Encoded;

/// The workload's own certificate as applications get it.
pub struct Svid {
    /// Whose it is.
    pub id: SpiffeId,
    /// The certificate and its key. For the Workload API's socket and nothing else.
    pub encoded: Encoded,
}

/// Makes that of a chain and its key, both in PEM, or tells why there is none.
pub type SvidEncoder = fn(&[u8], &[u8]) -> Result<Svid, String>;

/// What a secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key with its chain.
    Certificate,
    /// Trust anchors.
    Anchors,
    /// A token.
    Token,
}

/// A resource as Envoy gets it. It never changes; a new content is a new secret.
pub struct Secret {
    version: String,
    resource: Encoded,
    not_after: i64,
    kind: Kind,
    facts: Vec<Arc<CertificateFacts>>,
    /// Of the trust anchors of the mesh: for those who verify peers themselves.
    validation: Option<Arc<Validation>>,
    /// Of the workload's own certificate, where applications are served.
    svid: Option<Arc<Result<Svid, String>>>,
}

impl Secret {
    /// What changes exactly when the content does.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it can still be used at `now` (Unix seconds).
    pub fn is_valid(&self, now: i64) -> bool {
        now < self.not_after
    }

    /// From when on (Unix seconds) it cannot be used any more.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it holds trust anchors.
    pub fn is_anchors(&self) -> bool {
        self.kind == Kind::Anchors
    }

    /// What everybody may know of its certificates, in their order, or of its token.
    pub fn facts(&self) -> &[Arc<CertificateFacts>] {
        &self.facts
    }

    /// What peers are verified with, if these are the trust anchors of the mesh.
    pub fn validation(&self) -> Option<Arc<Validation>> {
        self.validation.clone()
    }

    /// The certificate as applications get it, or why they get none, if this is the workload's own and they are served.
    pub fn svid(&self) -> Option<&Result<Svid, String>> {
        self.svid.as_deref()
    }

    /// The encoded resource. It may hold a private key or a token: for Envoy's socket and nothing else.
    pub fn resource(&self) -> &Encoded {
        &self.resource
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(version {}, {} bytes)", self.version, self.resource.len())
    }
}

/// All secrets of one workload at one moment.
pub type Snapshot = Arc<BTreeMap<String, Arc<Secret>>>;

/// What a consumer sees.
#[derive(Clone, Debug)]
pub enum View {
    /// The secrets that are held; none before the first certificate.
    Open(Snapshot),
    /// There will be no more: the token that the workload brought cannot be used any longer.
    Ended(Arc<str>),
}

impl View {
    /// Whether there is a certificate.
    pub fn holds_certificate(&self) -> bool {
        matches!(self, Self::Open(secrets) if secrets.contains_key(CERTIFICATE))
    }
}

/// The secrets of one workload. Whatever is published together is seen together.
pub struct SecretStore {
    view: watch::Sender<View>,
    encode: Encoder,
    encode_svid: Option<SvidEncoder>,
    receipts: Arc<Receipts>,
    demand: Demand,
}

impl SecretStore {
    /// An empty store.
    pub fn new(encode: Encoder) -> Self {
        let view = watch::Sender::new(View::Open(Snapshot::default()));
        Self { view, encode, encode_svid: None, receipts: Arc::default(), demand: Demand::default() }
    }

    /// The same for applications as well, once for each certificate.
    #[must_use]
    pub fn with_svids(self, encode: SvidEncoder) -> Self {
        Self { encode_svid: Some(encode), ..self }
    }

    /// Adds or replaces secrets, each with the moment (Unix seconds) from which on it is of no more use. Contents that
    /// are unchanged wake nobody.
    pub fn publish<'a>(&self, contents: impl IntoIterator<Item = (&'a str, Content, i64)>) {
        self.replace(contents.into_iter().collect());
    }

    fn replace(&self, contents: Vec<(&str, Content, i64)>) {
        self.view.send_if_modified(|view| {
            let View::Open(snapshot) = view else { return false };
            let mut next = (**snapshot).clone();
            let mut modified = false;
            for (name, content, not_after) in contents {
                let version = content.version();
                if next.get(name).is_none_or(|held| held.version() != version) {
                    let facts = content.facts();
                    let (kind, validation) = match &content {
                        Content::ValidationContext(validation) => {
                            (Kind::Anchors, (name == ROOTS).then(|| Arc::new(validation.clone())))
                        }
                        Content::TlsCertificate { .. } => (Kind::Certificate, None),
                        Content::Token(_) => (Kind::Token, None),
                    };
                    let svid = match (&content, self.encode_svid) {
                        (Content::TlsCertificate { chain, key }, Some(encode)) if name == CERTIFICATE => {
                            Some(Arc::new(encode(&chain.pem, key)))
                        }
                        _ => None,
                    };
                    let resource = (self.encode)(name, content);
                    let secret = Secret { version, resource, not_after, kind, facts, validation, svid };
                    next.insert(name.to_owned(), Arc::new(secret));
                    modified = true;
                }
            }
            if modified {
                *view = View::Open(Arc::new(next));
            }
            modified
        });
    }

    /// What is held under this name can be used until then (Unix seconds); it is not sent again.
    pub fn lasts_until(&self, name: &str, not_after: i64) {
        self.view.send_if_modified(|view| {
            let View::Open(snapshot) = view else { return false };
            let Some(held) = snapshot.get(name).filter(|held| held.not_after != not_after) else { return false };
            let secret = Secret {
                version: held.version.clone(),
                resource: held.resource.clone(),
                not_after,
                kind: held.kind,
                facts: held.facts.clone(),
                validation: held.validation.clone(),
                svid: held.svid.clone(),
            };
            let mut next = (**snapshot).clone();
            next.insert(name.to_owned(), Arc::new(secret));
            *view = View::Open(Arc::new(next));
            true
        });
    }

    /// Forgets what nobody asks for any more.
    pub fn withdraw(&self, name: &str) {
        self.view.send_if_modified(|view| {
            let View::Open(snapshot) = view else { return false };
            let mut next = (**snapshot).clone();
            let held = next.remove(name).is_some();
            *view = View::Open(Arc::new(next));
            held
        });
    }

    /// Names that consumers want and that are only held because they do.
    pub fn demand(&self) -> Demand {
        self.demand.clone()
    }

    /// Tells every consumer that there will be no more, and why.
    pub fn end(&self, reason: &str) {
        self.view.send_replace(View::Ended(reason.into()));
    }

    /// Makes every consumer look again: what is valid may have changed with the clock.
    pub fn look_again(&self) {
        self.view.send_modify(|_| {});
    }

    /// Whether there is something under this name.
    pub fn holds(&self, name: &str) -> bool {
        matches!(&*self.view.borrow(), View::Open(snapshot) if snapshot.contains_key(name))
    }

    /// Waits until every consumer that wants the trust anchors has answered to those that are held.
    pub async fn roots_taken(&self) {
        let held = || match &*self.view.borrow() {
            View::Open(snapshot) => snapshot.get(ROOTS).map(|roots| roots.version().to_owned()),
            View::Ended(_) => None,
        };
        self.receipts.all(held).await;
    }

    /// What is held at this moment.
    pub fn look(&self) -> View {
        self.view.borrow().clone()
    }

    /// What is held, for those who only look.
    pub fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// One more consumer.
    pub fn consumer(&self) -> Consumer {
        Consumer::new(self.view.subscribe(), &self.receipts, &self.demand)
    }

    /// How many consumers look at it.
    pub fn consumers(&self) -> usize {
        self.view.receiver_count()
    }
}

/// Finds the secrets of whoever asks.
pub trait Workloads: Send + Sync + 'static {
    /// The side of the store that belongs to the caller, who may have brought a token with the request.
    ///
    /// # Errors
    /// When a token is needed and the one that was brought, if any, cannot be used.
    fn attach(&self, token: Option<BearerToken>) -> Result<Consumer, AttachError>;
}

/// Why a caller gets no secrets.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The request must carry a token and has none.
    #[error(
        "the request carries no service-account token (metadata authorization or istio_sds_credentials_header-bin)"
    )]
    NoToken,
    /// The token cannot be used.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The token was refused before, and asking again now would not help.
    #[error("{0}")]
    Refused(Arc<str>),
    /// There are as many workloads as can be served.
    #[error("too many different tokens are in use at the same time")]
    TooMany,
}
