//! Files that others write, and how we learn that they changed.

mod access;
mod changes;
mod crl;
mod output;
mod roots;
mod source;
mod watcher;

pub use access::FileAccess;
pub use changes::{Changes, look_again, tell_of_places};
pub use output::{OnWritten, OutputWriter};
pub use roots::RootFiles;
pub use source::{FileSource, MountedCertificate, read_certificate};
pub use watcher::FileWatcher;
