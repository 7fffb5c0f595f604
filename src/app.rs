//! The composition root: the only module that knows all others.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};
use tracing::{error, info, warn};

use crate::{
    ca::CitadelClient,
    config::{Config, IdentityConfig, TokenConfig},
    identity::BearerToken,
    rotation::{ProjectedToken, Renewal, RequestBorne},
    sds::{self, BindError, SdsSocket},
    store::{AttachError, SecretStore, View, Workloads},
};

/// Stack of the thread that resolves the CA's name; glibc's resolver uses about half of it.
const RESOLVER_STACK: usize = 128 * 1024;

/// Why the process ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The socket cannot be served.
    #[error("{0}")]
    Bind(#[from] BindError),
    /// The kernel refused something that we cannot do without.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The workload whose token is in the projected file: there is only one, whoever asks.
struct OneWorkload(Arc<SecretStore>);

impl Workloads for OneWorkload {
    fn attach(&self, _: Option<BearerToken>) -> Result<watch::Receiver<View>, AttachError> {
        Ok(self.0.watch())
    }
}

/// Serves until the process is told to end.
///
/// # Errors
/// When it cannot serve: then it does not listen either, so that Envoy's other sources are not kept from it.
pub fn run(config: Config) -> Result<(), AppError> {
    // Before anything else: whoever starts after us looks for the socket.
    let socket = SdsSocket::bind(&config.sds.socket)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        // Only the look-up of the CA's name blocks: in a thread of its own, which ends with it.
        .max_blocking_threads(1)
        .thread_stack_size(RESOLVER_STACK)
        .thread_keep_alive(Duration::from_millis(1))
        // A sleeping process must not hold a key where the kernel could write it into a core.
        .on_thread_park(|| {
            locked::clear_vector_registers();
            locked::clear_idle_stack();
        })
        .build()?;
    let served = runtime.block_on(serve(config, &socket));
    // A look-up that hangs must not keep the pod alive.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config, socket: &SdsSocket) -> Result<(), AppError> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut renew = signal(SignalKind::user_defined1())?;
    let force = Arc::new(Notify::new());
    let Config { identity, key, token, ca, rotation, sds, .. } = config;
    if ca.plaintext {
        warn!("CA_ADDR has port 15010: the CA is reached WITHOUT TLS, everybody on the way can read and use the token");
    }
    info!(socket = %socket.path().display(), "serving SDS");
    let workloads: Arc<dyn Workloads> = match (identity, token) {
        (IdentityConfig { spiffe_id: Some(id), .. }, TokenConfig { file: Some(file), audience }) => {
            let store = Arc::new(SecretStore::new(sds::encode));
            let tokens = ProjectedToken::new(&file, &audience);
            let ca = CitadelClient::new(ca).map_err(io::Error::other)?;
            let renewal = Renewal::new(id, key, rotation, ca, tokens, Arc::clone(&store), Arc::clone(&force))?;
            tokio::spawn(async move {
                let ended = renewal.run().await;
                error!("no certificate will be renewed any more: {ended}");
            });
            Arc::new(OneWorkload(store))
        }
        (IdentityConfig { trust_domain, .. }, TokenConfig { audience, .. }) => {
            let force = Arc::clone(&force);
            Arc::new(RequestBorne::new(trust_domain, audience, key, rotation, ca, sds::encode, force))
        }
    };
    let serving = sds::serve(socket, &sds, workloads);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            served = &mut serving => return Ok(served?),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = renew.recv() => force.notify_waiters(),
        }
    }
    info!("told to end");
    Ok(())
}
