use std::{collections::VecDeque, time::Duration};

use crate::{
    ca::Answer,
    simulation::{Client, Tag, Turn},
};

/// Attempts of one signing (`pkg/security/retry.go`: `WithMax(5)`), and the wait after the first of them, which
/// doubles, give or take a tenth.
const ATTEMPTS: u32 = 5;
const RETRY: Duration = Duration::from_millis(100);
/// What is left of the life at the renewal, and by how much that is moved either way
/// (`SECRET_GRACE_PERIOD_RATIO` and its jitter).
const RATIO: f64 = 0.5;
const JITTER: f64 = 0.01;

/// Who wants a certificate, each with waits of its own after a failure.
#[derive(Clone, Copy, Debug)]
struct Asker {
    /// The bound of the next wait.
    bound: Duration,
    waiting: bool,
}

/// The loop that asks when the agent starts (`newSDSService`): from 0.5 s by half more up to a minute, give or take half.
const WARM: usize = 0;
/// Envoy's streams: each is ended when the agent has no certificate, and opened anew after a wait that is uniform up
/// to a bound which doubles from 0.5 s to 30 s (Envoy's `GrpcStream`).
const DEFAULT: usize = 1;
const ROOTS: usize = 2;
const FIRST_BOUND: Duration = Duration::from_millis(500);

/// Tags beside those of the askers.
const ATTEMPT: Tag = 3;
const ROTATION: Tag = 4;

/// Istio's agent and its Envoy, as `secretcache.go`, `sdsservice.go` and `retry.go` have it. A signing has no deadline,
/// and at the renewal the old certificate is thrown away first.
pub struct Agent {
    cached: bool,
    generation: u8,
    askers: [Asker; 3],
    /// Those that wait for their turn: one signs at a time (`generateMutex`).
    queue: VecDeque<usize>,
    signing: Option<usize>,
    attempt: u32,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            cached: false,
            generation: 0,
            askers: [Asker { bound: FIRST_BOUND, waiting: false }; 3],
            queue: VecDeque::new(),
            signing: None,
            attempt: 0,
        }
    }
}

impl Agent {
    fn ask(&mut self, asker: usize, turn: &mut Turn<'_>) {
        if self.cached {
            self.askers[asker].bound = FIRST_BOUND;
        } else if self.signing.is_some() {
            self.queue.push_back(asker);
        } else {
            self.sign(asker, turn);
        }
    }

    fn sign(&mut self, asker: usize, turn: &mut Turn<'_>) {
        (self.signing, self.attempt) = (Some(asker), 1);
        turn.call(None);
    }

    /// The asker has got nothing, and comes back.
    fn failed(&mut self, asker: usize, turn: &mut Turn<'_>) {
        let state = &mut self.askers[asker];
        let (bound, random) = (state.bound, turn.random());
        let wait = match asker {
            WARM => {
                state.bound = bound.mul_f64(1.5).min(Duration::from_secs(60));
                bound.mul_f64(0.5 + random)
            }
            _ => {
                state.bound = (bound * 2).min(Duration::from_secs(30));
                bound.mul_f64(random)
            }
        };
        state.waiting = true;
        turn.wake_after(wait, asker as Tag);
    }

    fn issued(&mut self, not_after: i64, turn: &mut Turn<'_>) {
        (self.cached, self.signing) = (true, None);
        for asker in self.queue.drain(..) {
            self.askers[asker].bound = FIRST_BOUND;
        }
        self.generation = self.generation.wrapping_add(1) % 64;
        let life = Duration::from_secs((not_after - turn.now()).max(0) as u64);
        let kept = RATIO + JITTER * (2.0 * turn.random() - 1.0);
        turn.wake_after(life.mul_f64(1.0 - kept), ROTATION + self.generation);
    }

    /// The certificate is thrown away, and the stream of `default` is served anew.
    fn renew(&mut self, turn: &mut Turn<'_>) {
        self.cached = false;
        // An Envoy that is about to open its stream again asks then.
        if !self.askers[DEFAULT].waiting {
            self.ask(DEFAULT, turn);
        }
    }
}

impl Client for Agent {
    fn started(&mut self, turn: &mut Turn<'_>) {
        for stream in [DEFAULT, ROOTS] {
            self.askers[stream].waiting = true;
            let wait = Duration::from_millis(500) + Duration::from_secs(1).mul_f64(turn.random());
            turn.wake_after(wait, stream as Tag);
        }
        self.ask(WARM, turn);
    }

    fn woken(&mut self, tag: Tag, turn: &mut Turn<'_>) {
        match tag {
            ATTEMPT => turn.call(None),
            tag if usize::from(tag) < self.askers.len() => {
                self.askers[usize::from(tag)].waiting = false;
                self.ask(usize::from(tag), turn);
            }
            // Only the certificate that it was planned for.
            tag if tag == ROTATION + self.generation && self.cached => self.renew(turn),
            _ => {}
        }
    }

    fn answered(&mut self, answer: Answer, turn: &mut Turn<'_>) {
        let Some(asker) = self.signing else { return };
        if let Answer::Issued { not_after } = answer {
            self.askers[asker].bound = FIRST_BOUND;
            return self.issued(not_after, turn);
        }
        if self.attempt < ATTEMPTS {
            let wait = RETRY * 2_u32.pow(self.attempt - 1);
            self.attempt += 1;
            let jitter = 0.9 + 0.2 * turn.random();
            return turn.wake_after(wait.mul_f64(jitter), ATTEMPT);
        }
        self.signing = None;
        self.failed(asker, turn);
        if let Some(next) = self.queue.pop_front() {
            self.sign(next, turn);
        }
    }

    /// `UpdateConfigTrustBundle`: the certificate is thrown away with the old anchors.
    fn roots_changed(&mut self, turn: &mut Turn<'_>) {
        self.renew(turn);
    }
}
