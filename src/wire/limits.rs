//! What may come from a server, the CA or whoever sits on the way to it, in one call. HTTP/2 itself has no such limits:
//! h2 reads for as long as there is something, and keeps some 500 bytes for each frame of ten that it has no use for.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::budget;

/// Bytes of an answer: a chain is a few KiB, and a bundle of four hundred roots a megabyte.
pub const MAX_ANSWER: usize = 1280 * 1024;
/// Bytes of one call, headers and frames included.
pub const MAX_BYTES: usize = MAX_ANSWER + 256 * 1024;
/// HTTP/2 frames of one call that bring next to nothing, and bytes that pay for one more. The largest answer takes
/// eighty; some proxies cut it into pieces of a KiB.
const MAX_FRAMES: usize = 256;
const BYTES_OF_A_FRAME: usize = 512;
/// Bytes that are taken before we look again.
const AT_ONCE: usize = 4 * 1024;
/// Fewer bytes than this at once are not worth it: there is no room.
const LEAST: usize = 16;

/// How long one waits for others to free memory before one looks again, and how often.
const PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSES: usize = 50;

const TOO_MANY_BYTES: &str = "received more than 1,536 KiB in one call, or in a minute of it";
const TOO_MANY_FRAMES: &str = "received more than 256 HTTP/2 frames in one call, and more than one for each 512 bytes (informational responses, \
                               perhaps)";
const NO_ROOM: &str = "not enough arena memory for the answer; raise SDS_SHIM_ARENA_KIB";

/// A stream for a call that does not end has all limits once more after so long.
const PERIOD: Duration = Duration::from_secs(60);
/// gRPC pads nothing.
const PADDED: &str = "received padded DATA frames";

/// Why a connection was given up, once it was.
#[derive(Clone, Default)]
pub struct GivenUp(Arc<OnceLock<&'static str>>);

impl GivenUp {
    /// The reason, if it was.
    pub fn reason(&self) -> Option<&'static str> {
        self.0.get().copied()
    }

    /// Gives it up.
    pub fn because(&self, reason: &'static str) -> io::Error {
        let _ = self.0.set(reason);
        io::Error::other(reason)
    }
}

/// What is shown the content of DATA frames before HTTP/2 is, piece by piece. It may leave other bytes in its place: what
/// HTTP/2 has read stays in its buffer for a while.
pub type Tap = Box<dyn FnMut(&mut [u8]) + Send>;

/// The stream under HTTP/2, which brings no more than an answer can be, nor more than there is room for.
pub struct Limited<S> {
    stream: S,
    given_up: GivenUp,
    /// Where the call does not end.
    lasting: Option<Lasting>,
    bytes: usize,
    frames: Frames,
    pause: Option<Pin<Box<Sleep>>>,
    pauses: usize,
}

struct Lasting {
    /// What takes its content.
    tap: Tap,
    /// Since when the limits count.
    since: Instant,
    /// In secret memory: what is read goes here, and on without its content.
    block: Vec<u8>,
}

impl<S> Limited<S> {
    /// One for a single call.
    pub fn new(stream: S, given_up: GivenUp) -> Self {
        Self { stream, given_up, lasting: None, bytes: 0, frames: Frames::default(), pause: None, pauses: 0 }
    }

    /// One for a call that does not end, whose limits hold for each minute.
    pub fn lasting(stream: S, given_up: GivenUp, tap: Tap) -> Self {
        const BLOCK: usize = 1024;
        let block = locked::secretly(|| vec![0; BLOCK]);
        Self { lasting: Some(Lasting { tap, since: Instant::now(), block }), ..Self::new(stream, given_up) }
    }

    /// So many bytes more have come.
    fn count(&mut self, read: usize) -> io::Result<()> {
        self.bytes += read;
        match self.given_up.reason() {
            // What they say is no good.
            Some(reason) => Err(io::Error::other(reason)),
            None if self.frames.count > MAX_FRAMES + self.bytes / BYTES_OF_A_FRAME => {
                Err(self.given_up.because(TOO_MANY_FRAMES))
            }
            None if self.bytes > MAX_BYTES => Err(self.given_up.because(TOO_MANY_BYTES)),
            None => Ok(()),
        }
    }

    /// How many bytes may be taken now.
    fn room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let room = budget::for_answer().min(AT_ONCE);
            if room >= LEAST {
                self.pause = None;
                return Poll::Ready(Ok(room));
            }
            if self.pauses == MAX_PAUSES {
                return Poll::Ready(Err(self.given_up.because(NO_ROOM)));
            }
            // Nobody tells when memory is freed.
            ready!(self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE))).as_mut().poll(cx));
            (self.pause, self.pauses) = (None, self.pauses + 1);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = ready!(self.room(cx))?.min(buf.remaining());
        let this = &mut *self;
        let Some(Lasting { tap, since, block }) = &mut this.lasting else {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            this.frames.walk(part.filled_mut(), None);
            let read = part.filled().len();
            buf.advance(read);
            return Poll::Ready(this.count(read));
        };
        let most = most.min(block.len());
        let mut part = ReadBuf::new(&mut block[..most]);
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        if since.elapsed() >= PERIOD {
            *since = Instant::now();
            (this.bytes, this.frames.count, this.pauses) = (0, 0, 0);
        }
        if !this.frames.walk(part.filled_mut(), Some(tap)) {
            block.fill(0);
            return Poll::Ready(Err(this.given_up.because(PADDED)));
        }
        let read = part.filled().len();
        buf.put_slice(part.filled());
        Poll::Ready(this.count(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Counts frames (RFC 9113, section 4.1).
#[derive(Default)]
struct Frames {
    count: usize,
    /// Of the head that is being read.
    head: usize,
    /// Length of the content that follows it, and what of that is still to come.
    length: usize,
    left: usize,
    kind: u8,
    flags: u8,
}

impl Frames {
    /// Length (three bytes), kind, flags, and stream.
    const HEAD: usize = 9;
    const LENGTH: usize = 3;
    const KIND: usize = 3;
    const FLAGS: usize = 4;
    /// A frame's kind, and a flag of it (section 6.1).
    const DATA: u8 = 0x0;
    const PADDED: u8 = 0x8;

    /// Shows the content of DATA frames to `tap`. Answers `false` where it cannot tell content from padding.
    fn walk(&mut self, mut bytes: &mut [u8], mut tap: Option<&mut Tap>) -> bool {
        loop {
            if self.left > 0 {
                let (content, rest) = bytes.split_at_mut(self.left.min(bytes.len()));
                self.left -= content.len();
                if let Some(tap) = tap.as_mut().filter(|_| self.kind == Self::DATA) {
                    if self.flags & Self::PADDED != 0 {
                        return false;
                    }
                    tap(content);
                }
                bytes = rest;
            }
            let Some((&mut byte, rest)) = bytes.split_first_mut() else { return true };
            match self.head {
                ..Self::LENGTH => self.length = self.length << 8 | usize::from(byte),
                Self::KIND => self.kind = byte,
                Self::FLAGS => self.flags = byte,
                _ => {}
            }
            self.head += 1;
            if self.head == Self::HEAD {
                let Self { length, kind, flags, .. } = *self;
                *self = Self { count: self.count + 1, left: length, kind, flags, ..Self::default() };
            }
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let frame = |length: usize| [vec![0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 0, 1], vec![7; length]];
        let bytes = [frame(0), frame(1), frame(300), frame(0)].concat().concat();
        for size in [1, 2, 8, 9, 10, 100, bytes.len()] {
            let mut frames = Frames::default();
            bytes.clone().chunks_mut(size).for_each(|chunk| assert!(frames.walk(chunk, None)));
            assert_eq!((frames.count, frames.head, frames.left), (4, 0, 0), "in pieces of {size}");
        }
    }

    #[test]
    fn the_content_of_data_frames_is_shown_and_nothing_else() {
        let frame = |kind: u8, flags: u8, content: &[u8]| {
            [&[0, 0, content.len() as u8, kind, flags, 0, 0, 0, 1], content].concat()
        };
        let bytes = [frame(1, 8, b"headers"), frame(0, 0, b"da"), frame(0, 1, b""), frame(6, 0, b"pingpong")];
        let bytes = [bytes.concat(), frame(0, 1, b"ta")].concat();
        for size in [1, 2, 8, 9, 10, 100] {
            let (sender, shown) = std::sync::mpsc::channel();
            let mut tap: Tap = Box::new(move |content: &mut [u8]| {
                sender.send(content.to_vec()).unwrap();
                content.fill(0);
            });
            let (mut frames, mut passed) = (Frames::default(), bytes.clone());
            passed.chunks_mut(size).for_each(|chunk| assert!(frames.walk(chunk, Some(&mut tap))));
            drop(tap);
            assert_eq!(shown.iter().flatten().collect::<Vec<_>>(), b"data", "in pieces of {size}");
            let expected: Vec<u8> = [frame(1, 8, b"headers"), frame(0, 0, &[0; 2]), frame(0, 1, b"")].concat();
            let expected = [expected, frame(6, 0, b"pingpong"), frame(0, 1, &[0; 2])].concat();
            assert_eq!(passed, expected);
        }
        let mut tap: Tap = Box::new(|_| panic!("padding is no content"));
        assert!(!Frames::default().walk(&mut frame(0, 8, b"\x01x0"), Some(&mut tap)));
    }

    async fn all_of(content: Vec<u8>) -> (usize, Option<&'static str>) {
        use tokio::io::AsyncReadExt;
        let given_up = GivenUp::default();
        let mut stream = Limited::new(io::Cursor::new(content), given_up.clone());
        let (mut read, mut part) = (0, [0; 16 * 1024]);
        loop {
            match stream.read(&mut part).await {
                Ok(0) => return (read, None),
                Ok(count) => read += count,
                Err(_) => return (read, given_up.reason()),
            }
        }
    }

    #[tokio::test]
    async fn an_answer_passes_and_a_flood_does_not() {
        let data =
            |length: usize| [vec![0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 0, 1], vec![7; length]].concat();
        let answer = data(16 * 1024).repeat(5);
        assert_eq!(all_of(answer.clone()).await, (answer.len(), None));
        assert_eq!(all_of(data(16 * 1024).repeat(97)).await.1, Some(TOO_MANY_BYTES));
        assert_eq!(all_of(data(1).repeat(300)).await.1, Some(TOO_MANY_FRAMES));
        assert_eq!(all_of(data(1).repeat(256)).await, (2560, None));
        let in_pieces = data(1024).repeat(1280);
        assert_eq!(all_of(in_pieces.clone()).await, (in_pieces.len(), None));
    }
}
