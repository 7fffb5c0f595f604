//! Files that others write, and how we learn that they changed.

mod watcher;

pub use watcher::FileWatcher;
