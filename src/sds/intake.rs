use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Sleep, sleep},
};

use super::{
    account::Account,
    crowd::Crowd,
    frames::Walker,
    limits::{self, Limits},
};

/// A connection of which no more is taken than there is room for, than its client has a right to, and than was dealt with
/// before. What is not taken waits in the kernel.
pub(super) struct Intake {
    stream: UnixStream,
    walker: Walker,
    account: Arc<Account>,
    crowd: Arc<Crowd>,
    limits: Limits,
    /// Set while it must not read.
    pause: Option<Pin<Box<Sleep>>>,
    /// Since when there has been no room for what the client sends.
    short_since: Option<Instant>,
    /// When somebody had to leave for it.
    relieved: Option<Instant>,
    /// Whether the client does not take what we write: then we take nothing of it either, since each frame may need an
    /// answer.
    blocked: bool,
}

impl Intake {
    pub(super) fn new(stream: UnixStream, account: Arc<Account>, crowd: Arc<Crowd>, limits: Limits) -> Self {
        let walker = Walker::default();
        Self { stream, walker, account, crowd, limits, pause: None, short_since: None, relieved: None, blocked: false }
    }

    /// How many bytes may be read now, or how long to wait before it may be asked again.
    fn allowance(&mut self) -> Result<usize, Duration> {
        if let Some(wait) = self.account.group.units().wait(Instant::now()) {
            return Err(wait.max(Duration::from_millis(1)));
        }
        let most = self.limits.may_read(&self.account);
        if most > 0 {
            (self.short_since, self.relieved) = (None, None);
            let (harmless, opening) = (self.walker.harmless(), self.limits.may_open(&self.account));
            return match harmless.max(opening) {
                // A first call, such as a probe's, and no second one with it.
                _ if opening == 0 && self.account.streams() == 0 => Ok(self.walker.rest().min(most)),
                0 => Err(limits::PAUSE),
                part => Ok(part.min(most)),
            };
        }
        let waited = self.short_since.get_or_insert_with(Instant::now).elapsed();
        let least = self.limits.may_read_the_least();
        let harmless = self.walker.harmless().min(least);
        if harmless > 0 {
            return Ok(harmless);
        }
        // What has waited long enough is taken to be refused.
        if least > 0 && waited >= limits::REFUSED_AFTER && self.walker.headers <= limits::SMALL_HEADERS {
            return Ok(self.walker.rest().min(least));
        }
        if self.relieved.map_or(waited, |at| at.elapsed()) >= limits::RELIEVED_AFTER {
            if self.crowd.relieve(self.limits.taker()) {
                self.relieved = Some(Instant::now());
            }
        } else if waited >= limits::REFUSED_AFTER {
            self.crowd.make_room(self.limits.taker());
        }
        Err(limits::PAUSE)
    }

    /// Looks at what was read.
    fn judge(&self) -> io::Result<()> {
        let refused = |reason| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        match &self.walker {
            walker if walker.headers > limits::MAX_HEADER_BLOCK => refused("the headers of a request are too large"),
            walker if walker.fields > limits::MAX_FIELDS => refused("a request has too many headers"),
            walker if walker.narrow => refused("the client's window for a stream is too small"),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Intake {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.account.has_turn() {
            // After those who are ready as well, among them the streams that have just begun.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.blocked {
            self.limits.idle(&self.account);
            return Poll::Pending;
        }
        let most = loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.allowance() {
                Ok(most) => break most,
                Err(wait) => {
                    // A client that is gone ends here, with what it sent unread: its memory may be just what is missing.
                    if is_hung_up(&self.stream) {
                        return Poll::Ready(Ok(()));
                    }
                    // Nobody tells when memory is freed; meanwhile what we send goes on.
                    self.pause = Some(Box::pin(sleep(wait)));
                }
            }
        };
        let most = most.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut part) else {
            self.limits.idle(&self.account);
            return Poll::Pending;
        };
        read?;
        self.account.end_turn();
        let (frames, open) = (self.walker.frames, self.walker.is_open());
        self.walker.walk(part.filled_mut());
        self.account.group.units().take(self.walker.frames.wrapping_sub(frames).max(1), Instant::now());
        if !open && self.walker.is_open() {
            self.account.opened();
        }
        self.judge()?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl Intake {
    /// Notes how a write went. Nobody but we ourselves tells that we may read again.
    fn wrote<T>(&mut self, cx: &Context<'_>, written: Poll<T>) -> Poll<T> {
        if self.blocked != written.is_pending() {
            self.blocked = written.is_pending();
            self.account.blocked(self.blocked);
            if !self.blocked {
                cx.waker().wake_by_ref();
            }
        }
        written
    }
}

impl AsyncWrite for Intake {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Whether the client is gone, whatever of it is still unread.
fn is_hung_up(stream: &UnixStream) -> bool {
    // A hang-up is reported unasked.
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let hung_up = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut descriptors, PollTimeout::ZERO).is_ok()
        && descriptors[0].revents().is_some_and(|events| events.intersects(hung_up))
}
