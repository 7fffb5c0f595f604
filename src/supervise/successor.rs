use tracing::warn;

/// Tells of the crash that we are the successor of, if we are one, and has one succeed us.
pub fn stand_by() {
    if let Some(crash) = locked::last_crash() {
        warn!("{crash}; restarted in place: the socket and the command are kept");
    }
    if let Err(error) = locked::stand_by() {
        warn!("a crash will end this process, as it cannot be restarted in place: {error}");
    }
}
