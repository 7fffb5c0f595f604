//! The scope in which everything is key material: what is allocated, and the stack that is run on.

use std::{
    alloc::Layout,
    cell::Cell,
    ptr::NonNull,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use crate::{
    arena::lock,
    methods::Chosen,
    registers::clear_vector_registers,
    secret::wipe_stack,
    stack::{is_on_arena_stack, run_on},
};

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether what is allocated now is key material.
pub(crate) fn is_secret() -> bool {
    // A thread that ends has no secrets any more.
    INSIDE.try_with(Cell::get).unwrap_or(false)
}

/// The stack in secret memory, on which one thread runs at a time.
struct Stack {
    taken: bool,
    /// Threads that wait for it: the kernel is asked to wake one only where there is one.
    waiting: usize,
}

static STACK: Mutex<Stack> = Mutex::new(Stack { taken: false, waiting: 0 });
static FREED: Condvar = Condvar::new();

fn stack() -> MutexGuard<'static, Stack> {
    // Neither is ever half changed.
    STACK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the stack. The main thread serves everybody, and the one that makes an RSA key has the stack for seconds: so
/// that waits, and the main thread goes on where it is, on the arena's stack, which is locked and wiped.
fn take() -> bool {
    let mut stack = stack();
    while stack.taken {
        if is_on_arena_stack() {
            return false;
        }
        stack.waiting += 1;
        stack = FREED.wait(stack).unwrap_or_else(PoisonError::into_inner);
        stack.waiting -= 1;
    }
    stack.taken = true;
    true
}

fn give_back() {
    let mut stack = stack();
    stack.taken = false;
    let awaited = stack.waiting > 0;
    drop(stack);
    if awaited {
        FREED.notify_one();
    }
}

/// Runs `f` with keys: whatever it allocates, through Rust or OpenSSL, is key material and lies in secret memory, and
/// so does the stack that it runs on, which is wiped afterwards. What it returns must own keys by pointers alone, since
/// it passes over the caller's stack. Keys that OpenSSL makes inside are signed with inside as well, whoever asks for
/// the signature later. Where secret memory is not to be had, or was not opened, locked memory takes its place.
///
/// A panic that leaves `f` aborts the process.
pub fn secretly<R>(f: impl FnOnce() -> R) -> R {
    if is_secret() {
        return f();
    }
    let stack = lock().secrets.stack();
    let Some(stack) = stack.filter(|_| take()) else {
        return inside_the_arena(f);
    };
    // SAFETY: the region is that many bytes of writable memory, page-aligned, with a page below that faults; `TAKEN` says
    // that nobody else runs on it.
    let result = unsafe { run_on(stack, || inside(f)) };
    #[cfg(feature = "dump")]
    measure(stack);
    wipe_stack(stack);
    give_back();
    clear_vector_registers();
    result
}

#[cfg(feature = "dump")]
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "dump")]
static DEEPEST: AtomicUsize = AtomicUsize::new(0);

/// How deep the stack in secret memory was ever used, in bytes: for tests.
#[cfg(feature = "dump")]
#[must_use]
pub fn secret_stack_peak() -> usize {
    DEEPEST.load(Ordering::Relaxed)
}

#[cfg(feature = "dump")]
fn measure(stack: NonNull<[u8]>) {
    // SAFETY: the stack is that long, and nobody runs on it.
    let bytes = unsafe { stack.as_ref() };
    let unused = bytes.iter().take_while(|byte| **byte == 0).count();
    DEEPEST.fetch_max(bytes.len() - unused, Ordering::Relaxed);
}

/// Without the stack in secret memory: on the arena's own, or on a piece of the arena for a thread that has another.
fn inside_the_arena<R>(f: impl FnOnce() -> R) -> R {
    const PIECE: Layout = match Layout::from_size_align(64 << 10, 4096) {
        Ok(piece) => piece,
        Err(_) => panic!("a size and a power of two"),
    };
    if is_on_arena_stack() {
        return inside(f);
    }
    let Some(piece) = lock().pool.allocate(PIECE) else { return inside(f) };
    let stack = NonNull::slice_from_raw_parts(piece, PIECE.size());
    // SAFETY: the piece is that many bytes of writable memory, page-aligned and ours alone; key operations take an eighth of
    // it.
    let result = unsafe { run_on(stack, || inside(f)) };
    // SAFETY: the piece is from this pool, with this layout, and nobody runs on it any more.
    unsafe { lock().pool.free(piece, PIECE) };
    clear_vector_registers();
    result
}

fn inside<R>(f: impl FnOnce() -> R) -> R {
    let _scope = Scope::enter();
    f()
}

struct Scope {
    _methods: Chosen,
}

impl Scope {
    fn enter() -> Self {
        INSIDE.set(true);
        Self { _methods: Chosen::now() }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}
