use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::Path,
    sync::Arc,
    time::Duration,
};

use openssl::x509::X509;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Changes, FileAccess};
use crate::{
    bounded, budget, clock,
    config::{FileResource, FilesConfig},
    identity::{AnchorNames, BearerToken, Credential, KeyText, TOO_MANY_NAMES, TokenError, TrustBundle, TrustDomain},
    memory,
    store::{Content, Demand, SecretStore},
};

/// Bytes of one file with a certificate or a key.
const MAX_FILE: usize = 384 * 1024;

/// Least time between two times that other files are wanted: all of them are read then, and whoever asks decides how
/// often.
const PACE: Duration = Duration::from_millis(100);

/// Serves files by the names that stand for them, for as long as somebody asks for them. They are watched; what
/// cannot be used is told once and leaves the last good content in place.
pub struct FileSource {
    store: Arc<SecretStore>,
    demand: Demand,
    config: FilesConfig,
    access: FileAccess,
    /// What is wrong with a name, once that was told.
    told: BTreeMap<String, String>,
}

impl FileSource {
    /// A source for what `demand` asks of `store`.
    pub fn new(store: Arc<SecretStore>, demand: Demand, config: FilesConfig, access: FileAccess) -> Self {
        Self { store, demand, config, access, told: BTreeMap::new() }
    }

    /// Serves for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut served = BTreeSet::new();
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let names = self.demand.names();
            served.difference(&names).for_each(|name| self.forget(name));
            served.clone_from(&names);
            tokio::select! {
                biased;
                _ = pace.tick() => {}
                // What nobody wants any more is forgotten at once, so that it is read anew when it is wanted again.
                () = self.demand.changed(&names) => continue,
            }
            self.serve(&names).await;
        }
    }

    /// Serves these names until others are wanted.
    async fn serve<'a>(&mut self, names: &'a BTreeSet<String>) {
        let resource = |name: &'a String| Some((name.as_str(), self.access.resource(name)?));
        let resources: Vec<_> = names.iter().filter_map(resource).collect();
        let paths = resources.iter().flat_map(|(_, files)| files.paths()).map(Path::to_owned).collect();
        let mut changes = Changes::new(paths, self.config.debounce, self.config.check);
        let demand = self.demand.clone();
        loop {
            // Watched before they are read, so that no change falls in between.
            memory::before_a_key();
            resources.iter().for_each(|(name, files)| self.publish(name, files));
            memory::look_again();
            tokio::select! {
                () = demand.changed(names) => return,
                () = changes.next() => {}
            }
        }
    }

    fn publish(&mut self, name: &str, files: &FileResource) {
        match self.read(files) {
            Ok((content, not_after, bad)) => {
                self.store.publish([(name, content, not_after)]);
                self.tell(name, bad.map(|bad| format!("{bad}; the others are served")));
            }
            Err(trouble) => self.tell(name, Some(self.with_what_is_held(name, &trouble))),
        }
    }

    fn read(&self, files: &FileResource) -> Result<(Content, i64, Option<String>), String> {
        let opened = self.access.open(files)?;
        match read(&opened.files) {
            Ok((content, not_after, bad)) => Ok((content, not_after, bad.map(|bad| opened.told(bad)))),
            Err(trouble) => Err(opened.told(trouble)),
        }
    }

    fn with_what_is_held(&self, name: &str, trouble: &str) -> String {
        let held =
            if self.store.holds(name) { "still serving its last good content" } else { "Envoy keeps waiting for it" };
        format!("{trouble}; {held}")
    }

    fn tell(&mut self, name: &str, trouble: Option<String>) {
        if self.told.get(name) == trouble.as_ref() {
            return;
        }
        match trouble {
            Some(trouble) => {
                warn!(resource = name, "{trouble}");
                self.told.insert(name.to_owned(), trouble);
            }
            None => {
                info!(resource = name, "the files are usable again");
                self.told.remove(name);
            }
        }
    }

    fn forget(&mut self, name: &str) {
        self.store.withdraw(name);
        self.told.remove(name);
    }
}

/// The content of the files, until when it can be used, and what of it is left out.
fn read(files: &FileResource) -> Result<(Content, i64, Option<String>), String> {
    match files {
        FileResource::Certificate { chain, key } => {
            let credential = read_certificate(chain, key)?;
            let MountedCertificate { content, not_after, .. } = MountedCertificate::new(&credential)?;
            Ok((content, not_after, None))
        }
        FileResource::Roots(path) => {
            let (bundle, bad) = TrustBundle::from_file(path, clock::now(), budget::has_room_for_named_anchor)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            let (bundle, left_out) = AnchorNames::default().take_all(&bundle);
            let trouble = match left_out {
                0 => (!bad.is_empty()).then(|| format!("{}: {bad}", path.display())),
                _ => Some(format!("{}: {left_out} trust anchors are left out: {TOO_MANY_NAMES}", path.display())),
            };
            Ok((Content::anchors(bundle), i64::MAX, trouble))
        }
        FileResource::Token(path) => {
            let (token, end) = token(path).map_err(|error| match error {
                TokenError::Unreadable { .. } => error.to_string(),
                _ => format!("{}: {error}", path.display()),
            })?;
            Ok((Content::Token(token), end, None))
        }
    }
}

/// A token that somebody else could still accept, and its end.
fn token(path: &Path) -> Result<(BearerToken, i64), TokenError> {
    let token = BearerToken::read(path)?;
    token.check(None, clock::now())?;
    let end = token.expires().ok_or(TokenError::Endless)?;
    Ok((token, end))
}

/// A key and its certificate chain, both of one generation.
pub struct MountedCertificate {
    /// As they are served.
    pub content: Content,
    /// When (Unix seconds) the certificate ends.
    pub not_after: i64,
    /// Whose it is, if it says so.
    pub trust_domain: Option<TrustDomain>,
    /// The SPIFFE ID in it, if there is one.
    pub identity: Option<String>,
    /// Who issued it, as far as they come with it.
    pub issuers: Vec<X509>,
}

impl MountedCertificate {
    /// This key and chain.
    ///
    /// # Errors
    /// What OpenSSL says; it fails only for want of memory.
    pub fn new(credential: &Credential) -> Result<Self, String> {
        let chain = credential.chain().map_err(|error| error.to_string())?;
        let key = credential.key_pem().map_err(|error| error.to_string())?;
        Ok(Self {
            content: Content::TlsCertificate { chain, key },
            not_after: credential.not_after(),
            trust_domain: credential.trust_domain(),
            identity: credential.identity(),
            issuers: credential.others().to_vec(),
        })
    }
}

/// Reads a key and its certificate chain.
///
/// # Errors
/// What is wrong with which of the files.
pub fn read_certificate(chain: &Path, key: &Path) -> Result<Credential, String> {
    let (text, beside) = file(chain)?;
    let key_text = if key == chain { beside } else { file(key)?.1 };
    Credential::from_pem(&text, &key_text).map_err(|error| format!("{}: {error}", bounded::both(chain, key)))
}

fn file(path: &Path) -> Result<(String, KeyText), String> {
    let opened = bounded::open(path, MAX_FILE).and_then(|opened| opened.if_room(budget::has_room_for_named_file));
    opened.and_then(KeyText::read).map_err(|error| bounded::describe(path, &error))
}
