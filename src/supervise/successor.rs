use tracing::{info, warn};

/// Tells of the crash that we are the successor of, if we are one, and has one succeed us, after a hang as well. The
/// process's signals are blocked by then ([`super::Signals::block`]).
pub fn stand_by() {
    if let Some(crash) = locked::last_crash() {
        warn!("{crash}; restarted in place: the socket and the command are kept");
    }
    if let Err(error) = locked::stand_by() {
        warn!("a crash will end this process, as it cannot be restarted in place: {error}");
    } else if let Err(error) = locked::watch_for_hangs() {
        info!("a hang of this process will not be noticed: cannot create timers: {error}");
    }
}
