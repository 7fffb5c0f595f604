//! An answer of the CA, read as it comes: in one piece, with what becomes of it, one of a megabyte would fill the arena.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming};

use crate::{
    identity::Answer,
    wire::{Content, GivenUp, MAX_ANSWER, Overlong, PREFIX, Prefix, Varint, field},
};

const TOO_LARGE: &str = "the answer is too large: the limit is 1,280 KiB";
const CUT: &str = "the answer ended too early";
const MORE: &str = "the answer is more than one message";
const FIELDS: &str = "the message has more than 512 fields";
const MALFORMED: &str = "the answer is not an IstioCertificateResponse";

/// The body of an answer of one message, which it passes on as many, each as large as what has come of it.
pub(super) struct Portions {
    body: Incoming,
    given_up: GivenUp,
    /// Whether it is none of gRPC's, but a page of a proxy's, whose status says all.
    is_page: bool,
    prefix: Prefix,
    left: usize,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Portions {
    pub(super) fn new(body: Incoming, given_up: GivenUp, is_page: bool) -> Self {
        Self { body, given_up, is_page, prefix: Prefix::default(), left: 0 }
    }

    fn portion(&mut self, mut data: Bytes) -> Result<Bytes, Error> {
        let taken = self.prefix.take(&data);
        data.advance(taken);
        let Some((compressed, length)) = self.prefix.whole() else { return Ok(Bytes::new()) };
        if taken > 0 {
            self.left = length;
        }
        if self.left > MAX_ANSWER {
            return Err(self.given_up.because(TOO_LARGE).into());
        }
        if data.len() > self.left {
            return Err(self.given_up.because(MORE).into());
        }
        self.left -= data.len();
        let mut portion = BytesMut::with_capacity(PREFIX + data.len());
        portion.put_u8(compressed);
        portion.put_u32(data.len() as u32);
        portion.put(data);
        Ok(portion.freeze())
    }
}

impl Body for Portions {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.is_page {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(match frame.into_data() {
            Ok(data) => self.portion(data).map(Frame::data),
            // An error comes without the whole of an answer; nothing else does.
            Err(trailers) if self.left > 0 && is_ok(&trailers) => Err(self.given_up.because(CUT).into()),
            Err(trailers) => Ok(trailers),
        }))
    }
}

fn is_ok(trailers: &Frame<Bytes>) -> bool {
    trailers.trailers_ref().and_then(|trailers| trailers.get("grpc-status")).is_some_and(|status| status == "0")
}

/// Reads an `IstioCertificateResponse`, portion by portion.
#[derive(Default)]
pub(super) struct Reader {
    answer: Answer,
    state: State,
    fields: usize,
}

/// Where it is in the message.
#[derive(Clone, Copy)]
enum State {
    /// In the key of a field, of which this is known.
    Key(Varint),
    /// In the length of a field, which is one of the chain or not.
    Length(Varint, bool),
    /// In a number.
    Number,
    /// Inside of a field with so many bytes left, which is one of the chain or not.
    Inside(usize, bool),
}

impl Default for State {
    fn default() -> Self {
        Self::Key(Varint::default())
    }
}

impl Reader {
    /// The next portion.
    ///
    /// # Errors
    /// Why it is no answer.
    pub(super) fn read(&mut self, mut portion: &[u8]) -> Result<(), &'static str> {
        while let Some((&byte, rest)) = portion.split_first() {
            if let State::Inside(left, is_chain) = self.state {
                let (taken, after) = portion.split_at(left.min(portion.len()));
                if is_chain {
                    self.answer.read(taken);
                }
                self.inside(left - taken.len(), is_chain);
                portion = after;
                continue;
            }
            portion = rest;
            self.step(byte)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<(), &'static str> {
        match &mut self.state {
            State::Key(key) => {
                let Some(key) = key.step(byte).map_err(|Overlong| MALFORMED)? else { return Ok(()) };
                self.fields += 1;
                if self.fields > MAX_FIELDS {
                    return Err(FIELDS);
                }
                let (number, content) = field(key).ok_or(MALFORMED)?;
                self.state = match content {
                    Content::Delimited => State::Length(Varint::default(), number == CHAIN),
                    Content::Number => State::Number,
                    Content::Bytes(size) => State::Inside(size, false),
                };
            }
            State::Length(length, is_chain) => {
                let is_chain = *is_chain;
                if let Some(length) = length.step(byte).map_err(|Overlong| MALFORMED)? {
                    if is_chain {
                        self.answer.begin();
                    }
                    self.inside(usize::try_from(length).map_err(|_| MALFORMED)?, is_chain);
                }
            }
            State::Number if byte < 0x80 => self.state = State::default(),
            State::Number | State::Inside(..) => {}
        }
        Ok(())
    }

    fn inside(&mut self, left: usize, is_chain: bool) {
        self.state = if left == 0 { State::default() } else { State::Inside(left, is_chain) };
    }

    /// The answer.
    ///
    /// # Errors
    /// When its end is missing.
    pub(super) fn end(mut self) -> Result<Answer, &'static str> {
        match self.state {
            State::Key(key) if !key.has_begun() => {
                self.answer.end();
                Ok(self.answer)
            }
            _ => Err(MALFORMED),
        }
    }
}

/// The field of `IstioCertificateResponse`.
const CHAIN: u64 = 1;
/// Fields that a message may have; each takes more memory than bytes.
const MAX_FIELDS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use sds_shim_proto::istio::v1::auth::IstioCertificateResponse;

    #[test]
    fn a_message_is_read_in_whatever_portions() {
        let cert_chain = vec!["x".repeat(300), String::new(), "y".to_owned()];
        let message = IstioCertificateResponse { cert_chain }.encode_to_vec();
        // Fields of others: a number, eight bytes, a text, four bytes.
        let others = [0x10, 0xff, 0x01, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 0x22, 2, b'a', b'b', 0x2d, 1, 2, 3, 4];
        let whole = [&others[..], &message, &others].concat();
        for size in [1, 2, 3, 100, whole.len()] {
            let mut reader = Reader::default();
            whole.chunks(size).try_for_each(|portion| reader.read(portion)).unwrap();
            assert_eq!(reader.end().unwrap().len(), 3, "in portions of {size}");
        }
        for cut in 1..whole.len() - 1 {
            let mut reader = Reader::default();
            let read = reader.read(&whole[..cut]).and_then(|()| reader.end().map(|answer| answer.len()));
            assert!(read.is_err() || read.unwrap() <= 3);
        }
        let mut reader = Reader::default();
        let many = IstioCertificateResponse { cert_chain: vec![String::new(); MAX_FIELDS + 1] }.encode_to_vec();
        assert_eq!(reader.read(&many), Err(FIELDS));
    }
}
