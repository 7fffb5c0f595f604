//! Ordinary memory for OpenSSL's tables: its algorithms, their names, the texts of its errors. They are the same in
//! every process and no secret, and most of what it ever allocates.

use std::{alloc::Layout, cell::UnsafeCell, ptr::NonNull};

use crate::{
    pool::Pool,
    small::{self, CHUNK, Small, is_small},
};

/// What our OpenSSL takes, and little more: what finds no room here lies in the arena.
pub(crate) const SIZE: usize = 272 << 10;

#[repr(align(4096))]
struct Region(UnsafeCell<[u8; SIZE]>);

// SAFETY: only the tables below use it, which are guarded by the arena's lock.
unsafe impl Sync for Region {}

static REGION: Region = Region(UnsafeCell::new([0; SIZE]));

/// Filled before there is any secret. No block is given out after that: what was given out can only shrink here.
pub(crate) struct Tables {
    pool: Pool,
    small: Small,
    pub(crate) filling: bool,
}

impl Tables {
    pub(crate) const fn new() -> Self {
        Self { pool: Pool::new(), small: Small::new(), filling: false }
    }

    /// A block, while the tables are filled.
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if !self.filling {
            return None;
        }
        if !is_small(layout) {
            return self.pool.allocate(layout);
        }
        self.small.allocate(layout).or_else(|| {
            self.small.add(self.pool.allocate(CHUNK)?, CHUNK.size());
            self.small.allocate(layout)
        })
    }

    /// Wipes a block and takes it back.
    ///
    /// # Safety
    /// The block is from here, has this layout, and nobody uses it any more.
    pub(crate) unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        if is_small(layout) {
            // SAFETY: the caller's promise is the same.
            unsafe { self.small.free(block, layout) };
        } else {
            // SAFETY: as above.
            unsafe { self.pool.free(block, layout) };
        }
    }

    /// Makes a block shorter, or while the tables are filled longer, where there is room.
    ///
    /// # Safety
    /// As for [`Pool::resize`].
    pub(crate) unsafe fn resize(&mut self, block: NonNull<u8>, old: Layout, new: usize) -> Option<NonNull<u8>> {
        if new > old.size() && !self.filling {
            return None;
        }
        let layout = Layout::from_size_align(new, old.align()).ok()?;
        if is_small(layout) {
            // A large block that becomes a small one goes to the list of its new size in the end: the rest of it is lost.
            self.small.blocks += usize::from(!is_small(old));
            // SAFETY: the caller's promise is the same.
            return unsafe { small::resize(block, old, layout) };
        }
        if is_small(old) {
            return None;
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.pool.resize(block, old, new) }
    }

    /// Whether the block is one of these.
    pub(crate) fn hold(&self, block: NonNull<u8>) -> bool {
        block.addr().get().wrapping_sub(REGION.0.get().addr()) < SIZE
    }

    /// From now on they are filled.
    pub(crate) fn open(&mut self) {
        if self.pool.capacity == 0 {
            // SAFETY: the region is there for ever, and this is the only pool that gets it, once.
            unsafe { self.pool.insert(region()) };
        }
        self.filling = true;
    }
}

pub(crate) fn region() -> NonNull<[u8]> {
    // SAFETY: the address of a static is not null.
    unsafe { NonNull::new_unchecked(REGION.0.get()) }
}
