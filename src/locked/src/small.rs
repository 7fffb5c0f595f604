//! Small blocks of which there are thousands, one behind the other in a few large pieces: nothing stands between them, none
//! is ever split or merged, and the rest of the memory keeps its large pieces. OpenSSL asks for 2,700 in a renewal, and a
//! block from here takes it a fifth of the time.

use std::{alloc::Layout, ops::Range, ptr::NonNull};

use crate::pool::wipe;

/// The largest of them, and what their sizes are multiples of.
const SMALL: usize = 512;
const UNIT: usize = 16;
/// A piece for some of them, with what a pool puts in front of it in whole pages.
pub(crate) const CHUNK: Layout = match Layout::from_size_align((4 << 10) - 16, UNIT) {
    Ok(chunk) => chunk,
    Err(_) => panic!("a size and a power of two"),
};

pub(crate) struct Small {
    /// What is left of the latest piece.
    next: Option<NonNull<u8>>,
    left: usize,
    /// The latest piece.
    piece: Range<usize>,
    /// Those that were given back, one list for each size.
    free: [Option<NonNull<Link>>; SMALL / UNIT],
    /// Blocks in use.
    pub(crate) blocks: usize,
}

/// Stands at the beginning of a block that was given back.
struct Link {
    next: Option<NonNull<Link>>,
}

// SAFETY: the blocks belong to whoever has given the pieces, and this is the only one that knows them.
unsafe impl Send for Small {}

pub(crate) fn is_small(layout: Layout) -> bool {
    (1..=SMALL).contains(&layout.size()) && layout.align() <= UNIT
}

/// Of a small block.
fn list(layout: Layout) -> usize {
    layout.size().div_ceil(UNIT) - 1
}

/// Makes a block shorter, or longer within what it has; `None` where it is too short.
///
/// # Safety
/// The block has at least the old layout, the new one is that of a small block, and only what is returned may be used from
/// here on.
pub(crate) unsafe fn resize(block: NonNull<u8>, old: Layout, new: Layout) -> Option<NonNull<u8>> {
    if new.size() > old.size() {
        return (list(new) == list(old)).then_some(block);
    }
    // SAFETY: the block is longer.
    let tail = unsafe { block.add(new.size()) };
    // SAFETY: whatever it loses is the block's, and the caller gives it up.
    unsafe { wipe(tail, old.size() - new.size()) };
    Some(block)
}

impl Small {
    pub(crate) const fn new() -> Self {
        Self { next: None, left: 0, piece: 0..0, free: [None; SMALL / UNIT], blocks: 0 }
    }

    /// Gives it a piece of memory, which nobody else uses from here on.
    pub(crate) fn add(&mut self, piece: NonNull<u8>, len: usize) {
        (self.next, self.left) = (Some(piece), len);
        self.piece = piece.addr().get()..piece.addr().get() + len;
    }

    /// Whether it was never given any.
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    /// Whether the block is from the only piece that it was given.
    pub(crate) fn hold(&self, block: NonNull<u8>) -> bool {
        self.piece.contains(&block.addr().get())
    }

    /// A block for the layout of a small one, if there is one.
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let list = list(layout);
        if let Some(link) = self.free[list] {
            // SAFETY: `free` wrote it, and nobody else knows the block.
            self.free[list] = unsafe { link.read() }.next;
            self.blocks += 1;
            return Some(link.cast());
        }
        let size = (list + 1) * UNIT;
        let block = self.next.filter(|_| size <= self.left)?;
        // SAFETY: so much is left of the piece.
        self.next = Some(unsafe { block.add(size) });
        self.left -= size;
        self.blocks += 1;
        Some(block)
    }

    /// Wipes a block and takes it back.
    ///
    /// # Safety
    /// The block has at least this layout, which is that of a small one, and nobody uses it any more.
    pub(crate) unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the block is ours again and that long.
        unsafe { wipe(block, layout.size()) };
        let (list, link) = (list(layout), block.cast::<Link>());
        // SAFETY: the shortest block has room for a link, each is aligned for it, and this one is ours.
        unsafe { link.write(Link { next: self.free[list] }) };
        self.free[list] = Some(link);
        self.blocks -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, UNIT).unwrap()
    }

    fn content<'a>(block: NonNull<u8>, len: usize) -> &'a mut [u8] {
        // SAFETY: the caller has a block of this length, and this is all that uses it.
        unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), len) }
    }

    #[test]
    fn blocks_lie_beside_each_other_are_wiped_and_come_again() {
        let mut memory = vec![0_u128; 4096 / 16];
        let mut small = Small::new();
        assert_eq!(small.allocate(layout(20)), None, "nothing was given");
        small.add(NonNull::new(memory.as_mut_ptr()).unwrap().cast(), 4096);
        let blocks: Vec<_> = std::iter::from_fn(|| small.allocate(layout(20))).collect();
        assert_eq!(blocks.len(), 4096 / 32);
        for block in &blocks {
            content(*block, 20).fill(7);
        }
        for block in &blocks {
            assert_eq!(content(*block, 20), [7; 20], "blocks overlap");
        }
        assert_eq!(small.allocate(layout(1)), None);
        // SAFETY: the block is from above and not used any more.
        unsafe { small.free(blocks[3], layout(20)) };
        assert_eq!(content(blocks[3], 20), [0; 20], "the list has no other");
        assert_eq!(small.allocate(layout(33)), None, "it is too short");
        assert_eq!(small.allocate(layout(17)), Some(blocks[3]));
    }

    #[test]
    fn a_block_is_resized_where_it_is_or_not_at_all() {
        let mut memory = [0_u128; 8];
        let block = NonNull::new(memory.as_mut_ptr()).unwrap().cast::<u8>();
        content(block, 128).fill(7);
        // SAFETY: the block is that long and ours.
        let resized = |old, new| unsafe { resize(block, layout(old), layout(new)) };
        assert_eq!(resized(40, 48), Some(block));
        assert_eq!(resized(40, 49), None);
        assert_eq!(resized(100, 30), Some(block));
        assert_eq!(content(block, 30), [7; 30]);
        assert_eq!(content(block, 100)[30..], [0; 70], "what it has lost stays behind");
    }
}
