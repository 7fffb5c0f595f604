//! Unix sockets at paths of any length.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

use tokio::net::UnixStream;

/// Connects to the socket at `path`.
///
/// A socket address holds 107 bytes, which a path below `target/` can exceed: the directory is opened and named
/// through its descriptor.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket"));
    };
    let directory = File::open(directory)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)).await
}
