use std::{
    collections::BTreeMap,
    future, io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::{
    renewal::{Renewal, RenewalEnded, TokenSource},
    settings::RenewalSettings,
};
use crate::{
    clock,
    identity::{BearerToken, SpiffeId, TokenDigest, TokenError},
    store::{AttachError, Consumer, Encoder, SecretStore, Workloads},
};

/// Different tokens that are served at a time. A sidecar's Envoy brings one, and for a while its successor.
const MAX_TOKENS: usize = 64;
/// How long a token that the CA refused is refused without asking again, so that an Envoy that reconnects costs
/// the CA nothing.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Workloads that bring their token with each SDS request, as in Istio 1.1.
///
/// Each distinct token has a key, a certificate and a renewal loop of its own, and a request sees only what was
/// issued for the very token that it carries. So nobody is served anything on the strength of a token that the CA
/// has not accepted, whatever its claims say: we cannot check its signature ourselves.
pub struct RequestBorne {
    audience: Option<String>,
    settings: RenewalSettings,
    encode: Encoder,
    entries: Arc<Mutex<BTreeMap<TokenDigest, Entry>>>,
}

struct Entry {
    store: Arc<SecretStore>,
    renewal: AbortHandle,
    /// When the renewal has ended: why, and until when that holds for new streams as well.
    ended: Option<(Arc<str>, Instant)>,
}

/// The token of one request: the same for ever.
pub struct RequestToken {
    token: Arc<BearerToken>,
    audience: Option<String>,
}

impl TokenSource for RequestToken {
    const FIXED: bool = true;

    fn read(&mut self, now: i64) -> Result<Arc<BearerToken>, TokenError> {
        self.token.check(self.audience.as_deref(), now)?;
        Ok(Arc::clone(&self.token))
    }

    fn changed(&mut self) -> impl Future<Output = bool> + Send {
        future::ready(false)
    }
}

impl RequestBorne {
    /// Nothing is done before the first request.
    pub fn new(audience: Option<String>, settings: RenewalSettings, encode: Encoder) -> Self {
        Self { audience, settings, encode, entries: Arc::default() }
    }

    fn start(&self, id: SpiffeId, token: BearerToken) -> io::Result<Entry> {
        let digest = token.digest();
        let store = Arc::new(SecretStore::new(self.encode));
        let tokens = RequestToken { token: Arc::new(token), audience: self.audience.clone() };
        info!(identity = %id, "received a new token with a request");
        let renewal = Renewal::new(&self.settings, id, tokens, Arc::clone(&store))?;
        let (entries, ending) = (Arc::clone(&self.entries), Arc::clone(&store));
        let task = tokio::spawn(async move {
            let ended = renewal.run().await;
            let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
            if let RenewalEnded::Unused = ended {
                entries.remove(&digest);
                return;
            }
            let reason: Arc<str> = ended.to_string().into();
            warn!("closing streams whose token is no longer valid, so that Envoy sends a fresh one: {reason}");
            ending.end(&reason);
            if let Some(entry) = entries.get_mut(&digest) {
                entry.ended = Some((reason, Instant::now() + REFUSED_FOR));
            }
        });
        Ok(Entry { store, renewal: task.abort_handle(), ended: None })
    }
}

impl Workloads for RequestBorne {
    fn attach(&self, token: Option<BearerToken>) -> Result<Consumer, AttachError> {
        let token = token.ok_or(AttachError::NoToken)?;
        token.check(self.audience.as_deref(), clock::now())?;
        let account = token.service_account()?;
        let domain = self.settings.file_roots.borrow().own.clone();
        let id = SpiffeId::for_service_account(&domain, &account.namespace, &account.name)
            .map_err(|_| TokenError::Subject)?;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.ended.as_ref().is_none_or(|(_, until)| *until > Instant::now()));
        let digest = token.digest();
        if let Some(entry) = entries.get(&digest) {
            return match &entry.ended {
                Some((reason, _)) => Err(AttachError::Refused(Arc::clone(reason))),
                None => Ok(entry.store.consumer()),
            };
        }
        if entries.len() >= MAX_TOKENS {
            let unused = entries.iter().find(|(_, entry)| entry.store.consumers() == 0).map(|(digest, _)| *digest);
            let entry = entries.remove(&unused.ok_or(AttachError::TooMany)?);
            entry.iter().for_each(|entry| entry.renewal.abort());
        }
        let entry = self.start(id, token).map_err(|error| {
            warn!("cannot start a renewal for a request's token: {error}");
            AttachError::TooMany
        })?;
        let consumer = entry.store.consumer();
        entries.insert(digest, entry);
        Ok(consumer)
    }
}
