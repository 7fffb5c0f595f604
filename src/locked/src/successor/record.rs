//! What a process hands on to its successor beside a key: numbers alone, as words that a signal handler can read, check
//! and write down without allocating.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The format of the words; a successor is the same program, so another one is a mistake.
const VERSION: u64 = 1;
/// How many crashes are remembered: so many within [`super::PATIENCE`] end the process.
pub(super) const REMEMBERED: usize = 10;
/// The fields, the times and the checksum.
const WORDS: usize = FIELDS + REMEMBERED + 1;
/// Hexadecimal digits of each word and what stands between them.
pub(super) const TEXT: usize = WORDS * 17;

/// A descriptor that is not there.
pub(super) const NONE: u64 = u64::MAX;

macro_rules! record {
    ($($(#[$meta:meta])* $field:ident,)*) => {
        /// All fields are words, so that it is the same for a handler, a successor and a checksum.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(super) struct Record {
            $($(#[$meta])* pub(super) $field: u64,)*
            /// When the last crashes were, the latest first: milliseconds since the machine started; 0 for none.
            pub(super) times: [u64; REMEMBERED],
        }

        const FIELDS: usize = 1 + [$(stringify!($field)),*].len();

        impl Record {
            fn words(&self) -> [u64; WORDS] {
                let mut words = [0; WORDS];
                words[..FIELDS].copy_from_slice(&[VERSION, $(self.$field,)*]);
                words[FIELDS..WORDS - 1].copy_from_slice(&self.times);
                words[WORDS - 1] = checksum(&words[..WORDS - 1]);
                words
            }

            fn from_words(words: &[u64; WORDS]) -> Option<Self> {
                let (content, sum) = words.split_at(WORDS - 1);
                if sum != [checksum(content)] || content[0] != VERSION {
                    return None;
                }
                let mut fields = content[1..FIELDS].iter().copied();
                let mut record = Self { $($field: fields.next().unwrap_or_default(),)* times: [0; REMEMBERED] };
                record.times.copy_from_slice(&content[FIELDS..]);
                Some(record)
            }
        }
    };
}

record! {
    /// The process: an exec keeps its number, and a child that was given our environment has another.
    pid,
    /// The descriptor of the program.
    image,
    /// The descriptors of the sockets that are listened on, and which files those are.
    listener,
    device,
    inode,
    second,
    second_device,
    second_inode,
    /// The command's process; 0 for none.
    command,
    /// How it ended, as `waitpid` tells it; `NONE` for not yet.
    ended,
    /// What a command that is still to be started should have of what hardening took: umask, limit of cores, signals.
    umask,
    core,
    core_most,
    blocked,
    /// The signals that a successor starts with blocked.
    mask,
    /// How often the process has crashed.
    crashes,
    /// The last crash: signal, code, offset in the program (`NONE` outside of it), and where it reached for memory.
    signal,
    code,
    offset,
    reached,
    /// The name of the process, which an exec by descriptor loses.
    name,
    name_end,
    /// What there is of a key (`vault`), and while there is one: the checksum, the key and the text, where they are.
    kept,
    sum,
    key,
    key_len,
    text,
    text_len,
    /// The descriptor that they are handed on by.
    vault,
    /// When the CA may be asked next, on the clock of `times`; and how often it has failed, in words of who asks it.
    next_attempt,
    failures,
    /// The checksum of arguments and environment.
    start,
    /// What the process has denied itself, in words of who did; 0 for nothing yet.
    confined,
    /// The signal that was being handled; 0 for none.
    taken,
}

impl Record {
    /// Writes it as text that ends with a zero.
    pub(super) fn write(&self, text: &mut [u8; TEXT]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (word, place) in self.words().iter().zip(text.chunks_exact_mut(17)) {
            for (index, digit) in place[..16].iter_mut().enumerate() {
                *digit = DIGITS[(word >> (60 - 4 * index)) as usize & 15];
            }
            place[16] = b'.';
        }
        text[TEXT - 1] = 0;
    }

    /// Reads what [`Record::write`] has written.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut words = [0; WORDS];
        let mut parts = text.split('.');
        for word in &mut words {
            *word = u64::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then(|| Self::from_words(&words)).flatten()
    }

    /// How many crashes there were within so many milliseconds before `now`.
    pub(super) fn crashes_within(&self, milliseconds: u64, now: u64) -> usize {
        self.times.iter().filter(|time| **time != 0 && now.saturating_sub(**time) <= milliseconds).count()
    }

    /// Notes a crash at `now`.
    pub(super) fn note_crash(&mut self, now: u64) {
        self.times.copy_within(..REMEMBERED - 1, 1);
        self.times[0] = now;
        self.crashes += 1;
    }
}

/// The same over bytes.
pub(super) fn checksum_of<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// FNV-1a over words. It is to find what was overwritten by mistake, not by intent.
fn checksum(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23))
}

/// The record as a handler finds it, which may interrupt whoever changes it: there are two places, and the one that is
/// pointed to is complete.
pub(super) struct Copies {
    places: [[AtomicU64; WORDS]; 2],
    /// Which place is complete, plus one; 0 for none.
    current: AtomicUsize,
}

impl Copies {
    pub(super) const fn new() -> Self {
        Self { places: [const { [const { AtomicU64::new(0) }; WORDS] }; 2], current: AtomicUsize::new(0) }
    }

    /// Puts this record in place of the last. One caller at a time.
    pub(super) fn set(&self, record: &Record) {
        let next = usize::from(self.current.load(Ordering::Relaxed) == 1);
        for (place, word) in self.places[next].iter().zip(record.words()) {
            place.store(word, Ordering::Relaxed);
        }
        self.current.store(next + 1, Ordering::SeqCst);
    }

    /// From now on there is none.
    pub(super) fn clear(&self) {
        self.current.store(0, Ordering::SeqCst);
    }

    /// The record, if there is one and nobody has overwritten it.
    pub(super) fn get(&self) -> Option<Record> {
        let place = self.places.get(self.current.load(Ordering::SeqCst).checked_sub(1)?)?;
        let mut words = [0; WORDS];
        for (word, place) in words.iter_mut().zip(place) {
            *word = place.load(Ordering::Relaxed);
        }
        Record::from_words(&words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record { pid: 7, listener: NONE, mask: u64::MAX - 1, name_end: 3, ..Record::default() };
        (1..=12).for_each(|at| record.note_crash(at * 1000));
        record
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut text = [0; TEXT];
        record().write(&mut text);
        let (end, text) = text.split_last().expect("it is not empty");
        assert_eq!(*end, 0);
        let text = std::str::from_utf8(text).expect("it is text");
        assert_eq!(Record::read(text), Some(record()));
        for at in 0..text.len() {
            let mut flipped = text.as_bytes().to_vec();
            flipped[at] ^= 1;
            assert_eq!(Record::read(&String::from_utf8_lossy(&flipped)), None, "with character {at} flipped");
        }
        assert_eq!(Record::read(&text[..text.len() - 17]), None);
        assert_eq!(Record::read(""), None);
    }

    #[test]
    fn an_overwritten_record_is_not_handed_on() {
        let shared = Copies::new();
        assert_eq!(shared.get(), None);
        for pid in 1..5 {
            shared.set(&Record { pid, ..record() });
            assert_eq!(shared.get().map(|record| record.pid), Some(pid));
        }
        let current = shared.current.load(Ordering::Relaxed) - 1;
        shared.places[current][3].fetch_xor(1 << 17, Ordering::Relaxed);
        assert_eq!(shared.get(), None);
        shared.set(&record());
        shared.clear();
        assert_eq!(shared.get(), None);
    }

    #[test]
    fn the_last_ten_crashes_are_remembered() {
        let record = record();
        assert_eq!(record.crashes, 12);
        assert_eq!(record.times, [12, 11, 10, 9, 8, 7, 6, 5, 4, 3].map(|at| at * 1000));
        assert_eq!(record.crashes_within(2000, 12_500), 2);
        assert_eq!(Record::default().crashes_within(2000, 1000), 0);
    }
}
