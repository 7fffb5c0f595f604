//! The arena: one mapping with the main stack and the heap, made when the process allocates for the first time; and
//! which pool a block is from.

use std::{
    alloc::{GlobalAlloc, Layout},
    io,
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

use crate::{
    mapping::{Mapping, page_size},
    pool::Pool,
    scope::is_secret,
    secret::{Need, SecretUsage, Secrets},
    small::Small,
    tables::Tables,
};

/// KiB of the arena as it is made before anything is read of the environment.
pub const ARENA_KIB: usize = 2432;
/// guard | stack | guard | heap | guard; guards are a page each, and the heap has what is left.
const ARENA: usize = ARENA_KIB << 10;
// Unoptimized code, as in a plain `cargo build`, takes several times the stack.
pub(crate) const STACK: usize = if cfg!(debug_assertions) { 512 << 10 } else { 256 << 10 };
const EXTENSIONS: usize = 8;

static STATE: Mutex<Arena> = Mutex::new(Arena {
    main: None,
    extensions: [const { None }; EXTENSIONS],
    pool: Pool::new(),
    small: Small::new(),
    tables: Tables::new(),
    secrets: Secrets::new(),
});

/// What the process has of the arena. All of it is guarded by one lock, which allocates nothing.
pub(crate) struct Arena {
    main: Option<Result<Mapping, Errno>>,
    extensions: [Option<Mapping>; EXTENSIONS],
    pub(crate) pool: Pool,
    pub(crate) small: Small,
    pub(crate) tables: Tables,
    pub(crate) secrets: Secrets,
}

/// The arena as Rust's allocator: every block is wiped when it is freed, and a full arena gives none. What is allocated
/// inside of [`crate::secretly`] lies in secret memory.
pub struct LockedAllocator;

/// How much of the arena's heap is in use, in bytes, with what the bookkeeping takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use now.
    pub used: usize,
    /// The most that was ever in use.
    pub peak: usize,
    /// The size of the heap.
    pub capacity: usize,
    /// Blocks in use.
    pub blocks: usize,
}

/// What is in use.
#[must_use]
pub fn usage() -> Usage {
    let arena = lock();
    let blocks = arena.pool.blocks + arena.small.blocks;
    Usage { used: arena.pool.used, peak: arena.pool.peak, capacity: arena.pool.capacity, blocks }
}

/// Bytes that the arena has mapped, guard pages included.
#[must_use]
pub fn mapped() -> usize {
    lock().mapped()
}

/// Takes the secret memory for all keys that are made or read from now on. Before this there is none, and keys would
/// lie in the arena. What the kernel gives is told by [`crate::report`].
pub fn open_secret_memory(need: Need) {
    lock().secrets.open(need);
}

/// Asks again for secret memory that the limit has refused: other processes of the user may have ended. For the moment
/// before a key is made, as keys do not move.
pub fn reopen_secret_memory() {
    lock().secrets.reopen();
}

/// Whether every byte of a key is in secret memory, and keys that are made now will be.
#[must_use]
pub fn keys_are_secret() -> bool {
    lock().secrets.hold_all()
}

/// What is in use of secret memory.
#[must_use]
pub fn secret_usage() -> SecretUsage {
    lock().secrets.usage()
}

/// Counts the most that is in use of secret memory from now on: for tests.
#[cfg(feature = "dump")]
pub fn forget_secret_peak() {
    let secrets = &mut lock().secrets;
    secrets.peak = secrets.used();
}

/// How many blocks of key material ever found no room in secret memory: for tests.
#[cfg(feature = "dump")]
#[must_use]
pub fn secret_misses() -> usize {
    lock().secrets.misses
}

/// Whether blocks of these sizes (bytes) could all be had at the same time. Without an arena there is no limit.
#[must_use]
pub fn has_room(sizes: &[usize]) -> bool {
    let mut arena = lock();
    arena.pool.capacity == 0 || arena.pool.has_room(sizes)
}

/// Adds at least this many bytes to the heap.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::OutOfMemory`] when the heap is locked and these could not be; after eight
/// extensions [`io::ErrorKind::QuotaExceeded`].
pub fn extend(bytes: usize) -> io::Result<()> {
    let guards = 2 * page_size();
    let mapping = Mapping::new(bytes.checked_add(guards).ok_or(io::ErrorKind::InvalidInput)?)?;
    let mut arena = lock();
    let locked = arena.main().is_some_and(|main| main.unlocked.is_none());
    if locked && mapping.unlocked.is_some() {
        mapping.unmap();
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let Some(free) = arena.extensions.iter().position(Option::is_none) else {
        mapping.unmap();
        return Err(io::ErrorKind::QuotaExceeded.into());
    };
    mapping.guard(0);
    mapping.guard(mapping.len - mapping.page);
    let region = mapping.part(mapping.page, mapping.len - guards);
    // SAFETY: the mapping is new, stays for ever, and only the pool uses this part of it.
    unsafe { arena.pool.insert(region) };
    arena.extensions[free] = Some(mapping);
    Ok(())
}

/// Calls `f` with the memory of OpenSSL's tables, which is no part of the arena.
#[cfg(feature = "dump")]
pub fn for_the_tables_bytes(f: impl FnOnce(&[u8])) {
    // SAFETY: the region is a static that can be read; that OpenSSL changes it is told to the caller, a test.
    f(unsafe { crate::tables::region().as_ref() });
}

/// Calls `f` with each range of the arena that can be read: the stack, the heap, the extensions. The bytes change
/// under `f` when it allocates or calls: it should only look for something, or write them out. Secret memory is no
/// part of it.
#[cfg(feature = "dump")]
pub fn for_each_arena_byte_range(mut f: impl FnMut(&[u8])) {
    let mut ranges = [None; EXTENSIONS + 2];
    {
        let arena = lock();
        if let Some(main) = arena.main() {
            ranges[0] = Some(main.part(main.page, STACK));
            ranges[1] = Some(heap(main));
        }
        for (range, extension) in ranges[2..].iter_mut().zip(&arena.extensions) {
            *range = extension.as_ref().map(|mapping| mapping.part(mapping.page, mapping.len - 2 * mapping.page));
        }
    }
    for range in ranges.into_iter().flatten() {
        // SAFETY: the range is readable and stays so; that its owners change it is told to the caller, a test.
        f(unsafe { range.as_ref() });
    }
}

/// Calls `f` with each range of secret memory.
#[cfg(feature = "dump")]
pub fn for_each_secret_byte_range(mut f: impl FnMut(&[u8])) {
    let mut ranges = [None; EXTENSIONS];
    for (range, found) in ranges.iter_mut().zip(lock().secrets.ranges()) {
        *range = Some(found);
    }
    for range in ranges.into_iter().flatten() {
        // SAFETY: as above.
        f(unsafe { range.as_ref() });
    }
}

/// The arena, made now if this is the first call of all.
pub(crate) fn lock() -> MutexGuard<'static, Arena> {
    let mut arena = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if arena.main.is_none() {
        arena.start();
    }
    arena
}

/// What is no stack and no guard of the main mapping.
fn heap(main: &Mapping) -> NonNull<[u8]> {
    let start = main.page + STACK + main.page;
    main.part(start, main.len - main.page - start)
}

impl Arena {
    fn start(&mut self) {
        let mapping = Mapping::new(ARENA);
        if let Ok(mapping) = &mapping {
            mapping.guard(0);
            mapping.guard(mapping.page + STACK);
            mapping.guard(mapping.len - mapping.page);
            // SAFETY: the mapping is new, stays for ever, and only the pool uses this part of it.
            unsafe { self.pool.insert(heap(mapping)) };
        }
        self.main = Some(mapping);
    }

    /// The main mapping, unless the kernel had no memory at all.
    pub(crate) fn main(&self) -> Option<&Mapping> {
        self.main.as_ref()?.as_ref().ok()
    }

    /// The lowest address of the main stack.
    pub(crate) fn stack(&self) -> Option<NonNull<u8>> {
        let main = self.main()?;
        Some(main.part(main.page, STACK).cast())
    }

    /// Bytes that are mapped for the arena, guards included.
    pub(crate) fn mapped(&self) -> usize {
        self.main().into_iter().chain(self.extensions.iter().flatten()).map(|mapping| mapping.len).sum()
    }

    /// Bytes of it that were locked when they were mapped.
    pub(crate) fn locked(&self) -> usize {
        let all = self.main().into_iter().chain(self.extensions.iter().flatten());
        all.filter(|mapping| mapping.unlocked.is_none()).map(|mapping| mapping.len).sum()
    }

    /// A block where such blocks lie: key material in secret memory, all else in the arena.
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if self.is_for_secrets() { self.secrets.allocate(layout, &mut self.pool) } else { self.pool.allocate(layout) }
    }

    /// Wipes a block and takes it back, wherever it lies.
    ///
    /// # Safety
    /// As for [`Pool::free`].
    pub(crate) unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        if !self.secrets.is_open() {
            // SAFETY: the caller's promise is the same, and there is no other pool.
            return unsafe { self.pool.free(block, layout) };
        }
        match self.secrets.pool_of(block) {
            Some(pool) => {
                // SAFETY: the caller's promise is the same, and this is the block's pool.
                unsafe { pool.free(block, layout) };
                self.secrets.give_back(&mut self.pool);
            }
            // SAFETY: as above.
            None => unsafe { self.pool.free(block, layout) },
        }
    }

    /// Makes a block longer or shorter. It stays among its kind, but for one that becomes key material.
    ///
    /// # Safety
    /// As for [`Pool::resize`].
    pub(crate) unsafe fn resize(&mut self, block: NonNull<u8>, old: Layout, new: usize) -> Option<NonNull<u8>> {
        let for_secrets = self.is_for_secrets();
        let (pool, may_stay) = match self.secrets.pool_of(block) {
            Some(pool) => (pool, true),
            None => (&mut self.pool, !for_secrets),
        };
        if may_stay || new <= old.size() {
            // SAFETY: the caller's promise is the same, and this is the block's pool.
            let resized = unsafe { pool.resize(block, old, new) };
            if resized.is_some() {
                self.secrets.count();
                return resized;
            }
        }
        if !for_secrets && self.secrets.pool_of(block).is_none() {
            return None;
        }
        let place = self.secrets.allocate(Layout::from_size_align(new, old.align()).ok()?, &mut self.pool)?;
        // SAFETY: the new block overlaps no other, and both are that long.
        unsafe { place.copy_from_nonoverlapping(block, old.size().min(new)) };
        // SAFETY: the caller has given the block up.
        unsafe { self.free(block, old) };
        Some(place)
    }

    pub(crate) fn is_for_secrets(&self) -> bool {
        self.secrets.is_open() && is_secret()
    }
}

// SAFETY: blocks come from pools that follow the layout, overlap no others, and stay until they are freed.
unsafe impl GlobalAlloc for LockedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        lock().allocate(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller keeps GlobalAlloc's contract: the block is from here, has this layout, and is given up.
            unsafe { lock().free(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(block) = NonNull::new(block) else { return ptr::null_mut() };
        // SAFETY: the caller keeps GlobalAlloc's contract: the block is from here and has this layout.
        let resized = unsafe { lock().resize(block, layout, new_size) };
        resized.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}
