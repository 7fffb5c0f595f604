use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming};
use tonic::Status;

use super::{limits, message::Pieces};

/// What makes the responses of one call, one after the other.
pub(super) trait Responses: Send {
    /// The next response, or how the call ends: a status that is not OK as an error, an end in order as nothing.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>>;
}

/// The body of an answer: messages in pieces, and the status as trailers.
#[derive(Default)]
pub(super) struct ResponseBody {
    /// Nothing once the trailers are sent, and for an answer that has only a header.
    responses: Option<Box<dyn Responses>>,
    pieces: Pieces,
}

impl ResponseBody {
    pub(super) fn new(responses: Box<dyn Responses>) -> Self {
        Self { responses: Some(responses), pieces: Pieces::new() }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(responses) = &mut self.responses else { return Poll::Ready(None) };
            let status = match responses.poll_response(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(pieces))) => {
                    self.pieces = pieces;
                    continue;
                }
                Poll::Ready(Some(Err(status))) => status,
                Poll::Ready(None) => Status::ok(""),
            };
            self.responses = None;
            let mut trailers = HeaderMap::new();
            if status.add_header(&mut trailers).is_err() {
                // The text could not be sent; the code always can.
                let _ = Status::new(status.code(), "").add_header(&mut trailers);
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.responses.is_none() && self.pieces.is_empty()
    }
}

/// The body of a request, cut off when the arena is nearly full: a message that is not yet whole lies in a buffer that
/// doubles as it grows, and many of them at once must not take the room that a renewal needs.
pub(super) struct RequestBody(pub(super) Incoming);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        if frame.is_some() && !limits::may_read() {
            return Poll::Ready(Some(Err(Status::resource_exhausted("there is no room for more requests now"))));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// One response and an end in order.
pub(super) struct Once(pub(super) Option<Pieces>);

impl Responses for Once {
    fn poll_response(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}
