//! The arena: one mapping with the main stack and the heap, made when the process allocates for the first time.

use std::{
    alloc::{GlobalAlloc, Layout},
    io,
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

use crate::{
    mapping::{Kind, Mapping, PAGE},
    pool::Pool,
    tables::Tables,
};

/// guard | stack | guard | heap | guard
const ARENA: usize = 2464 << 10;
// Unoptimized code, as in a plain `cargo build`, takes several times the stack.
pub(crate) const STACK: usize = if cfg!(debug_assertions) { 512 << 10 } else { 256 << 10 };
const STACK_START: usize = PAGE;
const HEAP_START: usize = STACK_START + STACK + PAGE;
const EXTENSIONS: usize = 8;

static STATE: Mutex<Arena> = Mutex::new(Arena {
    main: None,
    extensions: [const { None }; EXTENSIONS],
    pool: Pool::new(),
    tables: Tables::new(),
});

/// What the process has of the arena. All of it is guarded by one lock, which allocates nothing.
pub(crate) struct Arena {
    main: Option<Result<Mapping, Errno>>,
    extensions: [Option<Mapping>; EXTENSIONS],
    pub(crate) pool: Pool,
    pub(crate) tables: Tables,
}

/// The arena as Rust's allocator: every block is wiped when it is freed, and a full arena gives none.
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
    Usage { used: arena.pool.used, peak: arena.pool.peak, capacity: arena.pool.capacity, blocks: arena.pool.blocks }
}

/// Bytes that the arena has mapped, guard pages included.
#[must_use]
pub fn mapped() -> usize {
    lock().mapped()
}

/// Whether blocks of these sizes (bytes) could all be had at the same time. Without an arena there is no limit.
#[must_use]
pub fn has_room(sizes: &[usize]) -> bool {
    let mut arena = lock();
    arena.pool.capacity == 0 || arena.pool.has_room(sizes)
}

/// Adds at least this many bytes of the same kind to the heap.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::OutOfMemory`] when it has only a lesser kind of memory left; after eight
/// extensions [`io::ErrorKind::QuotaExceeded`].
pub fn extend(bytes: usize) -> io::Result<()> {
    let heap = bytes.checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
    let mapping = Mapping::new(heap + 2 * PAGE)?;
    let mut arena = lock();
    let (kind, locked) = arena.main().map_or((Kind::Anonymous, false), |main| (main.kind, main.unlocked.is_none()));
    if mapping.kind < kind || (locked && mapping.unlocked.is_some()) {
        mapping.unmap();
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let Some(free) = arena.extensions.iter().position(Option::is_none) else {
        mapping.unmap();
        return Err(io::ErrorKind::QuotaExceeded.into());
    };
    mapping.guard(0);
    mapping.guard(mapping.len - PAGE);
    let region = mapping.part(PAGE, heap);
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
/// under `f` when it allocates or calls: it should only look for something, or write them out.
#[cfg(feature = "dump")]
pub fn for_each_arena_byte_range(mut f: impl FnMut(&[u8])) {
    let mut ranges = [None; EXTENSIONS + 2];
    {
        let arena = lock();
        if let Some(main) = arena.main() {
            ranges[0] = Some(main.part(STACK_START, STACK));
            ranges[1] = Some(main.part(HEAP_START, ARENA - PAGE - HEAP_START));
        }
        for (range, extension) in ranges[2..].iter_mut().zip(&arena.extensions) {
            *range = extension.as_ref().map(|mapping| mapping.part(PAGE, mapping.len - 2 * PAGE));
        }
    }
    for range in ranges.into_iter().flatten() {
        // SAFETY: the range is readable and stays so; that its owners change it is told to the caller, a test.
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

impl Arena {
    fn start(&mut self) {
        let mapping = Mapping::new(ARENA);
        if let Ok(mapping) = &mapping {
            mapping.guard(0);
            mapping.guard(HEAP_START - PAGE);
            mapping.guard(ARENA - PAGE);
            let heap = mapping.part(HEAP_START, ARENA - PAGE - HEAP_START);
            // SAFETY: the mapping is new, stays for ever, and only the pool uses this part of it.
            unsafe { self.pool.insert(heap) };
        }
        self.main = Some(mapping);
    }

    /// The main mapping, unless the kernel had no memory at all.
    pub(crate) fn main(&self) -> Option<&Mapping> {
        self.main.as_ref()?.as_ref().ok()
    }

    /// The lowest address of the main stack.
    pub(crate) fn stack(&self) -> Option<NonNull<u8>> {
        Some(self.main()?.part(STACK_START, STACK).cast())
    }

    /// Bytes that are mapped for the arena, guards included.
    pub(crate) fn mapped(&self) -> usize {
        self.main().into_iter().chain(self.extensions.iter().flatten()).map(|mapping| mapping.len).sum()
    }
}

// SAFETY: blocks come from a pool that follows the layout, overlap no others, and stay until they are freed.
unsafe impl GlobalAlloc for LockedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        lock().pool.allocate(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller keeps GlobalAlloc's contract: the block is from here, has this layout, and is given up.
            unsafe { lock().pool.free(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(block) = NonNull::new(block) else { return ptr::null_mut() };
        // SAFETY: the caller keeps GlobalAlloc's contract: the block is from here and has this layout.
        let resized = unsafe { lock().pool.resize(block, layout, new_size) };
        resized.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}
