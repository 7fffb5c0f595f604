use std::{ops::Range, time::Duration};

use super::{reader::Reader, roots::RootsConfig, variables};

/// Our own window, where nothing else is set: renew after this share of the life that is left on receipt.
pub const WINDOW: Range<f64> = 0.45..0.65;

/// What Istio's agent takes where its variables are unset (Istio, `pkg/security`).
const ISTIO_RATIO: f64 = 0.5;
const ISTIO_JITTER: f64 = 0.01;

/// When certificates are renewed, and which roots are served.
#[derive(Clone, Debug, PartialEq)]
pub struct RotationConfig {
    /// When a certificate is renewed.
    pub schedule: Schedule,
    /// Least time between two renewals that are asked for.
    pub forced_pause: Duration,
    /// What is served as `ROOTCA` beside what the CA answers.
    pub roots: RootsConfig,
}

/// When a certificate is renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Schedule {
    /// Istio's ratio and jitter; `None` for our own default window.
    pub grace_period: Option<GracePeriod>,
    /// Life that should always be left.
    pub availability_target: Option<Duration>,
}

/// `SECRET_GRACE_PERIOD_RATIO` and its jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GracePeriod {
    /// Share of the life that is left at the renewal.
    pub ratio: f64,
    /// Distance from the ratio within which the share is chosen.
    pub jitter: f64,
}

pub(super) fn read(reader: &mut Reader<'_>, compat: bool, roots: RootsConfig) -> RotationConfig {
    RotationConfig {
        schedule: schedule(reader, compat),
        forced_pause: reader.duration(&variables::SDS_SHIM_RENEW_PAUSE).unwrap_or_default(),
        roots,
    }
}

fn schedule(reader: &mut Reader<'_>, compat: bool) -> Schedule {
    let ratio = reader.ratio(&variables::SECRET_GRACE_PERIOD_RATIO);
    let jitter = reader.ratio(&variables::SECRET_GRACE_PERIOD_RATIO_JITTER).unwrap_or_default();
    let sets_jitter = reader.is_set(&variables::SECRET_GRACE_PERIOD_RATIO_JITTER);
    let jitter = if compat && !sets_jitter { ISTIO_JITTER } else { jitter };
    let grace_period =
        (ratio.is_some() || sets_jitter || compat).then(|| GracePeriod { ratio: ratio.unwrap_or(ISTIO_RATIO), jitter });
    Schedule { grace_period, availability_target: reader.duration(&variables::SDS_SHIM_AVAILABILITY_TARGET) }
}
