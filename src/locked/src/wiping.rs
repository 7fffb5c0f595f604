use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{Ordering, compiler_fence},
};

/// The system's allocator, with every block wiped before it is freed: a key or token that passed through a buffer
/// of any library is gone when the buffer is.
pub struct WipingAllocator;

// SAFETY: every block comes from System with the layout that was asked for, and goes back to it with the same one;
// what is added only writes inside of a block that its owner has given up.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's as well.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's as well.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is `layout.size()` bytes long and nobody uses it any more: the caller frees it.
        unsafe { block.write_bytes(0, layout.size()) };
        // Without it the compiler could drop the write, because the block is never read again.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the block is from `alloc` above, with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    // `realloc` is the trait's own: allocate, copy, free. System's would leave the old bytes behind.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_block_keeps_its_content() {
        let layout = Layout::from_size_align(64, 8).unwrap();
        // SAFETY: the layout has a size.
        let block = unsafe { WipingAllocator.alloc(layout) };
        assert!(!block.is_null());
        // SAFETY: the block has 64 bytes.
        unsafe { block.write_bytes(7, 64) };
        // SAFETY: the block is from this allocator with this layout.
        let grown = unsafe { WipingAllocator.realloc(block, layout, 256) };
        assert!(!grown.is_null());
        // SAFETY: the grown block has at least 64 initialised bytes.
        let content = unsafe { std::slice::from_raw_parts(grown, 64) };
        assert_eq!(content, [7; 64]);
        let grown_layout = Layout::from_size_align(256, 8).unwrap();
        // SAFETY: the block is from this allocator with this layout.
        unsafe { WipingAllocator.dealloc(grown, grown_layout) };
    }
}
