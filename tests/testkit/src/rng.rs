//! Randomness that can be had again.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
};

/// SplitMix64: a few lines, and the same numbers for the same seed.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// From the variable `SEED`, else a new seed each time; printed, so that a failure can be repeated.
    pub fn seeded() -> Self {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(()));
        println!("SEED={seed}");
        Self(seed)
    }

    /// With the same numbers each time.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another source, for a part that draws in its own order.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and nothing iterates over it")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// A number in `range`.
    pub fn within(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.len() as u64) as usize
    }

    /// So many random bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}
