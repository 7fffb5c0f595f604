//! The budget of the arena: who may take how much of it, and what must be left for the others.
//!
//! An allocation that fails ends the process, and with it everyone's service. So whoever takes memory on behalf of
//! foreign bytes asks here first and refuses what finds no room. Each of the questions below leaves alone what the
//! more important ones need, in this order: the renewal of our own certificate, a certificate that is parsed, what is
//! read from files, documents, clients of the socket.

/// Bytes of the usual arena's heap, nearly: a larger one has proportionally more places for clients.
const USUAL_ARENA: usize = 1920 * 1024;

/// The largest piece that a renewal takes, for the records of a TLS handshake and what OpenSSL makes of them.
const RENEWAL_PIECE: usize = 160 * 1024;

/// Bytes of the arena that are left when a client of the socket takes something; a renewal finds room in it.
const BESIDES_CLIENTS: usize = 544 * 1024;
/// As much of it may be taken for what ends a request that has begun, and for who has nothing yet: it is a few KiB each
/// time, and soon free again.
const LEAST: usize = 96 * 1024;
/// Bytes that must be free besides, for a further stream and for a further connection.
const STREAM: usize = 64 * 1024;
const CONNECTION: usize = 192 * 1024;
/// Bytes that applications leave to Envoy beside all this, and what of it is in whole pieces: a further connection, with
/// what ends requests that have begun, and a large request.
const FOR_ENVOY: usize = CONNECTION + LEAST;
const PIECES_FOR_ENVOY: [usize; 2] = [160 * 1024, 88 * 1024];
/// The most that one connection may make us hold: somewhat more than a hundred streams take, and not so much that
/// nobody else finds room.
const ONE_CONNECTION: usize = 640 * 1024;

/// What must be free beside an anchor or a list that peers are verified with.
const BESIDES_ROOTS: usize = 448 * 1024;
/// What must be free beside the content of a file that a client has named.
const BESIDES_NAMED_FILES: usize = 640 * 1024;
/// Bytes of those that are left for anchors of the CA.
const FOR_THE_CA: usize = 64 * 1024;
/// Bytes that all anchors may take which peers are verified with, where there is no arena to have a part of.
const ANCHORS_WITHOUT_ARENA: usize = 256 * 1024;
/// How often the content of such a file is in memory while it is read, written anew and encoded.
const COPIES_OF_NAMED_FILES: usize = 4;

/// What must be free beside each copy of any other file.
const BESIDES_FILES: usize = 32 * 1024;

/// What must be free beside a certificate, and beside a revocation list, for as long as it is parsed.
const BESIDES_CERTIFICATE: usize = 24 * 1024;
const BESIDES_LIST: usize = 64 * 1024;

/// Bytes of the arena that are left while an answer of the CA is read: for the rest of a header block of which all but
/// the last read has been taken.
const BESIDES_ANSWER: usize = 64 * 1024;
/// What must be there in whole pieces: for the frames that wait to be looked at, or for a large answer as it is put
/// together; for the headers of a frame. Clients leave no more than that to a renewal.
const ANSWER: [usize; 2] = [72 * 1024, 24 * 1024];
/// Bytes of memory that one byte of an answer can make HTTP/2 take: a header is named by its index in one.
const AMPLIFICATION: usize = 400;

/// What must be free beside a request to the admin port that is larger than a probe's.
const BESIDES_ADMIN: usize = 544 * 1024;

/// What a TLS client of the admin endpoints that is not known yet may take at the most, in the largest pieces that it
/// gets; it must be free for each of them beside what a renewal needs.
const HANDSHAKE: [usize; 8] = [HANDSHAKE_PIECE; 8];
/// Bytes of the largest of them.
pub const HANDSHAKE_PIECE: usize = 32 * 1024;

/// What must be free for a large document, in whole pieces: what a renewal needs; the document and what it is made
/// from, all of it in small blocks and made in one go, so only once at a time; those that are still being written.
const DOCUMENT: [usize; 7] =
    [RENEWAL_PIECE, DOCUMENT_PIECE, DOCUMENT_PIECE, DOCUMENT_PIECE, DOCUMENT_PIECE, DOCUMENT_PIECE, DOCUMENT_PIECE];
const DOCUMENT_PIECE: usize = 32 * 1024;

/// How many times the usual arena we have, in whole numbers.
#[must_use]
pub fn share() -> usize {
    (locked::usage().capacity / USUAL_ARENA).max(1)
}

/// Who takes memory on a socket. All of it is one pot, and applications leave some of it to Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// A client of SDS.
    Envoy,
    /// A client of the Workload API.
    Application,
}

impl Taker {
    /// Bytes that it leaves to others.
    fn leaves(self) -> usize {
        match self {
            Self::Envoy => 0,
            Self::Application => FOR_ENVOY * share(),
        }
    }

    fn leaves_pieces(self) -> &'static [usize] {
        match self {
            Self::Envoy => &[],
            Self::Application => &PIECES_FOR_ENVOY,
        }
    }
}

/// Bytes that such clients may still take.
#[must_use]
pub fn for_clients(taker: Taker) -> usize {
    free().saturating_sub(BESIDES_CLIENTS + taker.leaves())
}

/// Whether the pieces are there that a renewal needs, and beside them those that a client's largest request does.
#[must_use]
pub fn has_pieces_for_clients(taker: Taker, request: &[usize]) -> bool {
    // The largest first: the others could lie in the one place that is large enough for it.
    beside([RENEWAL_PIECE].into_iter().chain(request.iter().copied()), taker.leaves_pieces())
}

/// Whether there is room for one more stream of a client, beside what others will take that have just begun.
#[must_use]
pub fn has_room_for_stream(taker: Taker, others: usize) -> bool {
    for_clients(taker) >= STREAM + others
}

/// Whether there is room for one more connection of a client.
#[must_use]
pub fn has_room_for_connection(taker: Taker) -> bool {
    let besides = match taker {
        Taker::Envoy => CONNECTION,
        // What others need is in what it leaves: where large bundles are held, there may not be so much twice.
        Taker::Application => STREAM,
    };
    for_clients(taker) >= besides
}

/// Whether there is room for what ends a request that has begun, and for a first connection or stream of somebody who
/// has none, such as a probe.
#[must_use]
pub fn has_room_for_the_least(taker: Taker) -> bool {
    free() >= BESIDES_CLIENTS + taker.leaves() - LEAST && locked::has_room(&[RENEWAL_PIECE])
}

/// The most that one connection of a client may make us hold.
#[must_use]
pub fn for_one_connection() -> usize {
    ONE_CONNECTION * share()
}

/// Whether a file of this size may be read, which is then in memory this many times.
#[must_use]
pub fn has_room_for_file(size: usize, copies: usize) -> bool {
    beside(std::iter::repeat_n(size, copies), &[BESIDES_FILES])
}

/// Whether a certificate may be parsed that takes these pieces.
#[must_use]
pub fn has_room_for_certificate(pieces: impl Iterator<Item = usize>) -> bool {
    beside(pieces, &[BESIDES_CERTIFICATE])
}

/// Whether a revocation list may be parsed that takes these pieces.
#[must_use]
pub fn has_room_for_list(pieces: impl Iterator<Item = usize>) -> bool {
    beside(pieces, &[BESIDES_LIST])
}

/// Bytes of the CA's answer that may be read now.
#[must_use]
pub fn for_answer() -> usize {
    if locked::has_room(&ANSWER) { free().saturating_sub(BESIDES_ANSWER) / AMPLIFICATION } else { 0 }
}

/// Whether a request to the admin port may be read that takes these pieces: a probe is answered as long as anything can
/// be.
#[must_use]
pub fn has_room_for_admin(pieces: &[usize], is_probe: bool) -> bool {
    let besides = if is_probe { 0 } else { BESIDES_ADMIN };
    beside(pieces.iter().copied(), &[besides])
}

/// Whether there is room for so many TLS clients of the admin endpoints, none of whom has taken anything yet.
#[must_use]
pub fn has_room_for_handshakes(count: usize) -> bool {
    let all = std::iter::repeat_n(HANDSHAKE, count).flatten();
    beside([RENEWAL_PIECE].into_iter().chain(all), &[])
}

/// Whether a file of this size may be read that peers are verified with. It is in memory twice while it is read, and
/// again as what is made from it.
#[must_use]
pub fn has_room_for_roots(size: usize) -> bool {
    locked::has_room(&[size, size, size, BESIDES_ROOTS])
}

/// Whether this JSON may be parsed: its values take a multiple of their text, and a list of them as much again while it
/// grows.
#[must_use]
pub fn has_room_for_json(text: &str) -> bool {
    /// Of a value in a list or map, and of an object with a few members.
    const VALUE: usize = 96;
    const OBJECT: usize = 700;
    /// No longer than what is free after a while.
    const PIECE: usize = 16 << 10;
    let count = |what: &[u8]| text.bytes().filter(|byte| what.contains(byte)).count();
    let all = count(b",:[") * VALUE + count(b"{") * OBJECT;
    beside(std::iter::repeat_n(PIECE, all / PIECE + 1), &[count(b",") * VALUE, text.len(), BESIDES_ROOTS])
}

/// Whether a file with revocation lists of this size may be read. It is in memory as text and as what is made from it,
/// then as that and as what is served; where trust domains are told apart (`several`), that is written in several steps.
#[must_use]
pub fn has_room_for_revocation_lists(size: usize, several: bool) -> bool {
    let copies = std::iter::repeat_n(size, copies_of_revocation_lists(several));
    // Less than clients leave, so that they keep no ordinary list from being read.
    beside(copies, &[RENEWAL_PIECE, LEAST])
}

/// Whether so many bytes of revocation lists may be written as they are served: clients may have come since they were
/// read.
#[must_use]
pub fn has_room_to_serve_revocation_lists(size: usize, several: bool) -> bool {
    let copies = std::iter::repeat_n(size, copies_of_revocation_lists(several) - 1);
    beside(copies, &[RENEWAL_PIECE])
}

/// KiB of an arena in which there is room for such a file beside its successor.
#[must_use]
pub fn arena_for_revocation_lists(size: usize, several: bool) -> usize {
    const STEP: usize = 64;
    let copies = copies_of_revocation_lists(several) + 2;
    (locked::mapped() / 1024 + copies * size / 1024).next_multiple_of(STEP)
}

fn copies_of_revocation_lists(several: bool) -> usize {
    if several { 5 } else { 2 }
}

/// Whether a file of this size may be read that a client has named.
#[must_use]
pub fn has_room_for_named_file(size: usize) -> bool {
    locked::has_room(&[size * COPIES_OF_NAMED_FILES, BESIDES_NAMED_FILES])
}

/// Bytes that all anchors may take which peers are verified with: half of the arena, so that there is enough for a
/// renewal and for some clients.
#[must_use]
pub fn for_anchors() -> usize {
    match locked::usage().capacity {
        0 => ANCHORS_WITHOUT_ARENA,
        capacity => capacity / 2,
    }
}

/// The same of anchors in files, so that those of the CA, which our own chain leads to, find room.
#[must_use]
pub fn for_anchors_of_files() -> usize {
    for_anchors().saturating_sub(FOR_THE_CA)
}

/// Whether one more anchor of this size may be kept that peers are verified with.
#[must_use]
pub fn has_room_for_anchor(size: usize) -> bool {
    locked::has_room(&[size, BESIDES_ROOTS])
}

/// Whether one more anchor of this size may be kept of a file that a client has named.
#[must_use]
pub fn has_room_for_named_anchor(size: usize) -> bool {
    locked::has_room(&[size, BESIDES_NAMED_FILES])
}

/// Whether an anchor of the CA may be kept until it has been verified.
#[must_use]
pub fn has_room_for_ca_anchor(size: usize) -> bool {
    locked::has_room(&[size, RENEWAL_PIECE])
}

/// Whether a large document may be made.
#[must_use]
pub fn has_room_for_document() -> bool {
    locked::has_room(&DOCUMENT)
}

/// Whether there is room for these pieces in this order, and at the same time for what must be left.
fn beside(pieces: impl Iterator<Item = usize>, left: &[usize]) -> bool {
    locked::has_room(&pieces.chain(left.iter().copied()).collect::<Vec<_>>())
}

/// Bytes of the arena that nobody uses.
fn free() -> usize {
    let usage = locked::usage();
    // Without an arena (a test build) there is nothing to fill.
    if usage.capacity == 0 { usize::MAX } else { usage.capacity.saturating_sub(usage.used) }
}
