//! The wall clock: the one place that reads it, and a timer that keeps to it.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use locked::Readable;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

/// The wall clock in Unix seconds; 0 for a clock that was never set.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// The wall clock as a point in time.
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A timer on the wall clock: it fires on time after a suspend, and when somebody sets the clock, where a timer of
/// the runtime would sleep on.
pub struct WallTimer {
    timer: TimerFd,
    readable: Readable,
}

impl WallTimer {
    /// Makes the timer, unset.
    ///
    /// # Errors
    /// What the kernel says: there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let readable = Readable::new(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, readable })
    }

    /// Waits until `deadline` has come by the wall clock, or the clock was set: the caller looks at the clock again.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn wait(&self, deadline: SystemTime) -> io::Result<()> {
        // A deadline of zero would disarm the timer.
        let since_epoch = deadline.duration_since(UNIX_EPOCH).unwrap_or_default().max(Duration::from_nanos(1));
        self.timer.set(
            Expiration::OneShot(TimeSpec::from_duration(since_epoch)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        )?;
        // That the clock was set ends the wait as well.
        self.readable.read(|| Ok(self.timer.wait()?)).await
    }
}
