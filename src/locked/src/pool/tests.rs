use std::alloc::{alloc_zeroed, dealloc};

use proptest::prelude::*;

use super::*;

/// The top byte of each word of content. The pool's bookkeeping is sizes and addresses, which have a zero there.
const MARK: u8 = 0xA5;
const WORD: usize = 8;

/// A pool over ordinary memory, and what should be in it.
struct Model {
    memory: NonNull<u8>,
    layout: Layout,
    pool: Pool,
    live: Vec<Block>,
    serial: u8,
}

#[derive(Clone, Copy)]
struct Block {
    start: NonNull<u8>,
    layout: Layout,
    serial: u8,
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize, u32),
    Free(usize),
    Resize(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![4 => 1..200_usize, 2 => 1..5_000_usize, 1 => 1..40_000_usize];
    prop_oneof![
        4 => (size(), 0..9_u32).prop_map(|(size, align)| Step::Allocate(size, align)),
        3 => any::<usize>().prop_map(Step::Free),
        4 => (any::<usize>(), size()).prop_map(|(index, size)| Step::Resize(index, size)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_content_apart_and_leaves_none(steps in prop::collection::vec(step(), 1..300)) {
        let mut model = Model::new(128 << 10);
        for step in &steps {
            model.run(step);
            model.check();
        }
        model.end();
    }
}

/// The long run: what short sequences cannot reach, such as a fragmented pool.
#[test]
fn a_long_run_ends_with_an_empty_pool() {
    let mut model = Model::new(512 << 10);
    let mut state = 0x5D5_u64;
    let mut random = move || {
        // Knuth's MMIX constants; the upper bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for round in 0..60_000 {
        let size = 1 + random() % [60, 400, 3_000, 30_000][random() % 4];
        // Waves: the pool fills, is full for a while, and empties.
        let step = match (random() % 8, round / 5_000 % 2) {
            (0..=2, _) | (3, 0) => Step::Allocate(size, (random() % 9) as u32),
            (4, _) | (3, _) => Step::Free(random()),
            (5, 1) => Step::Free(random()),
            _ => Step::Resize(random(), size),
        };
        model.run(&step);
        if round % 50 == 0 {
            model.check();
        }
    }
    assert!(model.pool.peak > 400 << 10, "the pool was never full: {}", model.pool.peak);
    model.end();
}

#[test]
fn a_block_at_the_end_grows_in_place() {
    let mut model = Model::new(64 << 10);
    model.run(&Step::Allocate(100, 3));
    let before = model.live[0].start;
    model.run(&Step::Resize(0, 20_000));
    assert_eq!(model.live[0].start, before);
    model.end();
}

#[test]
fn a_full_pool_gives_nothing_and_lives_on() {
    let mut model = Model::new(64 << 10);
    model.run(&Step::Allocate(60 << 10, 3));
    model.run(&Step::Allocate(60 << 10, 3));
    assert_eq!(model.live.len(), 1);
    model.run(&Step::Free(0));
    model.run(&Step::Allocate(60 << 10, 3));
    assert_eq!(model.live.len(), 1);
    model.end();
}

impl Model {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        let mut pool = Pool::new();
        // SAFETY: the memory is freed with the pool, and between the pool's calls only read, or written in its blocks.
        unsafe { pool.insert(NonNull::slice_from_raw_parts(memory, bytes)) };
        Self { memory, layout, pool, live: Vec::new(), serial: 0 }
    }

    fn run(&mut self, step: &Step) {
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
    fn check(&mut self) {
        self.live.sort_by_key(|block| block.start.addr());
        let mut sizes = 0;
        let mut end = self.memory.addr().get();
        for block in &self.live {
            let start = block.start.addr().get();
            assert!(end <= start, "blocks overlap");
            self.assert_no_mark(end, start);
            block.assert_content(block.layout.size());
            sizes += block.layout.size();
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

    fn end(mut self) {
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
