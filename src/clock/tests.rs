use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    task::{Context, Poll, Waker},
};

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(31_536_000);

/// When the waits of these tests begin.
fn start() -> SystemTime {
    UNIX_EPOCH + 54 * YEAR
}

/// How a wait by the wall clock ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The timer wakes us, and the clock shows this by then.
    Wakes(SystemTime),
    /// The kernel refuses it; the sleep instead ends when the clock shows this.
    Fails(SystemTime),
}

/// A machine whose clock goes by a script. Nothing is really waited for.
struct Script {
    now: Cell<SystemTime>,
    ends: RefCell<VecDeque<End>>,
    after_sleep: Cell<SystemTime>,
    waits: RefCell<Vec<SystemTime>>,
    sleeps: RefCell<Vec<Duration>>,
}

impl Clock for Script {
    fn now(&self) -> SystemTime {
        self.now.get()
    }

    fn awake(&self) -> Duration {
        Duration::ZERO
    }

    async fn wait(&self, deadline: SystemTime) -> io::Result<()> {
        self.waits.borrow_mut().push(deadline);
        match self.ends.borrow_mut().pop_front().expect("it waits although it is due") {
            End::Wakes(now) => self.now.set(now),
            End::Fails(then) => {
                self.after_sleep.set(then);
                return Err(io::Error::from_raw_os_error(nix::libc::ENOMEM));
            }
        }
        Ok(())
    }

    async fn sleep(&self, wait: Duration) {
        self.sleeps.borrow_mut().push(wait);
        self.now.set(self.after_sleep.get());
    }
}

/// What a wait did.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Waits by the timer, all for the deadline.
    waits: usize,
    sleeps: Vec<Duration>,
    /// How often the clock was said to be set.
    looks: usize,
}

/// Waits for `deadline` from [`start`] on, while the clock goes by the script, all of which must happen.
fn wait_for(deadline: SystemTime, ends: &[End]) -> Outcome {
    let script = Script {
        now: Cell::new(start()),
        ends: RefCell::new(ends.iter().copied().collect()),
        after_sleep: Cell::new(start()),
        waits: RefCell::default(),
        sleeps: RefCell::default(),
    };
    let looks = Cell::new(0);
    let waiting = std::pin::pin!(until(&script, deadline, || looks.set(looks.get() + 1)));
    let polled = waiting.poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_ready(), "the script never waits");
    assert!(script.now.get() >= deadline, "due {:?} too early", deadline.duration_since(script.now.get()));
    assert_eq!(script.ends.borrow().len(), 0, "it was due before the script was over");
    let waits = script.waits.borrow();
    assert!(waits.iter().all(|waited| *waited == deadline), "{waits:?} instead of {deadline:?}");
    Outcome { waits: waits.len(), sleeps: script.sleeps.borrow().clone(), looks: looks.get() }
}

fn outcome(waits: usize, looks: usize) -> Outcome {
    Outcome { waits, sleeps: Vec::new(), looks }
}

#[test]
fn it_is_due_at_the_deadline_and_not_before() {
    for away in [SECOND, HOUR, DAY, 10 * YEAR] {
        let deadline = start() + away;
        assert_eq!(wait_for(deadline, &[End::Wakes(deadline)]), outcome(1, 0));
    }
}

#[test]
fn a_clock_that_is_set_forwards_past_the_deadline_makes_it_due_at_once() {
    for step in [DAY, YEAR] {
        assert_eq!(wait_for(start() + HOUR, &[End::Wakes(start() + step)]), outcome(1, 0));
    }
}

#[test]
fn a_clock_that_is_set_forwards_short_of_the_deadline_brings_it_nearer() {
    let deadline = start() + YEAR;
    assert_eq!(wait_for(deadline, &[End::Wakes(start() + DAY), End::Wakes(deadline)]), outcome(2, 1));
}

#[test]
fn a_clock_that_is_set_back_leaves_the_deadline_where_it_is() {
    let deadline = start() + HOUR;
    for step in [SECOND, DAY, YEAR] {
        assert_eq!(wait_for(deadline, &[End::Wakes(start() - step), End::Wakes(deadline)]), outcome(2, 1));
    }
    let there_and_back = [End::Wakes(start() - YEAR), End::Wakes(start() - DAY), End::Wakes(start() + DAY)];
    assert_eq!(wait_for(deadline, &there_and_back), outcome(3, 2));
}

#[test]
fn after_a_suspend_it_is_due_at_once() {
    let deadline = start() + HOUR;
    for late in [SECOND, 8 * HOUR, YEAR] {
        assert_eq!(wait_for(deadline, &[End::Wakes(deadline + late)]), outcome(1, 0));
    }
}

#[test]
fn a_past_deadline_is_due_immediately() {
    for ago in [Duration::ZERO, SECOND, YEAR] {
        assert_eq!(wait_for(start() - ago, &[]), outcome(0, 0));
    }
}

#[test]
fn without_a_timer_it_sleeps_for_what_is_left() {
    let deadline = start() + HOUR;
    let slept = |waits, sleeps: &[Duration], looks| Outcome { sleeps: sleeps.to_vec(), ..outcome(waits, looks) };
    assert_eq!(wait_for(deadline, &[End::Fails(deadline)]), slept(1, &[HOUR], 0));
    // Set back during the sleep: only what is left then is slept for.
    assert_eq!(
        wait_for(deadline, &[End::Fails(start() - DAY), End::Fails(deadline)]),
        slept(2, &[HOUR, DAY + HOUR], 0)
    );
    // It works again.
    assert_eq!(wait_for(deadline, &[End::Fails(start()), End::Wakes(deadline)]), slept(2, &[HOUR], 0));
}

proptest! {
    /// However the clock jumps: as soon as it shows the deadline, and each look before that is told.
    #[test]
    fn it_is_due_at_the_first_look_at_or_after_the_deadline(
        away in 1_u64..400_000_000,
        jumps in prop::collection::vec((0_u64..400_000_000, any::<bool>()), 0..50),
    ) {
        let deadline = start() + Duration::from_secs(away);
        let before = |seconds| deadline - Duration::from_secs(1 + seconds);
        let mut ends: Vec<_> = jumps
            .iter()
            .map(|(seconds, works)| if *works { End::Wakes(before(*seconds)) } else { End::Fails(before(*seconds)) })
            .collect();
        ends.push(End::Wakes(deadline));
        let outcome = wait_for(deadline, &ends);
        prop_assert_eq!(outcome.looks, jumps.iter().filter(|(_, works)| *works).count());
        prop_assert_eq!(outcome.waits, ends.len());
    }
}

/// A clock that is set so often while somebody sleeps, and then the sleep is over.
struct Restless {
    times: Cell<usize>,
}

impl Clock for Restless {
    fn now(&self) -> SystemTime {
        start()
    }

    fn awake(&self) -> Duration {
        Duration::ZERO
    }

    async fn wait(&self, deadline: SystemTime) -> io::Result<()> {
        assert!(deadline > start() + YEAR, "it would end the wait before the sleep is over");
        match self.times.get() {
            0 => std::future::pending().await,
            left => self.times.set(left - 1),
        }
        Ok(())
    }

    async fn sleep(&self, wait: Duration) {
        assert_eq!(wait, YEAR);
        std::future::poll_fn(|_| if self.times.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

#[test]
fn a_pause_lasts_whatever_the_clock_does_and_tells_of_it() {
    for times in [0, 1, 5] {
        let (clock, looks) = (Restless { times: Cell::new(times) }, Cell::new(0));
        let mut pause = std::pin::pin!(pause(&clock, YEAR, || looks.set(looks.get() + 1)));
        let mut poll = || pause.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(poll().is_ready(), times == 0);
        assert_eq!(looks.get(), times);
        assert!(times == 0 || poll().is_ready());
    }
}

/// A machine whose kernel does not tell that the clock was set: time passes by what is slept, and the clock is set by
/// so much at the beginning of a sleep.
struct Deaf {
    now: Cell<SystemTime>,
    awake: Cell<Duration>,
    sets: RefCell<VecDeque<(bool, Duration)>>,
}

impl Clock for Deaf {
    fn now(&self) -> SystemTime {
        self.now.get()
    }

    fn awake(&self) -> Duration {
        self.awake.get()
    }

    async fn wait(&self, deadline: SystemTime) -> io::Result<()> {
        compare(self, deadline).await;
        Ok(())
    }

    async fn sleep(&self, wait: Duration) {
        assert!(wait <= LOOK, "{wait:?}");
        // Whoever is slow to wake up has not set the clock.
        let slept = wait + 3 * SECOND;
        self.awake.set(self.awake.get() + slept);
        let now = self.now.get() + slept;
        self.now.set(match self.sets.borrow_mut().pop_front() {
            Some((true, step)) => now + step,
            Some((false, step)) => now - step,
            None => now,
        });
    }
}

#[test]
fn a_clock_that_was_set_is_found_by_polling_where_the_kernel_is_silent() {
    // (forwards, by how much) a sleep, how often it is told, and how long it takes until it is due.
    for (sets, looks, due) in [
        (vec![], 0, HOUR),
        (vec![(true, SECOND / 2), (false, SECOND / 2)], 0, HOUR),
        (vec![(true, HOUR / 2)], 1, HOUR / 2),
        (vec![(true, DAY)], 0, Duration::ZERO),
        (vec![(false, HOUR)], 1, 2 * HOUR),
        (vec![(false, HOUR), (true, HOUR)], 2, HOUR),
    ] {
        let text = format!("{sets:?}");
        let clock = Deaf { now: Cell::new(start()), awake: Cell::default(), sets: RefCell::new(sets.into()) };
        let told = Cell::new(0);
        let deadline = start() + HOUR;
        let waiting = std::pin::pin!(until(&clock, deadline, || told.set(told.get() + 1)));
        assert!(waiting.poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(clock.now() >= deadline, "{text}");
        assert_eq!(told.get(), looks, "{text}");
        let late = clock.awake().abs_diff(due);
        assert!(late <= LOOK + 4 * SECOND, "{text}: {late:?}");
    }
}

#[tokio::test]
async fn a_pause_is_over_in_its_time_by_the_kernels_timer_too() {
    let (timer, begin) = (WallTimer::new().unwrap(), std::time::Instant::now());
    timer.pause(Duration::from_millis(20), || {}).await;
    assert!(begin.elapsed() >= Duration::from_millis(20));
}

#[tokio::test]
async fn the_kernels_timer_keeps_to_the_wall_clock() {
    let timer = WallTimer::new().unwrap();
    timer.until(UNIX_EPOCH, || {}).await;
    timer.until(wall_clock() - YEAR, || {}).await;
    for _ in 0..3 {
        let deadline = wall_clock() + Duration::from_millis(20);
        timer.until(deadline, || {}).await;
        assert!(wall_clock() >= deadline);
    }
}

#[test]
fn durations_are_written_in_two_units() {
    for (seconds, expected) in [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3 * 3600 + 12 * 60 + 7, "3 h 12 min"),
        (86_400 * 400, "1 y 35 d"),
        (3600 + 5, "1 h"),
    ] {
        assert_eq!(words(seconds), expected);
    }
}
