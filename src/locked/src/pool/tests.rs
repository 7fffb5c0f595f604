use proptest::prelude::*;

use super::model::{Model, Step};

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
    fn any_sequence_of_calls_keeps_blocks_apart_and_wiped(steps in prop::collection::vec(step(), 1..300)) {
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
