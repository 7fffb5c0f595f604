use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::{
    config::{CaConfig, FilesConfig, MountedFiles, RotationConfig},
    identity::{KeySpec, PeerTrust},
    status::Status,
};

/// What all renewal loops of the process have in common.
pub struct RenewalSettings {
    /// What keys are made.
    pub key: KeySpec,
    /// When to renew, and which roots are served.
    pub rotation: RotationConfig,
    /// How the CA is reached.
    pub ca: Arc<CaConfig>,
    /// What peers are verified with, as the files have it now.
    pub file_roots: watch::Receiver<PeerTrust>,
    /// What is mounted, to be served until the CA has issued.
    pub mounted: Option<MountedFiles>,
    /// How files are followed.
    pub files: FilesConfig,
    /// A notification renews at once.
    pub force: Arc<Notify>,
    /// Where everybody may see how it goes.
    pub status: Arc<Status>,
}
