//! What a pool must do, whatever is asked of it: for the unit tests, and for the fuzz target `allocator`.

use std::alloc::{alloc_zeroed, dealloc};

use super::*;

/// The top byte of each word of content. The pool's bookkeeping is sizes and addresses, which have a zero there.
const MARK: u8 = 0xA5;
const WORD: usize = 8;

/// A pool over ordinary memory, and what should be in it.
pub(super) struct Model {
    memory: NonNull<u8>,
    layout: Layout,
    pub(super) pool: Pool,
    pub(super) live: Vec<Block>,
    serial: u8,
}

#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) start: NonNull<u8>,
    layout: Layout,
    serial: u8,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Allocate(usize, u32),
    Free(usize),
    Resize(usize, usize),
}

/// Runs the steps that the bytes spell, four for each, on a pool of 8 to 64 KiB.
#[cfg(fuzzing)]
pub fn exercise_pool(bytes: &[u8]) {
    let Some((size, steps)) = bytes.split_first() else { return };
    let mut model = Model::new((8 << 10) << (size % 4));
    for step in steps.chunks_exact(4) {
        model.run(&Step::spelt(step));
        model.check();
    }
    model.end();
}

#[cfg(fuzzing)]
impl Step {
    fn spelt(bytes: &[u8]) -> Self {
        let (what, which) = (bytes[0], usize::from(bytes[1]));
        let number = usize::from(bytes[2]) | usize::from(bytes[3]) << 8;
        let size = match what >> 2 & 3 {
            0 => 1 + number % 256,
            1 => 1 + number % 4096,
            2 => 1 + number,
            // So large that sums with it would overflow.
            _ => isize::MAX as usize - 4096 - number,
        };
        match what % 4 {
            0 => Self::Free(which),
            1 => Self::Allocate(size, u32::from(what >> 4) % 13),
            _ => Self::Resize(which, size),
        }
    }
}

impl Model {
    pub(super) fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        let mut pool = Pool::new();
        // SAFETY: the memory is freed with the pool, and between the pool's calls only read, or written in its blocks.
        unsafe { pool.insert(NonNull::slice_from_raw_parts(memory, bytes)) };
        Self { memory, layout, pool, live: Vec::new(), serial: 0 }
    }

    pub(super) fn run(&mut self, step: &Step) {
        match *step {
            Step::Allocate(size, align) => {
                let layout = Layout::from_size_align(size, 1 << align).unwrap();
                if let Some(start) = self.pool.allocate(layout) {
                    self.own(start, layout);
                }
            }
            Step::Free(index) if !self.live.is_empty() => {
                let block = self.live.swap_remove(index % self.live.len());
                block.assert_content(block.layout.size());
                // SAFETY: the block is live, with this layout.
                unsafe { self.pool.free(block.start, block.layout) };
            }
            Step::Resize(index, size) if !self.live.is_empty() => {
                let index = index % self.live.len();
                let block = self.live[index];
                // SAFETY: the block is live, with this layout.
                if let Some(start) = unsafe { self.pool.resize(block.start, block.layout, size) } {
                    Block { start, ..block }.assert_content(block.layout.size().min(size));
                    self.live.swap_remove(index);
                    self.own(start, Layout::from_size_align(size, block.layout.align()).unwrap());
                } else {
                    block.assert_content(block.layout.size());
                }
            }
            Step::Free(_) | Step::Resize(..) => {}
        }
    }

    fn own(&mut self, start: NonNull<u8>, layout: Layout) {
        assert_eq!(start.addr().get() % layout.align().max(WORD), 0);
        self.serial = self.serial.wrapping_add(1);
        let block = Block { start, layout, serial: self.serial };
        for offset in 0..layout.size() {
            // SAFETY: the offset is within the block.
            let byte = unsafe { start.add(offset) };
            // SAFETY: as above, and the block is ours.
            unsafe { byte.write(block.content(offset)) };
        }
        self.live.push(block);
    }

    /// No two blocks overlap, all content is as it was written, and no word of it stands anywhere else.
    pub(super) fn check(&mut self) {
        self.live.sort_by_key(|block| block.start.addr());
        let mut sizes = 0;
        let mut end = self.memory.addr().get();
        for block in &self.live {
            let start = block.start.addr().get();
            assert!(end <= start, "blocks overlap");
            self.assert_no_mark(end, start);
            block.assert_content(block.layout.size());
            sizes += taken(block.layout.size()).unwrap();
            end = start + block.layout.size();
        }
        self.assert_no_mark(end, self.memory.addr().get() + self.layout.size());
        assert_eq!((self.pool.used, self.pool.blocks), (sizes, self.live.len()));
    }

    fn assert_no_mark(&self, from: usize, to: usize) {
        let first = from - from % WORD + WORD - 1;
        for address in (first..to).step_by(WORD) {
            // SAFETY: the address is within the memory.
            let byte = unsafe { self.memory.add(address - self.memory.addr().get()) };
            // SAFETY: as above, and all of it was initialised.
            assert_ne!(unsafe { byte.read() }, MARK, "content outside of blocks, {} bytes behind one", address - from);
        }
    }

    pub(super) fn end(mut self) {
        self.check();
        while !self.live.is_empty() {
            self.run(&Step::Free(0));
        }
        self.check();
        // All of it is one piece again.
        let most = self.pool.capacity / 4 * 3;
        assert!(self.pool.allocate(Layout::from_size_align(most, 16).unwrap()).is_some());
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: it is from `alloc_zeroed` with this layout, and the pool ends here as well.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

impl Block {
    fn content(&self, offset: usize) -> u8 {
        if offset % WORD == WORD - 1 { MARK } else { self.serial ^ offset as u8 }
    }

    fn assert_content(&self, len: usize) {
        for offset in 0..len {
            // SAFETY: the offset is within a live block.
            let byte = unsafe { self.start.add(offset) };
            // SAFETY: as above, and `own` has initialised it.
            assert_eq!(unsafe { byte.read() }, self.content(offset), "byte {offset} of {len} has changed");
        }
    }
}
