//! The wall clock: the one place that reads it, a timer that keeps to it, and the wait for a deadline by both.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use locked::Readable;
use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::time::Instant;
use tracing::{info, warn};

/// The wall clock in Unix seconds; 0 for a clock that was never set.
pub fn now() -> i64 {
    wall_clock().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// The wall clock as a point in time.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// A time in Unix seconds as a [`WallTimer`] has it; one before 1970 is over as well.
pub fn deadline(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.max(0).cast_unsigned())
}

/// A time in Unix seconds as people and programs read it (RFC 3339, UTC).
pub fn rfc3339(seconds: i64) -> String {
    // What lies outside of the years 0 to 9999 has no such form.
    const LAST: i64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.clamp(0, LAST) as u64);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A span of time in its two largest units: `3 h 12 min`.
pub fn words(seconds: i64) -> String {
    let units = [(86_400 * 365, "y"), (86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(first) = units.iter().position(|(size, _)| seconds >= *size) else { return "0 s".to_owned() };
    let (size, unit) = units[first];
    let rest = units.get(first + 1).map_or(0, |(next, _)| seconds % size / next);
    match units.get(first + 1) {
        Some((_, smaller)) if rest > 0 => format!("{} {unit} {rest} {smaller}", seconds / size),
        _ => format!("{} {unit}", seconds / size),
    }
}

/// A moment (Unix seconds) in relation to `now`: `in 3 h 12 min`, `5 min ago`.
pub fn moment(at: i64, now: i64) -> String {
    if at > now {
        format!("in {}", words(at.saturating_sub(now)))
    } else {
        format!("{} ago", words(now.saturating_sub(at)))
    }
}

/// When what this name leads to was written, Unix seconds, if it is there.
pub fn written(file: &Path) -> Option<i64> {
    let at = fs::metadata(file).and_then(|found| found.modified()).ok()?;
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs() as i64)
}

/// Longer than anybody waits.
const AWAY: Duration = Duration::from_secs(86_400);

/// How often the clock is looked at where the kernel does not report that it was set.
const LOOK: Duration = Duration::from_secs(60);
/// What the wall clock may gain or lose between two looks without having been set: adjustments are 0.05 % at the most.
const DRIFT: Duration = Duration::from_secs(1);

/// Says that it is one that does not report that the clock was set, if so.
pub fn tell_of_the_kernel() {
    if locked::on_gvisor() {
        info!("gVisor does not report that the clock was set: it is checked every {} s", LOOK.as_secs());
    }
}

/// What the wait for a deadline needs of the system.
trait Clock {
    /// What the wall clock shows.
    fn now(&self) -> SystemTime;

    /// What a clock shows that nobody sets, from any beginning.
    fn awake(&self) -> Duration;

    /// Waits until `deadline` has come by the wall clock, or the clock was set.
    ///
    /// # Errors
    /// What the kernel says.
    async fn wait(&self, deadline: SystemTime) -> io::Result<()>;

    /// Waits so long by the time that passes while the machine is awake, whatever the wall clock shows.
    async fn sleep(&self, wait: Duration);
}

/// A timer on the wall clock: it fires on time after a suspend, and when somebody sets the clock, where a timer of
/// the runtime would sleep on.
pub struct WallTimer {
    timer: Readable<TimerFd>,
    made: Instant,
}

impl WallTimer {
    /// Makes the timer, unset.
    ///
    /// # Errors
    /// What the kernel says: there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        Ok(Self { timer: Readable::new(timer)?, made: Instant::now() })
    }

    /// Waits until the wall clock shows `deadline`, over suspends. `clock_was_set` is told each time that it was set
    /// while the deadline is still to come.
    pub async fn until(&self, deadline: SystemTime, clock_was_set: impl Fn()) {
        until(self, deadline, clock_was_set).await;
    }

    /// The same for who need not know that it was set; one type of future for all of them.
    pub fn at(&self, deadline: SystemTime) -> impl Future<Output = ()> + Send {
        self.until(deadline, || ())
    }

    /// Waits so long by the time that passes while the machine is awake, whatever the wall clock shows.
    /// `clock_was_set` is told each time that it was set meanwhile.
    pub async fn pause(&self, wait: Duration, clock_was_set: impl Fn()) {
        pause(self, wait, clock_was_set).await;
    }
}

impl Clock for WallTimer {
    fn now(&self) -> SystemTime {
        wall_clock()
    }

    fn awake(&self) -> Duration {
        self.made.elapsed()
    }

    async fn wait(&self, deadline: SystemTime) -> io::Result<()> {
        // Older ones do not know TFD_TIMER_CANCEL_ON_SET, and newer ones ignore it.
        if locked::on_gvisor() {
            compare(self, deadline).await;
            return Ok(());
        }
        // A deadline of zero would disarm the timer.
        let since_epoch = deadline.duration_since(UNIX_EPOCH).unwrap_or_default().max(Duration::from_nanos(1));
        let set = self.timer.get().set(
            Expiration::OneShot(TimeSpec::from_duration(since_epoch)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        );
        // The clock was set since the last wait: the caller looks at it again, and then the timer can be set.
        if set == Err(Errno::ECANCELED) {
            return Ok(());
        }
        set?;
        // That the clock was set ends the wait as well.
        self.timer.read(|timer| Ok(timer.wait()?)).await
    }

    async fn sleep(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
    }
}

async fn until(clock: &impl Clock, deadline: SystemTime, clock_was_set: impl Fn()) {
    while let Ok(wait) = deadline.duration_since(clock.now())
        && !wait.is_zero()
    {
        match clock.wait(deadline).await {
            // Before its time, so the clock was set: the deadline is looked at again.
            Ok(()) if clock.now() < deadline => clock_was_set(),
            Ok(()) => {}
            Err(error) => {
                warn!("the wall-clock timer failed, so suspends are not noticed: {error}");
                clock.sleep(wait).await;
            }
        }
    }
}

/// Waits until `deadline` has come by the wall clock, or that has gone otherwise than time does: it was set, or the
/// machine was suspended.
async fn compare(clock: &impl Clock, deadline: SystemTime) {
    while let Ok(left) = deadline.duration_since(clock.now())
        && !left.is_zero()
    {
        let (shown, awake) = (clock.now(), clock.awake());
        clock.sleep(left.min(LOOK)).await;
        let expected = shown + clock.awake().saturating_sub(awake);
        let apart = clock.now().duration_since(expected).unwrap_or_else(|error| error.duration());
        if apart > DRIFT {
            return;
        }
    }
}

async fn pause(clock: &impl Clock, wait: Duration, clock_was_set: impl Fn()) {
    let told = async {
        // The deadline is none that comes by itself before the pause is over.
        while clock.wait(clock.now() + wait + AWAY).await.is_ok() {
            clock_was_set();
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = clock.sleep(wait) => {}
        () = told => {}
    }
}
