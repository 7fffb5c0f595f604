//! Secret memory for keys and nothing else: a few pages, all charged for before the first key is made.
//!
//! Since Linux counts its pages for all processes of a user together, a node's sidecars share one limit: so this is
//! kept small, what the limit does not give falls to locked memory, and no use of it can fail.

use std::{alloc::Layout, ops::Range, ptr::NonNull};

use nix::errno::Errno;

use crate::{
    mapping::{Refusal, SecretMapping, page_size},
    pool::{Pool, wipe},
};

/// What P-256 and P-384 take with all renewals: eight pages, so that 256 processes of a user fit into 8 MiB.
const USUAL: usize = 32 << 10;
/// What RSA 4096 takes, or keys of unknown kinds from files; never more. 128 processes fit into 8 MiB.
const MOST: usize = 64 << 10;
/// How much is added when more is needed than was thought, up to the most.
const STEP: usize = 16 << 10;
/// The base and its steps.
const FILES: usize = 3;
/// The part of the base on which key operations run: they take 7.3 KiB at the most, and 10 KiB with RSA 4096
/// (`src/locked/tests/secret.rs`).
const USUAL_STACK: usize = 10 << 10;
const LARGE_STACK: usize = 12 << 10;
/// The part of the base, with RSA, for the tables that OpenSSL makes of a number's powers: 18,000 bytes in one piece
/// with RSA 4096, which would not be there once small blocks lie all over the heap.
const TABLES: usize = 18_944;
/// Blocks of this size or more are such tables.
const TABLE: usize = 8 << 10;
/// What is taken from the arena at a time for keys that secret memory has no room for.
const SPARE: usize = 16 << 10;
const SPARES: usize = 16;

/// How much secret memory a process will need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Keys on elliptic curves, made here: 32 KiB.
    Usual,
    /// RSA, or keys from files: 64 KiB.
    Most,
}

/// What the process has of secret memory, and what holds keys in its place.
pub(crate) struct Secrets {
    need: Option<Need>,
    files: [Option<SecretMapping>; FILES],
    /// Where all addresses of the files lie, and those of the spares.
    around_files: Range<usize>,
    around_spares: Range<usize>,
    /// Bytes of the first file that are stack.
    stack: usize,
    pool: Pool,
    /// The part for tables, and where it lies.
    tables: Pool,
    tables_place: Option<NonNull<[u8]>>,
    /// The most that was ever in use of both.
    pub(crate) peak: usize,
    refusal: Option<Refusal>,
    /// Locked memory from the arena.
    spares: [Option<NonNull<[u8]>>; SPARES],
    spare_pool: Pool,
    /// Blocks that ever found no room in secret memory.
    #[cfg(feature = "dump")]
    pub(crate) misses: usize,
}

// SAFETY: the memory that the pointers name belongs to the process, and this is its only owner.
unsafe impl Send for Secrets {}

/// How much secret memory is in use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecretUsage {
    /// Charged for: whole pages.
    pub charged: usize,
    /// In use of what is no stack.
    pub used: usize,
    /// The most that was ever in use of it.
    pub peak: usize,
    /// What could be.
    pub capacity: usize,
    /// Bytes of keys that lie in locked memory, because secret memory had no room.
    pub spilled: usize,
}

impl Secrets {
    pub(crate) const fn new() -> Self {
        Self {
            need: None,
            files: [const { None }; FILES],
            around_files: 0..0,
            around_spares: 0..0,
            stack: 0,
            pool: Pool::new(),
            tables: Pool::new(),
            tables_place: None,
            peak: 0,
            refusal: None,
            spares: [None; SPARES],
            spare_pool: Pool::new(),
            #[cfg(feature = "dump")]
            misses: 0,
        }
    }

    /// Takes all that is needed from the kernel, or nothing: part of it would protect no key, and miss elsewhere.
    pub(crate) fn open(&mut self, need: Need) {
        self.need = Some(need);
        if self.files[0].is_none() {
            let wanted;
            (wanted, self.stack) = match need {
                Need::Usual => (USUAL, USUAL_STACK),
                Need::Most => (MOST, LARGE_STACK),
            };
            self.add(0, wanted.next_multiple_of(page_size()));
        }
    }

    /// Asks again for what was refused, if it was the limit that refused it: another process may have ended.
    pub(crate) fn reopen(&mut self) {
        if let (Some(need), Some(Refusal::Charge { .. } | Refusal::Map(Errno::EAGAIN | Errno::ENOMEM))) =
            (self.need, self.refusal)
        {
            self.refusal = None;
            self.open(need);
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.need.is_some()
    }

    /// Whether every byte of a key is on a page of secret memory.
    pub(crate) fn hold_all(&self) -> bool {
        self.files[0].is_some() && self.spare_pool.blocks == 0
    }

    /// Why they are not.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    pub(crate) fn usage(&self) -> SecretUsage {
        SecretUsage {
            charged: self.charged(),
            used: self.used(),
            peak: self.peak,
            capacity: self.pool.capacity + self.tables.capacity,
            spilled: self.spare_pool.used,
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.pool.used + self.tables.used
    }

    /// Notes what is in use, when that has grown.
    pub(crate) fn count(&mut self) {
        self.peak = self.peak.max(self.used());
    }

    fn charged(&self) -> usize {
        self.files.iter().flatten().map(|file| file.len).sum()
    }

    /// The stack for key operations.
    pub(crate) fn stack(&self) -> Option<NonNull<[u8]>> {
        Some(NonNull::slice_from_raw_parts(self.files[0].as_ref()?.start, self.stack))
    }

    /// Each range that holds or has held keys.
    #[cfg(feature = "dump")]
    pub(crate) fn ranges(&self) -> impl Iterator<Item = NonNull<[u8]>> {
        self.files.iter().flatten().map(|file| NonNull::slice_from_raw_parts(file.start, file.len))
    }

    /// A file of secret memory at this index. The first begins with the stack, and the part for tables if there is one.
    fn add(&mut self, index: usize, len: usize) {
        match SecretMapping::new(len) {
            Ok(file) => {
                widen(&mut self.around_files, NonNull::slice_from_raw_parts(file.start, file.len));
                let mut used = if index == 0 { self.stack } else { 0 };
                if index == 0 && self.need == Some(Need::Most) {
                    // SAFETY: a file is longer than the stack and this part.
                    let part = NonNull::slice_from_raw_parts(unsafe { file.start.add(used) }, TABLES);
                    // SAFETY: the mapping is new and stays for ever, and only this pool uses this part of it.
                    unsafe { self.tables.insert(part) };
                    self.tables_place = Some(part);
                    used += TABLES;
                }
                // SAFETY: a file is longer than what is used of it.
                let heap = NonNull::slice_from_raw_parts(unsafe { file.start.add(used) }, len - used);
                // SAFETY: the mapping is new and stays for ever, and only the pool uses this part of it.
                unsafe { self.pool.insert(heap) };
                self.files[index] = Some(file);
            }
            Err(refusal) => self.refusal = Some(refusal),
        }
    }

    /// One more step of secret memory, unless it has all that it may, or was refused before.
    fn grow(&mut self) -> bool {
        let step = STEP.next_multiple_of(page_size());
        let free = self.files.iter().position(Option::is_none).filter(|index| *index > 0);
        match free {
            Some(index) if self.refusal.is_none() && self.charged() + step <= MOST => {
                self.add(index, step);
                self.files[index].is_some()
            }
            _ => false,
        }
    }

    /// Each kind of block in its part, and in the other when that is full.
    fn allocate_secret(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() >= TABLE
            && let Some(block) = self.tables.allocate(layout)
        {
            return Some(block);
        }
        if let Some(block) = self.pool.allocate(layout) {
            return Some(block);
        }
        if self.grow()
            && let Some(block) = self.pool.allocate(layout)
        {
            return Some(block);
        }
        self.tables.allocate(layout)
    }

    /// A block for key material: secret memory, else locked memory from `arena`.
    pub(crate) fn allocate(&mut self, layout: Layout, arena: &mut Pool) -> Option<NonNull<u8>> {
        if self.files[0].is_some() {
            let block = self.allocate_secret(layout);
            if block.is_some() {
                self.count();
                return block;
            }
        }
        #[cfg(feature = "dump")]
        {
            self.misses += 1;
        }
        self.spare_pool.allocate(layout).or_else(|| {
            let free = self.spares.iter().position(Option::is_none)?;
            let size = SPARE.max(layout.size() + layout.align() + SPARE / 4);
            let start = arena.allocate(Layout::from_size_align(size, 16).ok()?)?;
            let spare = NonNull::slice_from_raw_parts(start, size);
            // SAFETY: the block is ours until `give_back`, which takes it from the pool first.
            unsafe { self.spare_pool.insert(spare) };
            self.spares[free] = Some(spare);
            widen(&mut self.around_spares, spare);
            self.spare_pool.allocate(layout)
        })
    }

    /// The pool that a block of key material is from.
    pub(crate) fn pool_of(&mut self, block: NonNull<u8>) -> Option<&mut Pool> {
        let address = block.addr().get();
        // Nearly every block is none.
        if !self.around_files.contains(&address) && !self.around_spares.contains(&address) {
            return None;
        }
        let inside = |place: &NonNull<[u8]>| address.wrapping_sub(place.addr().get()) < place.len();
        if self.tables_place.as_ref().is_some_and(inside) {
            return Some(&mut self.tables);
        }
        if self.files.iter().flatten().any(|file| file.holds(address)) {
            return Some(&mut self.pool);
        }
        self.spares.iter().flatten().any(inside).then_some(&mut self.spare_pool)
    }

    /// Gives the arena back what no key lies in any more.
    pub(crate) fn give_back(&mut self, arena: &mut Pool) {
        if self.spare_pool.blocks > 0 || self.spares[0].is_none() {
            return;
        }
        self.spare_pool = Pool::new();
        self.around_spares = 0..0;
        for spare in self.spares.iter_mut().filter_map(Option::take) {
            if let Ok(layout) = Layout::from_size_align(spare.len(), 16) {
                // SAFETY: the block is from this pool, has this layout, and the pool that had it is gone.
                unsafe { arena.free(spare.cast(), layout) };
            }
        }
    }
}

/// Makes the range reach around this place as well.
fn widen(range: &mut Range<usize>, place: NonNull<[u8]>) {
    let start = place.addr().get();
    let end = start + place.len();
    *range = if range.start == range.end { start..end } else { range.start.min(start)..range.end.max(end) };
}

/// Wipes the whole stack for key operations. Nobody may be running on it.
pub(crate) fn wipe_stack(stack: NonNull<[u8]>) {
    // SAFETY: the stack is that long, and the caller says that nobody uses it.
    unsafe { wipe(stack.cast(), stack.len()) };
}
