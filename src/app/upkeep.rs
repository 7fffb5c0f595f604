//! What the process looks after while it serves, and may wait until Envoy has what it waits for.

use std::{convert::Infallible, time::Duration};

use tokio::{sync::watch, time::timeout};
use tracing::warn;

use crate::{
    config::FileCheck,
    files::Changes,
    sds::SdsSocket,
    store::{View, consumers_first},
};

/// How long at the most what looks after files lets the first certificate go before it: at the start it looks at a hundred
/// places, and Envoy waits.
const AFTER_THE_FIRST: Duration = Duration::from_millis(50);

/// How long the socket's file may be missing before it is made anew.
const SUCCESSOR_PAUSE: Duration = Duration::from_millis(250);

/// What is listened on, and made anew when somebody deletes it.
pub(super) struct Sockets<'a> {
    pub(super) sds: &'a SdsSocket,
    pub(super) api: Option<&'a SdsSocket>,
}

/// Returns when there is a certificate, or after a while that is nothing to whoever changes files.
pub(super) async fn first_certificate(mut view: watch::Receiver<View>) {
    let _ = timeout(AFTER_THE_FIRST, view.wait_for(View::holds_certificate)).await;
    consumers_first().await;
}

/// Makes a socket's file anew when somebody deletes it: without it, an Envoy that reconnects finds nothing.
pub(super) async fn keep_in_place(
    Sockets { sds, api }: Sockets<'_>,
    view: Option<watch::Receiver<View>>,
) -> Infallible {
    if let Some(view) = view {
        first_certificate(view).await;
    }
    let all = || [sds].into_iter().chain(api);
    // Whoever deletes it to put another in its place does that right after.
    let files = all().map(|socket| socket.path().to_owned()).collect();
    let mut changes = Changes::new(files, SUCCESSOR_PAUSE, FileCheck::Never);
    loop {
        for socket in all() {
            let (name, path) = (socket.service().name(), socket.path().display());
            match socket.restore() {
                Ok(false) => {}
                Ok(true) => warn!(socket = %path, "the {name} socket had been removed and was recreated"),
                Err(error) => warn!("the {name} socket has been removed and cannot be recreated: {error}"),
            }
        }
        changes.next().await;
    }
}
