use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Instant,
};

use super::wire::{self, Answer, HEAD, PREFIX};

/// Bytes that are taken from the kernel at a time.
const READ: usize = 256 << 10;

/// One connection with its streams.
pub(super) struct Connection {
    socket: UnixStream,
    unread: Vec<u8>,
    streams: Vec<Stream>,
}

/// One stream: the parts of the answer under way, and how many have come.
#[derive(Default)]
struct Stream {
    name: &'static str,
    partial: Vec<u8>,
    latest: Answer,
}

impl Connection {
    /// Connects once. A path may be longer than a socket's address can be.
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = File::open(directory)?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { socket: UnixStream::connect(short)?, unread: Vec::new(), streams: Vec::new() })
    }

    /// Opens HTTP/2 and a stream for each of these secrets, in one write.
    pub(super) fn ask(&mut self, names: &[&'static str]) -> io::Result<()> {
        let mut opening = wire::opening();
        for (at, name) in names.iter().enumerate() {
            opening.extend(wire::ask(number(at), name));
            self.streams.push(Stream { name, ..Stream::default() });
        }
        self.socket.write_all(&opening)?;
        self.socket.set_nonblocking(true)
    }

    /// How many streams it has.
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Takes what has come. Calls `arrived` with the place of each stream that has got a whole answer, and the time.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>, mut arrived: impl FnMut(usize, Instant)) -> io::Result<()> {
        buffer.resize(READ, 0);
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.unread.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            let mut at = 0;
            while let Some(length) = frame_at(&self.unread[at..]) {
                let frame = at..at + length;
                self.take(frame, &mut arrived)?;
                at += length;
            }
            self.unread.drain(..at);
        }
    }

    /// Acknowledges the latest answer of each stream.
    pub(super) fn acknowledge(&mut self) -> io::Result<()> {
        let acknowledgements = self.streams.iter().enumerate();
        let frames = acknowledgements.map(|(at, stream)| wire::acknowledge(number(at), stream.name, &stream.latest));
        let frames = frames.collect::<Vec<_>>().concat();
        self.socket.write_all(&frames)
    }

    fn take(&mut self, frame: std::ops::Range<usize>, arrived: &mut impl FnMut(usize, Instant)) -> io::Result<()> {
        let frame = &self.unread[frame];
        let (kind, flags) = (frame[3], frame[4]);
        let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
        match kind {
            wire::DATA => {
                let place = stream as usize / 2;
                let Some(stream) = self.streams.get_mut(place) else { return Ok(()) };
                stream.partial.extend_from_slice(&frame[HEAD..]);
                while let Some(length) = message_at(&stream.partial) {
                    arrived(place, Instant::now());
                    stream.latest = Answer::read(&stream.partial[PREFIX..length]);
                    stream.partial.drain(..length);
                }
            }
            wire::HEADERS if flags & wire::END_STREAM != 0 => return Err(io::Error::other("a stream was ended")),
            wire::RESET => return Err(io::Error::other("a stream was reset")),
            wire::GOAWAY => return Err(io::Error::other("the server says goodbye")),
            wire::SETTINGS if flags & wire::ACK == 0 => {
                self.socket.write_all(&wire::frame(wire::SETTINGS, wire::ACK, 0, &[]))?;
            }
            wire::PING if flags & wire::ACK == 0 => {
                let answer = wire::frame(wire::PING, wire::ACK, 0, &frame[HEAD..]);
                self.socket.write_all(&answer)?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The number of the stream at a place: clients have the odd ones.
fn number(place: usize) -> u32 {
    place as u32 * 2 + 1
}

/// Bytes of the frame at the beginning, once it is whole.
fn frame_at(bytes: &[u8]) -> Option<usize> {
    let [high, middle, low, ..] = bytes else { return None };
    let length = HEAD + u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    (bytes.len() >= length).then_some(length)
}

/// Bytes of the gRPC message at the beginning, once it is whole.
fn message_at(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(1..PREFIX)?.try_into().map(u32::from_be_bytes).ok()?;
    let length = PREFIX + length as usize;
    (bytes.len() >= length).then_some(length)
}
