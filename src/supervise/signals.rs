use std::{cell::Cell, io, os::fd::AsFd};

use locked::Readable;
use nix::{
    errno::Errno,
    libc::{SI_KERNEL, signalfd_siginfo},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// The question whether we take our events ([`locked::watch_for_hangs`]).
pub const ARE_WE_ALIVE: Signal = Signal::SIGVTALRM;

/// Signals for a process that has no child.
const OURS: &[Signal] = &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, ARE_WE_ALIVE];

/// What else a child may be sent: whatever somebody outside sends by intent. Signals that the kernel raises for a
/// mistake of the process itself are no news for its child; stopping us stops serving, and is left to do so.
const FOR_A_CHILD: &[Signal] = &[
    Signal::SIGCHLD,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGPWR,
];

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which one.
    pub signal: Signal,
    /// A terminal sent it, for a key or a change of its size: then it sent it to the whole foreground group.
    pub from_terminal: bool,
}

impl TryFrom<signalfd_siginfo> for Event {
    type Error = Errno;

    fn try_from(info: signalfd_siginfo) -> Result<Self, Errno> {
        let signal = Signal::try_from(info.ssi_signo.cast_signed())?;
        let keys = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH];
        Ok(Self { signal, from_terminal: info.ssi_code == SI_KERNEL && keys.contains(&signal) })
    }
}

/// The signals of this process as events. They are blocked instead of caught, so that what was set up for each of
/// them is left as it is for a child, and so that a process with the number 1 gets all of them.
pub struct Signals {
    descriptor: Readable<SignalFd>,
    /// What a crash came between.
    inherited: Cell<Option<Signal>>,
}

impl Signals {
    /// Blocks the signals, those for a child among them when there will be one, so that none is lost and none ends the
    /// process before [`Signals::take`]. Call it before any other thread exists.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn block(with_child: bool) -> io::Result<()> {
        Ok(mask(with_child).thread_block()?)
    }

    /// Takes the signals that were blocked. Call it inside a runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(with_child: bool) -> io::Result<Self> {
        let mask = mask(with_child);
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let descriptor = Readable::new(signals)?;
        let inherited = locked::inherited_signal().and_then(|signal| Signal::try_from(signal).ok());
        Ok(Self { descriptor, inherited: Cell::new(inherited.filter(|signal| mask.contains(*signal))) })
    }

    /// The next signal. The one before has been handled.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn next(&self) -> io::Result<Event> {
        if let Some(signal) = self.inherited.take() {
            return Ok(Event { signal, from_terminal: false });
        }
        locked::signal_is_handled();
        self.descriptor.read(|signals| Ok(locked::take_signal(signals.as_fd())?.try_into()?)).await
    }
}

fn mask(with_child: bool) -> SigSet {
    let for_a_child = if with_child { FOR_A_CHILD } else { &[] };
    OURS.iter().chain(for_a_child).copied().collect()
}
