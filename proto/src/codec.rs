use std::marker::PhantomData;

use prost::{
    Message,
    bytes::{Buf, Bytes},
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Where a stream's buffers start; they grow to what a message needs. tonic's own 8 KiB would be paid twice by every
/// one of hundreds of silent streams.
const INITIAL: usize = 512;
/// Encoded bytes that are handed on at once.
const YIELD: usize = 16 * 1024;

/// Fields of one message. An empty string takes two bytes on the wire and twenty-four in a vector: without a limit
/// a small message could fill the memory of the process.
const MAX_FIELDS: usize = 512;

/// tonic's prost codec with small buffers, and with a limit on what a message unfolds to.
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = LimitedDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(INITIAL, YIELD))
    }

    fn decoder(&mut self) -> LimitedDecoder<U> {
        LimitedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::new(INITIAL, YIELD)))
    }
}

/// The codec of a client that takes answers as bytes, in whatever portions they come as messages.
pub struct BytesCodec<T>(PhantomData<T>);

impl<T> Default for BytesCodec<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Default + Send + 'static> Codec for BytesCodec<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = ProstEncoder<T>;
    type Decoder = BytesDecoder;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, T>::raw_encoder(BufferSettings::new(INITIAL, YIELD))
    }

    fn decoder(&mut self) -> BytesDecoder {
        BytesDecoder
    }
}

/// Hands a message on as it is.
pub struct BytesDecoder;

impl Decoder for BytesDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = buf.remaining();
        Ok(Some(buf.copy_to_bytes(len)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(INITIAL, YIELD)
    }
}

/// Counts the fields of a message before any of them is stored.
pub struct LimitedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for LimitedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic hands over a message in one piece.
        if buf.chunk().len() == buf.remaining() && has_too_many_fields(buf.chunk()) {
            // As tonic answers to a message that is too long. RESOURCE_EXHAUSTED would mean that a CA is overloaded.
            return Err(Status::out_of_range(format!("the message has more than {MAX_FIELDS} fields")));
        }
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether there are more than [`MAX_FIELDS`] at the top level: the messages of this crate repeat nothing deeper,
/// but for the values of a `Struct`, which only we send. What is malformed is left to the decoder to name.
fn has_too_many_fields(mut message: &[u8]) -> bool {
    let mut fields = 0;
    while message.has_remaining() {
        let Ok((tag, kind)) = decode_key(&mut message) else { return false };
        if skip_field(kind, tag, &mut message, DecodeContext::default()).is_err() {
            return false;
        }
        fields += 1;
        if fields > MAX_FIELDS {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::v1::auth::IstioCertificateResponse;

    #[test]
    fn fields_are_counted_before_they_are_stored() {
        let message = |elements| IstioCertificateResponse { cert_chain: vec![String::new(); elements] }.encode_to_vec();
        assert!(!has_too_many_fields(&message(MAX_FIELDS)));
        assert!(has_too_many_fields(&message(MAX_FIELDS + 1)));
        assert!(!has_too_many_fields(b"\xff\xff\xff"));
        assert!(!has_too_many_fields(b""));
    }
}
