use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming};
use tonic::Status;

use super::{
    limits::{Place, is_short},
    message::Pieces,
};
use crate::budget::Taker;

/// What makes the responses of one call, one after the other.
pub trait Responses: Send {
    /// The next response, or how the call ends: a status that is not OK as an error, an end in order as nothing.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>>;
}

/// The body of an answer: messages in pieces, and the status as trailers.
#[derive(Default)]
pub(super) struct ResponseBody {
    /// Nothing once the trailers are sent, and for an answer that has only a header.
    responses: Option<Box<dyn Responses>>,
    pieces: Pieces,
    _place: Option<Place>,
}

impl ResponseBody {
    /// A document that takes this place until it has been written.
    pub(super) fn document(content: Pieces, place: Place) -> Self {
        Self { responses: None, pieces: content, _place: Some(place) }
    }

    /// Answers that take this place until the last has been written.
    pub(super) fn new(responses: Box<dyn Responses>, place: Place) -> Self {
        Self { responses: Some(responses), pieces: Pieces::new(), _place: Some(place) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.front_mut() {
                let bytes = piece.take();
                if piece.is_empty() {
                    self.pieces.pop_front();
                }
                match bytes {
                    Some(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    None => continue,
                }
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

/// What an Envoy sends that accepts a secret is well below; whoever sends no more is not the one to cut off.
const SMALL: usize = 1024;

/// The body of a request, cut off when there is no room for a large message: it lies in one piece of memory until it
/// is whole, which is taken as soon as its size is known, and many of them must not take the room that a renewal needs.
pub(super) struct RequestBody {
    body: Incoming,
    taker: Taker,
    prefix: Prefix,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, taker: Taker) -> Self {
        Self { body, taker, prefix: Prefix::default() }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let largest = self.prefix.walk(data).max(data.len());
            if largest > SMALL && is_short(self.taker) {
                return Poll::Ready(Some(Err(Status::resource_exhausted("request limit reached"))));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Follows the messages of a body: before each stand a compression flag and its size ("gRPC over HTTP/2").
#[derive(Default)]
struct Prefix {
    /// Bytes of the prefix that were seen.
    seen: usize,
    size: u32,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Prefix {
    /// The size of the largest message that the data belongs to.
    fn walk(&mut self, mut data: &[u8]) -> usize {
        const BYTES: usize = 5;
        let mut largest = 0;
        while !data.is_empty() {
            if self.left > 0 {
                largest = largest.max(self.size as usize);
                let taken = self.left.min(data.len());
                self.left -= taken;
                data = &data[taken..];
                continue;
            }
            if self.seen > 0 {
                self.size = self.size << 8 | u32::from(data[0]);
            }
            self.seen += 1;
            data = &data[1..];
            if self.seen == BYTES {
                largest = largest.max(self.size as usize);
                *self = Self { seen: 0, size: self.size, left: self.size as usize };
            }
        }
        largest
    }
}

/// One response and an end in order.
pub(super) struct Once(pub(super) Option<Pieces>);

impl Responses for Once {
    fn poll_response(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Pieces, Status>>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_message_is_reported_wherever_frames_end() {
        let body = [&[0, 0, 0, 1, 0][..], &[7; 256], &[0, 0, 0, 0, 2, 1, 1], &[0, 0, 0, 0, 0]].concat();
        assert_eq!(Prefix::default().walk(&body), 256);
        for at in 5..261 {
            let mut prefix = Prefix::default();
            assert_eq!((prefix.walk(&body[..at]), prefix.walk(&body[at..])), (256, 256));
        }
        let mut prefix = Prefix::default();
        assert_eq!((prefix.walk(&body[..4]), prefix.walk(&body[4..261]), prefix.walk(&body[261..])), (0, 256, 2));
    }
}
