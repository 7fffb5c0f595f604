use std::time::Duration;

use sds_shim::{
    config::Schedule,
    rotation::{Backoff, Setback, Strain, renewal_after, wait_after},
};

use crate::{
    ca::Answer,
    simulation::{Client, Tag, Turn},
};

/// The default of `SDS_SHIM_CA_ANSWER_TIMEOUT`: who gets a connection gets it at once.
const DEADLINE: Duration = Duration::from_secs(60);

/// A shim with the default configuration: when it asks is decided by the functions that ship, and here is only what
/// stands between them in the renewal loop.
#[derive(Default)]
pub struct Shim {
    not_after: Option<i64>,
    backoff: Backoff,
}

impl Shim {
    fn left(&self, now: i64) -> Option<Duration> {
        self.not_after.map(|not_after| Duration::from_secs(not_after.saturating_sub(now).max(0) as u64))
    }
}

impl Client for Shim {
    fn started(&mut self, turn: &mut Turn<'_>) {
        turn.call(Some(DEADLINE));
    }

    fn woken(&mut self, _: Tag, turn: &mut Turn<'_>) {
        turn.call(Some(DEADLINE));
    }

    fn answered(&mut self, answer: Answer, turn: &mut Turn<'_>) {
        let (now, random) = (turn.now(), turn.random());
        let setback = match answer {
            Answer::Issued { not_after } => {
                (self.not_after, self.backoff) = (Some(not_after), Backoff::default());
                return turn.wake_after(renewal_after(&Schedule::default(), not_after, now, random), 0);
            }
            Answer::Refused => Setback::Failed { strain: Strain::Away, asked: None },
            Answer::Unavailable => Setback::Failed { strain: Strain::None, asked: None },
            Answer::Deadline => Setback::Failed { strain: Strain::Late, asked: None },
            Answer::Overload { asked } => Setback::Failed { strain: Strain::Overload, asked },
        };
        let wait = wait_after(setback, self.left(now), &mut self.backoff, random);
        turn.wake_after(wait, 0);
    }

    /// New anchors are served without a call.
    fn roots_changed(&mut self, _: &mut Turn<'_>) {}
}
