//! Neighbours that compute all the time.

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// They end with this.
pub(super) struct Busy {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    pub(super) fn start(threads: usize) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let compute = |end: Arc<AtomicBool>| {
            move || {
                while !end.load(Ordering::Relaxed) {
                    hint::black_box((0..10_000_u64).fold(1, |hash: u64, number| hash.rotate_left(5) ^ number));
                }
            }
        };
        let threads = (0..threads).map(|_| thread::spawn(compute(Arc::clone(&end)))).collect();
        Self { end, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
