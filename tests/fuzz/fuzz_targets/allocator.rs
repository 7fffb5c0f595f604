//! The allocator, twice: the pool behind it against a model of what is where, and the arena through the vectors of
//! this very program, whose allocator it is.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use locked::{LockedAllocator, exercise_pool, for_each_arena_byte_range, usage};

#[global_allocator]
static ALLOCATOR: LockedAllocator = LockedAllocator;

/// A word that nothing but the content of a vector has. It stands nowhere as it is but there.
const MASKED: u64 = 0x5EC2_E7A1_0DD5_BA11;
static ZEROS: [u8; 4096] = [0; 4096];

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((first, data)) if first % 2 == 0 => exercise_pool(data),
        Some((_, data)) => exercise_vectors(data),
        None => {}
    }
});

/// Three bytes for each step: vectors that are made full or zeroed, grow, shrink and end.
fn exercise_vectors(data: &[u8]) {
    let before = usage();
    let mut live: Vec<Vec<u64>> = Vec::new();
    for step in data.chunks_exact(3).take(200) {
        let len = 1 + (usize::from(step[1]) << (step[2] % 4));
        let index = usize::from(step[2] >> 2) % live.len().max(1);
        match (step[0] % 5, live.get_mut(index)) {
            (0, _) => live.push(vec![content(); len]),
            (1, _) => {
                let zeroed = black_box(vec![0_u64; len]);
                assert!(zeroed.iter().all(|word| *word == 0), "zeroed memory is not zero");
                live.push(zeroed);
            }
            (2, Some(vector)) => {
                vector.reserve_exact(len);
                vector.resize(vector.len() + len, content());
                assert!(vector.iter().rev().take(len).all(|word| *word == content()));
            }
            (3, Some(vector)) => {
                vector.truncate(len);
                vector.shrink_to_fit();
            }
            (_, Some(_)) => drop(live.swap_remove(index)),
            (_, None) => {}
        }
        assert!(live.iter().flatten().all(|word| [0, content()].contains(word)), "a block has another's content");
        if live.iter().map(Vec::len).sum::<usize>() > 64 << 10 {
            live.clear();
        }
    }
    drop(live);
    let after = usage();
    assert_eq!((after.used, after.blocks), (before.used, before.blocks), "the books do not balance");
    assert_eq!(left_behind(), 0, "freed memory still has its content");
}

fn content() -> u64 {
    !black_box(MASKED)
}

fn left_behind() -> usize {
    let mut found = 0;
    for_each_arena_byte_range(|bytes| {
        let word = |word: &&[u8]| !u64::from_ne_bytes((*word).try_into().expect("eight bytes")) == black_box(MASKED);
        // Nearly all of it is zero, which is quickly seen.
        for page in bytes.chunks(ZEROS.len()).filter(|page| **page != ZEROS[..page.len()]) {
            found += page.chunks_exact(8).filter(word).count();
        }
    });
    found
}
