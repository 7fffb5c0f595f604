//! Ordinary memory for OpenSSL's tables: its algorithms, their names, the texts of its errors. They are the same in
//! every process and no secret, and most of what it ever allocates.

use std::{alloc::Layout, cell::UnsafeCell, ptr::NonNull};

use crate::pool::Pool;

/// What our OpenSSL takes, and little more: what finds no room here lies in the arena.
pub(crate) const SIZE: usize = 480 << 10;

#[repr(align(4096))]
struct Region(UnsafeCell<[u8; SIZE]>);

// SAFETY: only the pool below uses it, which is guarded by the arena's lock.
unsafe impl Sync for Region {}

static REGION: Region = Region(UnsafeCell::new([0; SIZE]));

/// Filled before there is any secret. No block is given out after that: what was given out can only shrink here.
pub(crate) struct Tables {
    pub(crate) pool: Pool,
    pub(crate) filling: bool,
}

impl Tables {
    pub(crate) const fn new() -> Self {
        Self { pool: Pool::new(), filling: false }
    }

    /// A block, while the tables are filled.
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if self.filling { self.pool.allocate(layout) } else { None }
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
