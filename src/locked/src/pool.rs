//! Blocks of memory out of regions, wiped before anybody else can get them.

use std::{alloc::Layout, ptr::NonNull};

use rlsf::GRANULARITY;

/// 21 classes allow blocks, and with them regions, of up to 64 MiB.
type Tlsf = rlsf::Tlsf<'static, u32, u16, 21, 16>;

/// The bookkeeping of a free block is as long as the smallest block; half of it lies where the content was.
const BOOKKEEPING: usize = GRANULARITY;

/// What the allocator keeps in front of each block.
const OVERHEAD: usize = GRANULARITY / 2;

/// Bytes that a block takes, with what the allocator keeps in front of it. It looks for a free block among those of the
/// next class of sizes, sixteen to each power of two, where all fit: of another size than a class has, a block would not be
/// found again for the next one of the same size, and hundreds of anchors would each leave a hole.
fn taken(size: usize) -> Option<usize> {
    let size = size.checked_add(OVERHEAD)?;
    let step = (1 << size.ilog2()) / 16;
    size.checked_next_multiple_of(step.max(GRANULARITY))
}

/// The layout of a block that takes so much.
fn padded(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(taken(layout.size())? - OVERHEAD, layout.align()).ok()
}

/// The allocator proper, for one thread at a time.
pub(crate) struct Pool {
    tlsf: Tlsf,
    pub(crate) capacity: usize,
    pub(crate) used: usize,
    pub(crate) peak: usize,
    pub(crate) blocks: usize,
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self { tlsf: Tlsf::new(), capacity: 0, used: 0, peak: 0, blocks: 0 }
    }

    /// Adds memory.
    ///
    /// # Safety
    /// The region is readable and writable for as long as the pool exists, and nobody else uses it.
    pub(crate) unsafe fn insert(&mut self, region: NonNull<[u8]>) {
        // SAFETY: the caller gives the region away, for as long as the pool exists.
        let taken = unsafe { self.tlsf.insert_free_block_ptr(region) };
        self.capacity += taken.map_or(0, usize::from);
    }

    /// A block for this layout, if there is one.
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let block = self.tlsf.allocate(padded(layout)?)?;
        self.count(0, layout.size());
        self.blocks += 1;
        Some(block)
    }

    /// Wipes a block and takes it back.
    ///
    /// # Safety
    /// The block is from this pool, has this layout, and nobody uses it any more.
    pub(crate) unsafe fn free(&mut self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the block is ours again and `layout.size()` bytes long.
        unsafe { wipe(block, layout.size()) };
        // SAFETY: the caller says that the block is from here and has this alignment.
        unsafe { self.tlsf.deallocate(block, layout.align()) };
        self.count(layout.size(), 0);
        self.blocks -= 1;
    }

    /// Makes a block longer or shorter, in place where possible, and leaves no byte of it anywhere else.
    ///
    /// # Safety
    /// The block is from this pool and has this layout; only what is returned may be used from here on, or the block
    /// as it was if that is nothing.
    pub(crate) unsafe fn resize(&mut self, block: NonNull<u8>, layout: Layout, new: usize) -> Option<NonNull<u8>> {
        let new_layout = Layout::from_size_align(new, layout.align()).ok()?;
        let whole = padded(new_layout)?;
        let moved = if new <= layout.size() {
            // SAFETY: the caller's promise is the same.
            unsafe { self.shrink(block, layout, new_layout, whole) }
        } else {
            // SAFETY: the caller's promise is the same.
            unsafe { self.grow(block, layout, whole)? }
        };
        self.count(layout.size(), new);
        Some(moved)
    }

    /// # Safety
    /// As for `resize`, and the new layout is not larger; `whole` is that of the block.
    unsafe fn shrink(&mut self, block: NonNull<u8>, old: Layout, new: Layout, whole: Layout) -> NonNull<u8> {
        // SAFETY: the new size is within the block.
        let tail = unsafe { block.add(new.size()) };
        // SAFETY: these are the bytes that the caller gives up.
        unsafe { wipe(tail, old.size() - new.size()) };
        // SAFETY: the block is from here, and both layouts have its alignment.
        let shrunk = unsafe { self.tlsf.reallocate(block, whole) };
        // The block is large enough as it is.
        shrunk.unwrap_or(block)
    }

    /// rlsf may move the block: to another place, or down into the free block before it, onto part of itself. What
    /// it leaves is then free, and rlsf's bookkeeping may stand in it: where the content began, or right behind
    /// the new block. So the first bytes travel here instead, and the rest is wiped around the second place.
    ///
    /// # Safety
    /// As for `resize`, and the new layout is larger, and that of a whole block.
    unsafe fn grow(&mut self, block: NonNull<u8>, old: Layout, new: Layout) -> Option<NonNull<u8>> {
        let mut head = [0_u8; BOOKKEEPING];
        let head_len = old.size().min(BOOKKEEPING);
        let held = NonNull::from(&mut head).cast::<u8>();
        // SAFETY: both have `head_len` bytes, and `head` is no part of the block.
        unsafe { held.copy_from_nonoverlapping(block, head_len) };
        // SAFETY: the block is at least that long.
        unsafe { wipe(block, head_len) };
        // SAFETY: the block is from here, and both layouts have its alignment.
        let moved = unsafe { self.tlsf.reallocate(block, new) };
        let place = moved.unwrap_or(block);
        if place != block {
            for (from, to) in left_behind(block.addr().get(), old.size(), place.addr().get(), new.size()) {
                // SAFETY: the range is within the old block.
                let start = unsafe { block.add(from - block.addr().get()) };
                // SAFETY: the range is the old block's without what the new one's content or bookkeeping covers.
                unsafe { wipe(start, to - from) };
            }
        }
        // SAFETY: the block, moved or not, is at least that long, and `head` is no part of it.
        unsafe { place.copy_from_nonoverlapping(held, head_len) };
        // SAFETY: `head` is that long.
        unsafe { wipe(held, BOOKKEEPING) };
        moved
    }

    /// Whether blocks of these sizes could all be had at the same time. Nothing is written to them, and they are free
    /// again afterwards.
    pub(crate) fn has_room(&mut self, sizes: &[usize]) -> bool {
        let Some((size, rest)) = sizes.split_first() else { return true };
        let Ok(layout) = Layout::from_size_align(*size, GRANULARITY) else { return false };
        let Some(block) = padded(layout).and_then(|layout| self.tlsf.allocate(layout)) else { return false };
        let room = self.has_room(rest);
        // SAFETY: the block was taken above with this alignment, and nobody else knows it.
        unsafe { self.tlsf.deallocate(block, layout.align()) };
        room
    }

    fn count(&mut self, gone: usize, come: usize) {
        let taken = |size: usize| if size == 0 { 0 } else { taken(size).unwrap_or(0) };
        self.used = self.used - taken(gone) + taken(come);
        self.peak = self.peak.max(self.used);
    }
}

/// The address ranges of an old block that a move has left with content.
fn left_behind(old: usize, old_len: usize, new: usize, new_len: usize) -> impl Iterator<Item = (usize, usize)> {
    let (start, end) = (old + BOOKKEEPING, old + old_len);
    // The new block ends at a multiple of the granularity, and bookkeeping may follow.
    let new_end = (new + new_len).next_multiple_of(GRANULARITY);
    let ranges = if new < old {
        [(old.max(new + old_len), end.min(new_end)), (start.max(new_end + BOOKKEEPING), end)]
    } else {
        [(start, end), (end, end)]
    };
    ranges.into_iter().filter(|(from, to)| from < to)
}

/// # Safety
/// The bytes are writable and nobody else uses them.
pub(crate) unsafe fn wipe(start: NonNull<u8>, len: usize) {
    // Unlike a plain write, this one is never dropped as useless.
    // SAFETY: the caller owns the bytes.
    unsafe { libc::explicit_bzero(start.as_ptr().cast(), len) };
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;
#[cfg(test)]
mod tests;
