use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Interval, interval},
};

/// A connection whose owner reads nothing, or one byte at a time; and writes one byte at a time, or as others do.
pub(super) struct Sluggish {
    stream: UnixStream,
    reads: Option<Interval>,
    writes: Option<Interval>,
}

impl Sluggish {
    /// Sends what there is at once, and never looks at what comes back.
    pub(super) fn deaf(stream: UnixStream) -> Self {
        Self { stream, reads: None, writes: None }
    }

    /// One byte each way at a time, with this pause in between.
    pub(super) fn byte_by_byte(stream: UnixStream, pause: Duration) -> Self {
        Self { stream, reads: Some(interval(pause)), writes: Some(interval(pause)) }
    }
}

impl AsyncRead for Sluggish {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(pace) = &mut self.reads else { return Poll::Pending };
        ready!(pace.poll_tick(context));
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut one))?;
        buffer.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sluggish {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let most = match &mut self.writes {
            Some(pace) => {
                ready!(pace.poll_tick(context));
                bytes.len().min(1)
            }
            None => bytes.len(),
        };
        Pin::new(&mut self.stream).poll_write(context, &bytes[..most])
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
