//! The key that is handed on, and what belongs to it: at rest where keys and other texts lie, and from a crash to the
//! successor in fresh secret memory.

use std::{
    ptr::{self, NonNull},
    slice,
    sync::{Mutex, PoisonError},
};

use nix::errno::Errno;
use openssl::pkey::{PKey, Private};

use super::{
    change, handler, ours,
    record::{Record, checksum_of},
};
use crate::{
    arena::keys_are_secret, keys::read_private_key, mapping::page_size, process::was_open_to_others, secretly,
};

/// The most that is handed on: it counts against the limit of locked memory for a moment.
const MOST: usize = 32 << 10;
/// Crashes within so many milliseconds after which a successor gets no key: it may be what crashes the process.
const SOON: u64 = 60 * 1000;
const TOO_OFTEN: usize = 3;

/// What a record says of the key: none is held, there is one, or why there is none (an index of [`REASONS`]).
const NOTHING: u64 = 0;
const HANDED_ON: u64 = 1;
const OPEN: u64 = 2;
const NOT_SECRET: u64 = 3;
const TOO_LARGE: u64 = 4;
const OFTEN: u64 = 5;
const NO_ROOM: u64 = 6;
const OVERWRITTEN: u64 = 7;

/// As a warning has them.
const REASONS: [&str; 8] = [
    "",
    "it cannot be read",
    "another process of the same user could have read it (the binary's mode is not 0111, or we have all capabilities)",
    "its key was not in secret memory",
    "certificate and trust anchors take more than 32 KiB, or did not fit into the arena",
    "the process crashed 3 times within a minute, and it may be the cause",
    "the limit of locked memory had no room to hand it on",
    "it was overwritten",
];

/// What is handed on now: the key, what belongs to it, and the checksum of both, which tells of the key and so lies in
/// secret memory as well.
struct Kept {
    key: Box<dyn AsRef<[u8]> + Send>,
    text: Vec<u8>,
    sum: Box<u64>,
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

/// Hands on a private key, as PEM that lies in secret memory, and a text that belongs to it and is no secret: what `write`
/// answers, which is told how long it may be, and asked only where it is needed. Nothing is handed on without a text,
/// where another process of the user could read a successor's memory, and where a key is outside of secret memory; nor
/// is what was handed on before.
pub fn hand_on_key(key: impl AsRef<[u8]> + Send + 'static, write: impl FnOnce(usize) -> Option<Vec<u8>>) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let room = room_beside(key.as_ref().len());
    let (state, text) = if was_open_to_others() {
        (OPEN, Vec::new())
    } else if !keys_are_secret() {
        (NOT_SECRET, Vec::new())
    } else {
        write(room).filter(|text| text.len() <= room).map_or((TOO_LARGE, Vec::new()), |text| (HANDED_ON, text))
    };
    let new = (state == HANDED_ON).then(|| {
        let sum = secretly(|| Box::new(checksum_of(key.as_ref().iter().chain(&text))));
        Kept { key: Box::new(key), text, sum }
    });
    let place = |start: *const u8| start.expose_provenance() as u64;
    change(|record| {
        record.kept = state;
        if let Some(Kept { key, text, sum }) = &new {
            let key = (**key).as_ref();
            record.sum = place((&raw const **sum).cast());
            (record.key, record.key_len) = (place(key.as_ptr()), key.len() as u64);
            (record.text, record.text_len) = (place(text.as_ptr()), text.len() as u64);
        }
    });
    // Now that a crash does not find it any more.
    handler::give_way();
    *kept = new;
    ours().vault = None;
}

/// Hands on none: what was inherited is not to be used, for example.
pub fn hand_on_no_key() {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    change(|record| record.kept = NOTHING);
    handler::give_way();
    *kept = None;
    ours().vault = None;
}

/// How long a text may be that is handed on beside a key of so many bytes.
fn room_beside(key: usize) -> usize {
    MOST.saturating_sub(size_of::<u64>() + key)
}

/// The checksum, the key and the text: where they are, and how long.
fn parts(record: &Record) -> [(u64, u64); 3] {
    [(record.sum, size_of::<u64>() as u64), (record.key, record.key_len), (record.text, record.text_len)]
}

/// For the handler: copies the key into secret memory whose descriptor is in `record.vault` from then on, if there is a
/// key and the process has not crashed too often.
pub(super) fn fill(record: &mut Record, now: u64) {
    if record.kept == HANDED_ON {
        record.kept = match record.crashes_within(SOON, now) {
            TOO_OFTEN.. => OFTEN,
            _ => copy(record).map_or(NO_ROOM, |file| {
                record.vault = file;
                HANDED_ON
            }),
        };
    }
    // Where they were is nobody's business.
    (record.sum, record.key, record.text) = (0, 0, 0);
}

fn copy(record: &Record) -> Option<u64> {
    let len = parts(record).iter().map(|(_, len)| *len as usize).sum();
    // SAFETY: the call takes flags and no pointers.
    let file = Errno::result(unsafe { libc::syscall(libc::SYS_memfd_secret, 0) }).ok()? as i32;
    // SAFETY: the call takes no pointers.
    let sized = unsafe { libc::ftruncate(file, len as libc::off_t) } == 0;
    let place = if sized { map(file, len, libc::PROT_READ | libc::PROT_WRITE) } else { None };
    let Some(place) = place.filter(|place| charge(*place, len)) else {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(file) };
        return None;
    };
    let mut at = 0;
    for (from, len) in parts(record) {
        let from = ptr::with_exposed_provenance::<u8>(from as usize);
        // SAFETY: the mapping is as long as all parts together.
        let to = unsafe { place.add(at) };
        // SAFETY: the record has its checksum, and was changed before what it names is freed; all pages of the mapping
        // are there, and it is new.
        unsafe { to.as_ptr().copy_from_nonoverlapping(from, len as usize) };
        at += len as usize;
    }
    // SAFETY: the mapping is ours, and nobody uses it any more: the descriptor has what is in it.
    unsafe { libc::munmap(place.as_ptr().cast(), at) };
    Some(file as u64)
}

/// Closes what [`fill`] has made, where nobody is executed who could take it.
pub(super) fn close(record: &Record) {
    if record.kept == HANDED_ON {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(record.vault as i32) };
    }
}

/// A page that the limit refuses is an error of a system call, and SIGBUS of a store.
fn charge(place: NonNull<u8>, len: usize) -> bool {
    (0..len).step_by(page_size()).all(|at| {
        // SAFETY: the mapping is that long.
        let first = unsafe { place.add(at) };
        // SAFETY: the kernel writes one byte there, or reports that it cannot.
        let written = unsafe { libc::getrandom(first.as_ptr().cast(), 1, 0) };
        written == 1
    })
}

fn map(file: i32, len: usize, access: i32) -> Option<NonNull<u8>> {
    // SAFETY: the kernel chooses a place where nothing is.
    let place = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, file, 0) };
    if place == libc::MAP_FAILED { None } else { NonNull::new(place.cast()) }
}

/// What a successor has found.
pub(super) struct Vault {
    start: NonNull<u8>,
    key: usize,
    text: usize,
}

// SAFETY: the mapping belongs to the process, and this is its only owner.
unsafe impl Send for Vault {}

impl Drop for Vault {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody uses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len()) };
    }
}

impl Vault {
    /// Maps what the record names, and closes its descriptor at once: who may trace a process could take it from there.
    /// From then on the record names what was mapped, so that it is handed on once more if the start crashes. `whole` is
    /// whether all else is as it was.
    pub(super) fn take(record: &mut Record, whole: bool) -> Option<Self> {
        if record.kept != HANDED_ON {
            return None;
        }
        record.kept = OVERWRITTEN;
        let file = record.vault as i32;
        let vault = Self::map(file, record.key_len as usize, record.text_len as usize);
        // SAFETY: the process that was before us had it for this alone.
        unsafe { libc::close(file) };
        let vault = vault.filter(|vault| whole && vault.is_whole())?;
        if was_open_to_others() {
            record.kept = OPEN;
            return None;
        }
        let start = vault.start.as_ptr().expose_provenance() as u64;
        record.sum = start;
        record.key = start + size_of::<u64>() as u64;
        record.text = record.key + record.key_len;
        record.kept = HANDED_ON;
        Some(vault)
    }

    fn map(file: i32, key: usize, text: usize) -> Option<Self> {
        if key > MOST || text > room_beside(key) {
            return None;
        }
        let start = map(file, size_of::<u64>() + key + text, libc::PROT_READ)?;
        let vault = Self { start, key, text };
        // SAFETY: the mapping is ours.
        unsafe { libc::madvise(vault.start.as_ptr().cast(), vault.len(), libc::MADV_DONTFORK) };
        Some(vault)
    }

    fn len(&self) -> usize {
        size_of::<u64>() + self.key + self.text
    }

    fn is_whole(&self) -> bool {
        let (sum, bytes) = self.bytes().split_at(size_of::<u64>());
        sum == checksum_of(bytes).to_ne_bytes()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: it is that long, readable, and its pages were written by who had it before.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }
}

/// The key that the crashed process has handed on, and the text that belongs to it, or in words why it could not; `None`
/// when it held none, and when this was asked before. Both are handed on further until [`hand_on_key`] or
/// [`hand_on_no_key`] is called.
#[must_use]
pub fn inherited_key() -> Option<Result<(PKey<Private>, String), &'static str>> {
    let mut ours = ours();
    let kept = std::mem::take(&mut ours.predecessor.as_mut()?.kept);
    match (kept, &ours.vault) {
        (NOTHING, _) => None,
        (HANDED_ON, Some(vault)) => {
            let (key, text) = vault.bytes().split_at(size_of::<u64>()).1.split_at(vault.key);
            let text = String::from_utf8_lossy(text).into_owned();
            Some(read_private_key(key).map(|key| (key, text)).map_err(|_| REASONS[HANDED_ON as usize]))
        }
        (reason, _) => Some(Err(REASONS.get(reason as usize).unwrap_or(&REASONS[OVERWRITTEN as usize]))),
    }
}
